"""Choices at the slots of a search, on one network: looked up for many architectures at once, or relaxed.

Seconds of a network are linear in its compute, hops, bytes and rounds, plus what slow start adds for its largest
message. So every choice has seconds that add up, and a largest message of which only the maximum counts. Bytes, hops
and rounds are those of the busiest party, which may be another one for every sum: each combination of parties that can
be the busiest is a lane of its own, and the slowest lane counts. At two parties there is one.
"""

# A architectures, S slots, C choices of a slot, N of a run of slots, L lanes, P parties, T terms, V largest messages

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cost_models.linear import Cost, CostModel
from mpc.network import NetworkProfile

Integers = NDArray[np.integer[Any]]
Numbers = NDArray[Any]

_JOINT_CHOICES = 4096  # of consecutive slots, looked up in one table: it stays in a core's own cache
_ARCHITECTURES = 16_384  # looked up together, for the same reason


@dataclass(frozen=True)
class LinkLaw:
    """Seconds on one network: of one unit of everything that adds up, and of what comes once.

    They are read off the cost model at its unit costs.
    """

    cost_model: CostModel
    network: NetworkProfile

    @property
    def units_s(self) -> tuple[float, float, float, float]:
        """Of a second of compute, a hop, a byte and a round."""

        def at(unit: int) -> float:
            compute_s, hops, sent_bytes, rounds = (float(other == unit) for other in range(4))
            return self.cost_model.linear_s(compute_s, hops, sent_bytes, rounds, self.network)

        return at(0), at(1), at(2), at(3)

    def ramp_s(self, largest_bytes: int) -> float:
        """What comes once: the start, and slow start for a largest message of that size."""
        return self.cost_model.p50_of(0.0, 0.0, 0.0, 0.0, float(largest_bytes), self.network)


@dataclass(frozen=True)
class ChoiceSeconds:
    """Seconds of every choice on one network.

    `base_s` (L) is what no choice changes, `seconds` holds (L, C) for each slot. `levels` (C for each slot) says which
    largest message a choice has, by size; level v adds `ramps_s[v]` where it is the highest. Base has level 0.
    """

    base_s: Numbers
    seconds: tuple[Numbers, ...]
    levels: tuple[Numbers, ...]
    ramps_s: Numbers

    @cached_property
    def _joint_seconds(self) -> list[Numbers]:
        return joint(np.add, self.seconds)

    @cached_property
    def _joint_levels(self) -> list[Numbers]:
        return joint(np.maximum, [levels[None] for levels in self.levels])

    def look_up(self, choices_AS: Integers) -> NDArray[np.float64]:
        """Seconds of every architecture; `choices_AS` was checked."""
        seconds_A = np.empty(len(choices_AS))
        sizes = [len(levels) for levels in self.levels]
        for rows, places in joint_places(choices_AS, sizes):
            sums_LA = np.repeat(self.base_s[:, None], len(places[0]), axis=1) if places else self.base_s[:, None]
            for table_LN, place_A in zip(self._joint_seconds, places, strict=True):
                sums_LA += table_LN.take(place_A, axis=1)
            seconds_A[rows] = sums_LA.max(axis=0) + self._look_up_ramps(places)
        return seconds_A

    def _look_up_ramps(self, places: Sequence[Numbers]) -> Any:
        if len(self.ramps_s) == 1:
            return self.ramps_s[0]
        level_A: Any = 0
        for table_LN, place_A in zip(self._joint_levels, places, strict=True):
            level_A = np.maximum(level_A, table_LN[0].take(place_A))
        return self.ramps_s.take(level_A)

    @cached_property
    def relaxed(self) -> RelaxedSeconds:
        """The same for probabilities of choices."""
        width = max((len(levels) for levels in self.levels), default=0)
        seconds_LSC = np.zeros((len(self.base_s), len(self.levels), width))
        levels_SC = np.zeros((len(self.levels), width), dtype=np.int64)
        for slot, (seconds_LC, levels_C) in enumerate(zip(self.seconds, self.levels, strict=True)):
            seconds_LSC[:, slot, : len(levels_C)] = seconds_LC
            levels_SC[slot, : len(levels_C)] = levels_C
        arrays = (self.base_s, seconds_LSC, levels_SC, self.ramps_s)
        return RelaxedSeconds(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))


@dataclass(frozen=True, eq=False)
class RelaxedSeconds:
    """Expected seconds of independent slots; tensors as in `ChoiceSeconds`, padded to one number of choices."""

    base_s: Tensor
    choices_s: Tensor
    levels: Tensor
    ramps_s: Tensor

    def expected_s(self, p_SC: Tensor) -> Tensor:
        """Expected seconds, differentiable; exact where every slot has one choice with probability 1.

        Sums are exact everywhere. The slowest of several lanes is that of expected sums. Of the largest message v,
        P(largest <= v) = prod_slots P(choice <= v), so that its ramp is exact where slots are independent.
        """
        base_s, choices_s, ramps_s = (t.to(p_SC) for t in (self.base_s, self.choices_s, self.ramps_s))
        sums_L = base_s + choices_s.flatten(1) @ p_SC.flatten()
        slowest = sums_L[0] if len(sums_L) == 1 else sums_L.max()
        if len(ramps_s) == 1:
            return slowest + ramps_s[0]
        by_level_SV = p_SC.new_zeros(len(p_SC), len(ramps_s)).scatter_add(1, self.levels.to(p_SC.device), p_SC)
        exceeded_V = 1 - by_level_SV.cumsum(1)[:, :-1].prod(0)
        return slowest + ramps_s[0] + exceeded_V @ ramps_s.diff()


def choice_seconds(
    base: Cost, slots: Sequence[Sequence[Cost]], cost_model: CostModel, network: NetworkProfile
) -> ChoiceSeconds:
    """Seconds on `network` of choices that cost `slots`, beside `base`."""
    law = LinkLaw(cost_model, network)
    compute, hop_s, byte_s, round_s = law.units_s
    costs = [base, *(cost for slot in slots for cost in slot)]
    compute_T = compute * np.array([cost.compute_s for cost in costs])
    hops_PT = _busiest([cost.online.hops for cost in costs])
    bytes_PT = _busiest([cost.online.bytes for cost in costs])
    rounds_PT = _busiest([cost.online.rounds for cost in costs])
    lanes = product(hop_s * hops_PT, byte_s * bytes_PT, round_s * rounds_PT)
    lanes_LT = np.array([compute_T + sum(parties) for parties in lanes])
    ramps = ramp_levels(base.largest_bytes, [cost.largest_bytes for cost in costs], law)
    levels_T = np.searchsorted([size for size, _ in ramps], [cost.largest_bytes for cost in costs])
    ends = np.cumsum([1, *(len(slot) for slot in slots)])
    return ChoiceSeconds(
        lanes_LT[:, 0],
        tuple(np.split(lanes_LT, ends, axis=1)[1:-1]),
        tuple(np.split(levels_T, ends)[1:-1]),
        np.array([ramp_s for _, ramp_s in ramps]),
    )


def ramp_levels(base_bytes: int, largest_bytes: Sequence[int], law: LinkLaw) -> list[tuple[int, float]]:
    """Largest messages from `base_bytes` up, with what slow start adds; of those that add the same, the largest."""
    sizes = sorted({base_bytes, *(size for size in largest_bytes if size > base_bytes)})
    ramps_s = [law.ramp_s(size) for size in sizes]
    following = [*ramps_s[1:], None]
    return [(size, here) for size, here, after in zip(sizes, ramps_s, following, strict=True) if here != after]


def _busiest(per_party: Sequence[tuple[int, ...]]) -> Numbers:
    """Values (P, T) of the parties that can be the busiest in a sum: of two, one may exceed the other everywhere."""
    values_PT = np.array(per_party).T
    kept: list[Numbers] = []
    for values_T in sorted(values_PT, key=lambda values: -int(values.sum())):
        if not any((more >= values_T).all() for more in kept):
            kept.append(values_T)
    return np.array(kept)


def runs_of_slots(sizes: Sequence[int]) -> list[range]:
    """Consecutive slots whose joint choices fit one table, for slots of these numbers of choices."""
    runs: list[range] = []
    for slot in range(len(sizes)):
        if runs and prod(sizes[runs[-1].start : slot + 1]) <= _JOINT_CHOICES:
            runs[-1] = range(runs[-1].start, slot + 1)
        else:
            runs.append(range(slot, slot + 1))
    return runs


def joint(combine: np.ufunc, slots: Sequence[Numbers]) -> list[Numbers]:
    """Values (L, N) of every run of slots, from those (L, C) of each slot."""
    tables = []
    for run in runs_of_slots([values_LC.shape[1] for values_LC in slots]):
        table_LN = slots[run.start]
        for slot in run[1:]:
            pairs_LNC = combine(table_LN[:, :, None], slots[slot][:, None, :])
            table_LN = pairs_LNC.reshape(len(table_LN), -1)
        tables.append(np.ascontiguousarray(table_LN))
    return tables


def joint_places(choices_AS: Integers, sizes: Sequence[int]) -> Iterator[tuple[slice, list[Numbers]]]:
    """For some architectures at a time: which they are, and their columns in the table of every run of slots."""
    runs = runs_of_slots(sizes)
    for start in range(0, len(choices_AS), _ARCHITECTURES):
        rows = slice(start, start + _ARCHITECTURES)
        choices_SA = np.ascontiguousarray(choices_AS[rows].T, dtype=np.intp)
        places = []
        for run in runs:
            place_A = choices_SA[run.start]
            for slot in run[1:]:
                place_A = place_A * sizes[slot] + choices_SA[slot]
            places.append(place_A)
        yield rows, places
