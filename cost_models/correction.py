"""What a law of counted quantities leaves over: it resembles what it leaves over of similar operations.

Seconds are nearly proportional to what is counted, but allocators, caches and a library's kernels change their ways
with size. So the logarithm of measured over fitted seconds is a Gaussian process of the operation's size (Rasmussen and
Williams, Gaussian Processes for Machine Learning, 2006, section 2.2), part of it common to all kinds of operations. Its
mean is zero: far from everything that was measured nothing is corrected.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import chain
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cost_models.features import PLACES, Vector, counts, model_key
from cost_models.observations import OperationSamples
from mpc.scheme import Scheme
from mpc.trace import Operation

Place = tuple[float, float, float]

# Standard deviations of the logarithm: what all kinds share, and what each has of its own; and how far apart, in the
# logarithm of elements and of seconds, operations have little in common.
_COMMON, _OWN = 0.05, 0.05
_LENGTH = 1.0
_UNEXPLAINED = 0.02  # of each measured median, beside its own scatter
_DOUBTFUL = 0.15  # what lies further from the law was disturbed, or follows another one: it counts for less
_SCATTER_OF_MEDIAN = 1.25  # of the mean's, of normal samples
_DEVIATION = 1.4826  # standard deviation over median absolute deviation, of normal samples


@dataclass(frozen=True)
class Correction:
    """Operations that were measured, by kind (`model_key`) and place (see `place_of`), and the weight of each.

    Without operations it corrects nothing. Raises ValueError where there is not one kind, place and weight of each, or
    where one is no finite number.
    """

    kinds: tuple[str, ...] = ()
    places: tuple[Place, ...] = ()
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not len(self.kinds) == len(self.places) == len(self.weights):
            sizes = f"{len(self.kinds)} kinds, {len(self.places)} places and {len(self.weights)} weights"
            raise ValueError(f"a correction has a kind, a place and a weight of each operation, got {sizes}")
        if not all(map(math.isfinite, (*self.weights, *chain.from_iterable(self.places)))):
            raise ValueError("places and weights of a correction must be finite numbers; calibrate again")

    def factor(self, operation: Operation, law_s: float, scheme: Scheme) -> float:
        """How many times as long as by the law, `law_s`, the operation is likely to take."""
        if not self.kinds or law_s <= 0:
            return 1.0
        same = self._numbers == self._number_of.get(model_key(operation), -1)
        covariance = _covariance(self._places - np.array(place_of(operation, law_s, scheme)), same)
        return math.exp(float(covariance @ self._weights))

    def at_pace(self, pace: float) -> Correction:
        """The same of a machine that takes `pace` times as long for everything."""
        later = math.log(pace)
        return replace(self, places=tuple((read, made, seconds + later) for read, made, seconds in self.places))

    def to_json(self) -> dict[str, Any]:
        """Plain values for a record."""
        return {"kinds": list(self.kinds), "places": [list(place) for place in self.places], "weights": [*self.weights]}

    @classmethod
    def from_json(cls, record: Mapping[str, Any] | None) -> Correction:
        """What `to_json` wrote; of a record from before there were any, one that corrects nothing."""
        if record is None:
            return cls()
        places = tuple((read, made, seconds) for read, made, seconds in record["places"])
        return cls(tuple(record["kinds"]), places, tuple(record["weights"]))

    @cached_property
    def _number_of(self) -> dict[str, int]:
        return {kind: number for number, kind in enumerate(dict.fromkeys(self.kinds))}

    @cached_property
    def _numbers(self) -> NDArray[np.int64]:
        return np.array([self._number_of[kind] for kind in self.kinds])

    @cached_property
    def _places(self) -> Vector:
        return np.array(self.places)

    @cached_property
    def _weights(self) -> Vector:
        return np.array(self.weights)


def correction_of(samples: Sequence[OperationSamples], laws_s: Sequence[float], scheme: Scheme) -> Correction:
    """What the measured medians say beyond the seconds of the law, `laws_s`, one of each; those of 0 say nothing."""
    said = [(sample, law_s) for sample, law_s in zip(samples, laws_s, strict=True) if law_s > 0]
    if not said:
        return Correction()
    kinds = tuple(model_key(sample.operation) for sample, _ in said)
    places = tuple(place_of(sample.operation, law_s, scheme) for sample, law_s in said)
    residuals = np.array([math.log(sample.usual_s / law_s) for sample, law_s in said])
    scatter = np.array([_scatter(sample.steadiest_s) for sample, _ in said])
    noise = np.hypot(_UNEXPLAINED, scatter) * np.maximum(1.0, (residuals / _DOUBTFUL) ** 2)
    rows, names = np.array(places), np.array(kinds)
    covariance = _covariance(rows[:, None] - rows[None], names[:, None] == names[None]) + np.diag(noise**2)
    weights = np.linalg.solve(covariance, residuals)
    return Correction(kinds, places, tuple(weights.tolist()))


def place_of(operation: Operation, law_s: float, scheme: Scheme) -> Place:
    """Logarithms of elements in, elements out and seconds of the law: similar operations are near each other."""
    counted = counts(operation, scheme)
    read, made = (math.log1p(counted[PLACES[name]]) for name in ("input_elements", "output_elements"))
    return read, made, math.log(law_s)


def _covariance(apart: Vector, same: NDArray[np.bool_]) -> Vector:
    """Of operations that lie `apart` (in the last dimension) and are of the same kind or not."""
    nearness = np.exp(np.sum(apart**2, axis=-1) / (-2 * _LENGTH**2))
    return np.asarray((_COMMON**2 + _OWN**2 * same) * nearness)


@lru_cache(maxsize=10_000)
def _scatter(seconds: tuple[float, ...]) -> float:
    """Standard error of the logarithm of the median, from the samples' median absolute deviation."""
    logs = [math.log(each) for each in seconds]
    middle = median(logs)
    return _SCATTER_OF_MEDIAN * _DEVIATION * median(abs(each - middle) for each in logs) / math.sqrt(len(logs))
