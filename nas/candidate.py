"""A network that a search proposed, with what is known about it, and tables over many."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

from models.spec import ViTSpec


@dataclass(frozen=True, slots=True)
class Candidate:
    """An architecture with its accuracy and its seconds by network.

    A network that is absent was not predicted, or not measured. `found_by` names the search and what it optimised, such
    as `mpcvit:latency@cheetah-wan`; `ratio` is the share of heads kept, None where binarisation did not use one. Raises
    ValueError for an accuracy outside [0, 1].
    """

    spec: ViTSpec
    accuracy: float
    found_by: str
    seed: int
    ratio: float | None = None
    predicted_s: Mapping[str, float] = field(default_factory=dict)
    measured_s: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.accuracy <= 1:
            raise ValueError(f"accuracy is a share in [0, 1], got {self.accuracy}")

    def to_json(self) -> dict[str, Any]:
        """A record of plain values."""
        return {
            "schema": 1,
            "record": "candidate",
            "spec": self.spec.to_json(),
            "accuracy": self.accuracy,
            "found_by": self.found_by,
            "seed": self.seed,
            "ratio": self.ratio,
            "predicted_s": dict(self.predicted_s),
            "measured_s": dict(self.measured_s),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Candidate:
        """The candidate that `to_json` wrote; ValueError for another kind of record or schema."""
        if (record.get("schema"), record.get("record")) != (1, "candidate"):
            raise ValueError(f"not a candidate of schema 1: {record.get('record')!r}, schema {record.get('schema')!r}")
        values = {key: value for key, value in record.items() if key not in ("schema", "record", "spec")}
        return cls(spec=ViTSpec.from_json(record["spec"]), **values)


def cross_table(candidates: Iterable[Candidate], networks: Sequence[str]) -> list[dict[str, Any]]:
    """What was found for one network, run on every network: a row for each (found_by, ratio), in order of appearance.

    A row holds the number of seeds, mean and spread (sample standard deviation, None for one seed) of the accuracy and
    of the seconds on each network, predicted and measured, and the kept kinds' head counts by layer for every seed.
    """
    groups: dict[tuple[str, float | None], list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault((candidate.found_by, candidate.ratio), []).append(candidate)
    return [
        {
            "found_by": found_by,
            "ratio": ratio,
            "seeds": [candidate.seed for candidate in group],
            "accuracy": _summary([candidate.accuracy for candidate in group]),
            "predicted_s": {
                name: _summary([c.predicted_s[name] for c in group if name in c.predicted_s]) for name in networks
            },
            "measured_s": {
                name: _summary([c.measured_s[name] for c in group if name in c.measured_s]) for name in networks
            },
            "heads_by_layer": [heads_by_layer(candidate.spec) for candidate in group],
        }
        for (found_by, ratio), group in groups.items()
    ]


def heads_by_layer(spec: ViTSpec) -> list[dict[str, int]]:
    """How many heads of each kind every layer has, absent kinds left out."""
    return [{kind: block.kinds.count(kind) for kind in dict.fromkeys(block.kinds)} for block in spec.blocks]


def _summary(values: Sequence[float]) -> dict[str, float | int | None]:
    """Mean, spread and count; None, never 0, where there is nothing to average."""
    return {
        "mean": fmean(values) if values else None,
        "spread": stdev(values) if len(values) > 1 else None,
        "n": len(values),
    }
