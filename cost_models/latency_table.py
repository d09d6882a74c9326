"""Cost of every choice of a search, read once: a million architectures a second, or probabilities with gradients.

A table adds up what `CostModel.cost` gives for parts of networks, so that its seconds are those of the cost model for
the whole network. Choices at one slot must not change what another slot costs: a width of the stream does, and is a
table of its own among `LatencyTables`.
"""

# A architectures, S slots, C choices of a slot, P parties

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from cost_models.choices import ChoiceSeconds, Integers, choice_seconds, joint, joint_places
from cost_models.linear import Cost, CostModel, write_json
from mpc.network import NetworkProfile
from mpc.scheme import Scheme
from mpc.traffic import PhaseTraffic

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Slot:
    """One place of a network where a search chooses: what it may choose, and what each choice costs.

    Raises ValueError without choices, for equal names, or where names and costs differ in number.
    """

    name: str
    choices: tuple[str, ...]
    costs: tuple[Cost, ...]

    def __post_init__(self) -> None:
        if not self.choices or len(set(self.choices)) != len(self.choices):
            raise ValueError(f"slot {self.name!r} needs choices of different names, got {self.choices}")
        if len(self.choices) != len(self.costs):
            raise ValueError(f"slot {self.name!r} has {len(self.choices)} choices and {len(self.costs)} costs")


@dataclass(frozen=True, eq=False)
class LatencyTable:
    """Costs of the choices at every slot, and of what no choice changes (`base`), under one cost model.

    An architecture is one integer for each slot, in their order: its place among the slot's choices. Scheme and
    machine are the cost model's.
    """

    base: Cost
    slots: tuple[Slot, ...]
    cost_model: CostModel
    _on: dict[NetworkProfile, ChoiceSeconds] = field(default_factory=dict, init=False, repr=False)

    @property
    def scheme(self) -> Scheme:
        """The scheme that costs hold under."""
        return self.cost_model.scheme

    @property
    def machine(self) -> Mapping[str, Any]:
        """The machine that compute was fitted on."""
        return self.cost_model.machine

    def on(self, network: NetworkProfile) -> ChoiceSeconds:
        """Seconds of every choice on `network`."""
        if network not in self._on:
            self._on[network] = choice_seconds(self.base, [s.costs for s in self.slots], self.cost_model, network)
        return self._on[network]

    def seconds(self, choices_AS: ArrayLike, network: NetworkProfile) -> NDArray[np.float64]:
        """Median online seconds of every architecture; equal to `CostModel.seconds` of the whole network.

        Raises ValueError for choices that are not there.
        """
        return self.on(network).look_up(self._demand_choices(choices_AS))

    def bytes(self, choices_AS: ArrayLike) -> NDArray[np.int64]:
        """Online bytes that the busiest party sends, exactly."""
        return self._sums("bytes", choices_AS)

    def rounds(self, choices_AS: ArrayLike) -> NDArray[np.int64]:
        """Online messages that the busiest party waits for, exactly."""
        return self._sums("rounds", choices_AS)

    def hops(self, choices_AS: ArrayLike) -> NDArray[np.int64]:
        """Nominal one-way delays that the busiest party waits for, exactly."""
        return self._sums("hops", choices_AS)

    def cost(self, choices: Sequence[int]) -> Cost:
        """What one architecture costs; `cost_model.seconds_of` gives its seconds with intervals."""
        (checked,) = self._demand_choices([choices])
        return sum((slot.costs[choice] for slot, choice in zip(self.slots, checked, strict=True)), self.base)

    def expected_s(self, probabilities: Sequence[Tensor], network: NetworkProfile) -> Tensor:
        """Expected seconds, given the probability of every choice at each slot, (C,) for each; differentiable.

        Exact where every slot has one choice with probability 1. Raises ValueError for other shapes.
        """
        sizes = [len(slot.choices) for slot in self.slots]
        given = [tuple(p.shape) for p in probabilities]
        if given != [(size,) for size in sizes]:
            raise ValueError(f"probabilities have shapes {given}; the slots have choices: {sizes}")
        width = max(sizes, default=0)
        padded = [torch.nn.functional.pad(p, (0, width - len(p))) for p in probabilities]
        return self.on(network).relaxed.expected_s(torch.stack(padded))

    def to_json(self) -> dict[str, Any]:
        """Plain values: costs, and the cost model with its scheme and machine."""
        return {
            "schema": SCHEMA,
            "record": "latency_table",
            **self.costs_json(),
            "cost_model": self.cost_model.to_json(),
        }

    def costs_json(self) -> dict[str, Any]:
        """Costs alone."""
        slots = [
            {"name": s.name, "choices": list(s.choices), "costs": [asdict(cost) for cost in s.costs]}
            for s in self.slots
        ]
        return {"base": asdict(self.base), "slots": slots}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> LatencyTable:
        """The table that `to_json` wrote; ValueError for another record, MachineWarning on another machine."""
        _demand_record(record, "latency_table")
        return cls.from_costs_json(record, CostModel.from_json(record["cost_model"]))

    @classmethod
    def from_costs_json(cls, values: Mapping[str, Any], cost_model: CostModel) -> LatencyTable:
        """The table of costs that `costs_json` wrote, under their cost model."""
        slots = (
            Slot(slot["name"], tuple(slot["choices"]), tuple(_cost(cost) for cost in slot["costs"]))
            for slot in values["slots"]
        )
        return cls(_cost(values["base"]), tuple(slots), cost_model)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the table to `path`, whole or not at all."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LatencyTable:
        """The table of a file written by `save`; raises and warns as `from_json`."""
        return cls.from_json(json.loads(Path(path).read_text()))

    @cached_property
    def _joint_sums(self) -> Mapping[str, list[NDArray[np.int64]]]:
        return {
            name: joint(np.add, [np.array([getattr(c.online, name) for c in slot.costs]).T for slot in self.slots])
            for name in ("bytes", "rounds", "hops")
        }

    def _sums(self, name: str, choices_AS: ArrayLike) -> NDArray[np.int64]:
        """One count of every architecture, the largest over parties."""
        checked_AS = self._demand_choices(choices_AS)
        sums_A = np.empty(len(checked_AS), dtype=np.int64)
        base_P = np.array(getattr(self.base.online, name), dtype=np.int64)
        for rows, places in joint_places(checked_AS, [len(slot.choices) for slot in self.slots]):
            sums_PA = sum(
                (table_PN[:, place_A] for table_PN, place_A in zip(self._joint_sums[name], places, strict=True)),
                base_P[:, None],
            )
            sums_A[rows] = sums_PA.max(axis=0)
        return sums_A

    def _demand_choices(self, choices_AS: ArrayLike) -> Integers:
        """The choices as an array; ValueError with the first that is not there."""
        choices = np.asarray(choices_AS)
        names = ", ".join(slot.name for slot in self.slots)
        if not np.issubdtype(choices.dtype, np.integer):
            raise ValueError(f"choices are places among the choices of a slot, whole numbers, not {choices.dtype}")
        if choices.ndim != 2 or choices.shape[1] != len(self.slots):
            raise ValueError(
                f"choices have shape {choices.shape}; give a row for each architecture, and in it a column for each "
                f"of the {len(self.slots)} slots: {names}"
            )
        if len(choices):
            sizes = np.array([len(slot.choices) for slot in self.slots])
            outside = (choices.max(axis=0) >= sizes) | (choices.min(axis=0) < 0)
            if outside.any():
                raise self._outside(choices, int(outside.argmax()))
        return choices

    def _outside(self, choices_AS: Integers, column: int) -> ValueError:
        slot, chosen_A = self.slots[column], choices_AS[:, column]
        row = int(((chosen_A < 0) | (chosen_A >= len(slot.choices))).argmax())
        known = ", ".join(f"{place} {name}" for place, name in enumerate(slot.choices))
        return ValueError(f"row {row} has choice {chosen_A[row]} at slot {slot.name!r}; it has: {known}")


@dataclass(frozen=True, eq=False)
class LatencyTables:
    """Tables with the same slots for the values of one outer choice that changes what every slot costs.

    A width of the stream, a patch size, or both together. An architecture is the place of its outer value, then its
    choices. Raises ValueError where slots, their choices or schemes differ.
    """

    outer: str
    values: tuple[str, ...]
    tables: tuple[LatencyTable, ...]

    def __post_init__(self) -> None:
        if not self.tables or len(self.values) != len(self.tables) or len(set(self.values)) != len(self.values):
            raise ValueError(f"{self.outer} has values {self.values} for {len(self.tables)} tables: name each once")
        first = [(slot.name, slot.choices) for slot in self.tables[0].slots]
        for value, table in zip(self.values, self.tables, strict=True):
            if [(slot.name, slot.choices) for slot in table.slots] != first or table.scheme != self.tables[0].scheme:
                raise ValueError(
                    f"the table for {self.outer} {value} differs from the first in slots, choices or scheme"
                )

    def seconds(self, choices_AS: ArrayLike, network: NetworkProfile) -> NDArray[np.float64]:
        """Median online seconds of every architecture, as `LatencyTable.seconds`; column 0 is the outer choice."""
        return self._by_table(choices_AS, lambda table, inner_AS: table.seconds(inner_AS, network), np.float64)

    def bytes(self, choices_AS: ArrayLike) -> NDArray[np.int64]:
        """Online bytes that the busiest party sends, exactly."""
        return self._by_table(choices_AS, LatencyTable.bytes, np.int64)

    def rounds(self, choices_AS: ArrayLike) -> NDArray[np.int64]:
        """Online messages that the busiest party waits for, exactly."""
        return self._by_table(choices_AS, LatencyTable.rounds, np.int64)

    def hops(self, choices_AS: ArrayLike) -> NDArray[np.int64]:
        """Nominal one-way delays that the busiest party waits for, exactly."""
        return self._by_table(choices_AS, LatencyTable.hops, np.int64)

    def cost(self, choices: Sequence[int]) -> Cost:
        """What one architecture costs."""
        (outer, *inner) = choices
        self._demand_outer(np.array([outer]))
        return self.tables[outer].cost(inner)

    def expected_s(self, p_outer: Tensor, probabilities: Sequence[Tensor], network: NetworkProfile) -> Tensor:
        """Expected seconds, given probabilities of the outer values and of the choices at each slot; differentiable.

        Raises ValueError for other shapes.
        """
        if tuple(p_outer.shape) != (len(self.tables),):
            raise ValueError(f"{self.outer} has {len(self.tables)} values, its probabilities {tuple(p_outer.shape)}")
        return p_outer @ torch.stack([table.expected_s(probabilities, network) for table in self.tables])

    def to_json(self) -> dict[str, Any]:
        """Plain values: costs by outer value, and the cost model with its scheme and machine."""
        tables = {value: table.costs_json() for value, table in zip(self.values, self.tables, strict=True)}
        cost_model = self.tables[0].cost_model.to_json()
        named = {"schema": SCHEMA, "record": "latency_tables", "outer": self.outer}
        return {**named, "tables": tables, "cost_model": cost_model}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> LatencyTables:
        """The tables that `to_json` wrote; ValueError for another record, MachineWarning on another machine."""
        _demand_record(record, "latency_tables")
        cost_model = CostModel.from_json(record["cost_model"])
        tables = tuple(LatencyTable.from_costs_json(values, cost_model) for values in record["tables"].values())
        return cls(record["outer"], tuple(record["tables"]), tables)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the tables to `path`, whole or not at all."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LatencyTables:
        """The tables of a file written by `save`; raises and warns as `from_json`."""
        return cls.from_json(json.loads(Path(path).read_text()))

    def _by_table(
        self, choices_AS: ArrayLike, look_up: Callable[[LatencyTable, Integers], NDArray[Any]], dtype: type
    ) -> NDArray[Any]:
        choices = np.asarray(choices_AS)
        if choices.ndim != 2 or choices.shape[1] < 1 or not np.issubdtype(choices.dtype, np.integer):
            raise ValueError(f"give a row of whole numbers for each architecture: {self.outer}, then the slots")
        self._demand_outer(choices[:, 0])
        result: NDArray[Any] = np.empty(len(choices), dtype=dtype)
        for place, table in enumerate(self.tables):
            rows = np.flatnonzero(choices[:, 0] == place)
            result[rows] = look_up(table, choices[rows, 1:])
        return result

    def _demand_outer(self, outer_A: Integers) -> None:
        outside = (outer_A < 0) | (outer_A >= len(self.tables))
        if outside.any():
            known = ", ".join(f"{place} {value}" for place, value in enumerate(self.values))
            raise ValueError(f"{self.outer} has no choice {outer_A[outside][0]}; it has: {known}")


def _cost(values: Mapping[str, Any]) -> Cost:
    online = PhaseTraffic(**{name: tuple(counts) for name, counts in values["online"].items()})
    return Cost(**{**values, "online": online})


def _demand_record(record: Mapping[str, Any], name: str) -> None:
    if (record.get("schema"), record.get("record")) != (SCHEMA, name):
        got = f"{record.get('record')!r} of schema {record.get('schema')!r}"
        raise ValueError(f"want a record {name!r} of schema {SCHEMA}, got {got}; build the table again")
