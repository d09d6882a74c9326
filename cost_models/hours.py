"""By how much this machine's pace differs from hour to hour, as its earlier calibrations say.

A calibration knows the minutes that it took, and a shared machine may keep one pace in all of them and another in the
next hour. But a calibration kept from another hour is a prediction of all that this one has measured: how far they lie
apart is what an interval for any hour has to hold, and it costs no further run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist, median
from typing import Any

from cost_models.features import model_key
from cost_models.linear import SCHEMA, CostModel
from cost_models.observations import OperationSamples

DISTURBED = 0.05  # share of the CPU that other programs took: a calibration among them says nothing of the machine
_KEPT = 20  # hours; older ones are forgotten
_QUARTILE = NormalDist().inv_cdf(0.75)


@dataclass(frozen=True, slots=True)
class Hour:
    """An earlier calibration: what takes 1 second now took `pace` seconds then. Raises ValueError unless pace > 0."""

    frozen_at: str
    pace: float

    def __post_init__(self) -> None:
        if not 0 < self.pace < math.inf:
            raise ValueError(f"a pace must be a number above 0, got {self.pace}")

    def to_json(self) -> dict[str, Any]:
        """Plain values for a record."""
        return asdict(self)


def why_incomparable(
    earlier: Mapping[str, Any], machine: Mapping[str, Any], versions: Mapping[str, str | None] | None
) -> str | None:
    """Why the calibration record `earlier` says nothing of this machine's pace, in a few words; None where it does."""
    if earlier["schema"] != SCHEMA:
        return "was made by another version of this program"
    if earlier["machine"].get("label") != machine.get("label"):
        return "was made on another machine"
    if earlier.get("versions") != versions:
        return "was made by other versions of packages"
    if (earlier.get("others_share") or 0.0) > DISTURBED:
        return "was made while other programs ran"
    return None


@dataclass(frozen=True, slots=True)
class Earlier:
    """A calibration that was kept: its cost model, of when its pace is, and the hours that it knew itself."""

    model: CostModel
    frozen_at: str
    hours: tuple[Hour, ...] = ()

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Earlier:
        """That of a calibration record; raises ValueError for what is none, and as `CostModel.from_json`."""
        try:
            hours = tuple(Hour(hour["frozen_at"], hour["pace"]) for hour in record.get("earlier", []))
            return cls(CostModel.from_json(record), record.get("paced_at") or record["frozen_at"], hours)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"the calibration kept before is damaged ({error!r}): remove it") from error

    def hours_before(self, samples: Sequence[OperationSamples]) -> list[Hour]:
        """Its hours and its own, beside operations that were measured now.

        Its pace is the median, over the operations of kinds that it was fitted to, of what it predicts over what was
        measured. None where `samples` hold no such operation.
        """
        known = [sample for sample in samples if model_key(sample.operation) in self.model.operations]
        if not known:
            return []
        pace = median(self.model.operation_s(sample.operation) / sample.usual_s for sample in known)
        hours = [Hour(hour.frozen_at, hour.pace * pace) for hour in self.hours]
        return [*hours, Hour(self.frozen_at, pace)][-_KEPT:]


def spread_of(hours: Sequence[Hour]) -> float:
    """Root mean square of the logarithms of their paces, which is how far off this calibration was in those hours."""
    return math.sqrt(sum(math.log(hour.pace) ** 2 for hour in hours) / len(hours)) if hours else 0.0


def times_as_long(then_and_now_s: Sequence[tuple[Sequence[float], Sequence[float]]]) -> tuple[float, float]:
    """The median over workloads of how many times as long each took now, and how far they lie apart from it.

    Deviations are those of a normal distribution with the same median. What medians scatter by is known from those of
    every other sample: they differ by twice that.
    """
    if not then_and_now_s:
        return 1.0, 0.0
    logs = [math.log(median(now) / median(then)) for then, now in then_and_now_s]
    usual = median(logs)
    scatter2 = sum(
        _deviation([_halves_apart(samples_s) / 2 for samples_s in each]) ** 2
        for each in zip(*then_and_now_s, strict=True)
    )
    return math.exp(usual), math.sqrt(max(0.0, _deviation([each - usual for each in logs]) ** 2 - scatter2))


def _deviation(values: Sequence[float]) -> float:
    """The standard deviation of normal values around 0 whose magnitudes have this median."""
    return median(map(abs, values)) / _QUARTILE


def _halves_apart(samples_s: Sequence[float]) -> float:
    """How far medians of every other sample lie apart, in logarithms; 0 for a single sample."""
    return math.log(median(samples_s[::2]) / median(samples_s[1::2])) if samples_s[1:] else 0.0
