"""How far predictions are from measurements, beside what simpler models would have said of the same workloads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median, quantiles
from typing import Any

import numpy as np
from scipy import stats

from cost_models.fitting import nonnegative_relative, paces_of_thirds
from cost_models.linear import CostModel
from cost_models.observations import Observation
from mpc.network import LOOPBACK

_NONLINEAR = ("relu", "gelu", "silu", "sigmoid", "softmax", "maximum")  # operations that compare every element


@dataclass(frozen=True, slots=True)
class Point:
    """One workload: the median of its runs and its prediction with intervals, and what baselines say of it.

    `repeatability` is by how much two such medians differ; None where there were too few runs.
    """

    what: str
    shape: str
    network: str
    mode: str
    measured_s: float
    predicted_s: float
    p05_s: float
    p25_s: float
    p75_s: float
    p95_s: float
    repeatability: float | None
    samples_s: tuple[float, ...]
    baselines: Mapping[str, float | None]

    @property
    def relative_error(self) -> float:
        """|predicted - measured| / measured."""
        return abs(self.predicted_s - self.measured_s) / self.measured_s

    def to_json(self) -> dict[str, Any]:
        """Plain values for a record."""
        return {**asdict(self), "samples_s": list(self.samples_s), "baselines": dict(self.baselines)}


@dataclass(frozen=True, slots=True)
class Scores:
    """Relative errors and rank correlations over `points` workloads; a correlation is None where ranks say nothing."""

    points: int
    median_error: float
    p90_error: float
    worst_error: float
    within_10: float
    spearman: float | None
    kendall: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain values for a record."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Predicted against measured, point by point, of one group of workloads.

    `coverage_90` and `coverage_50` are the shares of points inside their intervals. `baselines` are None where they say
    nothing about any of the points (rounds x RTT on loopback).
    """

    points: tuple[Point, ...]
    scores: Scores
    coverage_90: float
    coverage_50: float
    baselines: dict[str, Scores | None]

    def to_json(self) -> dict[str, Any]:
        """Plain values for a record."""
        repeated = [point.repeatability for point in self.points if point.repeatability is not None]
        scores = {
            **self.scores.to_json(),
            "coverage_90": self.coverage_90,
            "coverage_50": self.coverage_50,
            "repeatability_median": float(np.median(repeated)) if repeated else None,
            "repeatability_p90": float(np.quantile(repeated, 0.9)) if repeated else None,
            "drift": drift([point.samples_s for point in self.points]),
        }
        return {
            "points": [point.to_json() for point in self.points],
            "scores": scores,
            "baselines": {name: baseline and baseline.to_json() for name, baseline in self.baselines.items()},
        }


def evaluate(model: CostModel, observations: Sequence[Observation], fitted_on: Sequence[Observation]) -> Evaluation:
    """`model` against `observations`; baselines that need a coefficient take it from `fitted_on`, measured before.

    Raises ValueError without observations.
    """
    if not observations:
        raise ValueError("nothing to evaluate: no observations")
    baselines = _baselines(model, fitted_on)
    points = tuple(_point(model, o, {name: says(o) for name, says in baselines.items()}) for o in observations)
    return scored(points)


def scored(points: Sequence[Point]) -> Evaluation:
    """The evaluation of points, however they were predicted."""
    measured = [point.measured_s for point in points]
    by_baseline = {}
    for name in dict.fromkeys(name for point in points for name in point.baselines):
        said = [(m, s) for m, p in zip(measured, points, strict=True) if (s := p.baselines.get(name)) is not None]
        by_baseline[name] = _scores(*zip(*said, strict=True)) if said else None
    return Evaluation(
        tuple(points),
        _scores(measured, [point.predicted_s for point in points]),
        float(np.mean([point.p05_s <= point.measured_s <= point.p95_s for point in points])),
        float(np.mean([point.p25_s <= point.measured_s <= point.p75_s for point in points])),
        by_baseline,
    )


def repeatability(samples_s: Sequence[float]) -> float | None:
    """By how much two medians of so many samples differ, relative to them: an error below it means nothing.

    sqrt(2) standard errors of the median, from the interquartile range (of a normal distribution: 1.349 deviations; the
    median's standard error is 1.2533 of the mean's). None below 4 samples.
    """
    if len(samples_s) < 4:
        return None
    lower, _, upper = quantiles(samples_s, n=4, method="inclusive")
    return math.sqrt(2 / len(samples_s)) * 1.2533 * (upper - lower) / 1.349 / median(samples_s)


def drift(samples_s: Sequence[Sequence[float]]) -> float | None:
    """By how much the machine was slower in one third of the passes than in another: what no earlier fit can foretell.

    `samples_s` are the seconds of each workload in every pass. None below 3 passes, or where workloads ran in different
    ones.
    """
    passes = {len(samples) for samples in samples_s}
    if len(passes) != 1 or min(passes) < 3:
        return None
    thirds = paces_of_thirds(samples_s)
    return math.exp(max(thirds) - min(thirds)) - 1


def _point(model: CostModel, o: Observation, baselines: Mapping[str, float | None]) -> Point:
    estimate = model.alone(o.trace.operations[0]) if o.alone else model.seconds(o.trace, o.scheme, o.network)
    return Point(
        what=o.what,
        shape=o.shape,
        network=o.network.name,
        mode=o.mode,
        measured_s=o.median_s,
        predicted_s=estimate.p50_s,
        p05_s=estimate.p05_s,
        p25_s=estimate.p25_s,
        p75_s=estimate.p75_s,
        p95_s=estimate.p95_s,
        repeatability=repeatability(o.online_s),
        samples_s=o.online_s,
        baselines=baselines,
    )


def _scores(measured_s: Sequence[float], predicted_s: Sequence[float]) -> Scores:
    measured, predicted = np.asarray(measured_s), np.asarray(predicted_s)
    errors = np.abs(predicted - measured) / measured
    ranked = len(errors) > 1 and np.ptp(measured) > 0 and np.ptp(predicted) > 0
    spearman = float(stats.spearmanr(measured, predicted).statistic) if ranked else None
    kendall = float(stats.kendalltau(measured, predicted).statistic) if ranked else None
    return Scores(
        len(errors),
        float(np.median(errors)),
        float(np.quantile(errors, 0.9)),
        float(np.max(errors)),
        float(np.mean(errors <= 0.1)),
        spearman,
        kendall,
    )


def _baselines(model: CostModel, fitted_on: Sequence[Observation]) -> dict[str, Any]:
    """What each baseline says of an observation: seconds, or None where it says nothing."""
    counted = {
        "FLOPs": lambda o: float(o.trace.macs),
        "ReLU count": _compared_elements,
        "bytes only": lambda o: float(max(o.trace.traffic(o.scheme).online.bytes)),
        "rounds only": _rounds,
    }
    says: dict[str, Any] = {name: partial(_one_count, count, fitted_on) for name, count in counted.items()}
    says["rounds x RTT"] = _rounds_times_rtt
    says["sum over heads"] = partial(_sum_over_heads, model)
    return says


def _compared_elements(o: Observation) -> float:
    return float(sum(operation.elements for operation in o.trace.operations if operation.op in _NONLINEAR))


def _rounds(o: Observation) -> float:
    return float(max(o.trace.traffic(o.scheme).online.rounds))


def _one_count(count: Any, fitted_on: Sequence[Observation], o: Observation) -> float | None:
    """A constant times one count; the constant, of one network profile, is fitted like the model's own."""
    known = [other for other in fitted_on if other.network == o.network and count(other) > 0]
    if not known or count(o) <= 0:
        return None
    counts = np.array([[count(other)] for other in known])
    return count(o) * float(nonnegative_relative(counts, np.array([other.median_s for other in known]))[0])  # type: ignore[no-any-return]


def _rounds_times_rtt(o: Observation) -> float | None:
    """The rule of thumb of papers; fits nothing, and says 0 on loopback, where it is left out."""
    return None if o.network == LOOPBACK else _rounds(o) * 2 * o.network.one_way_delay_s


def _sum_over_heads(model: CostModel, o: Observation) -> float | None:
    """The model's own seconds of every head alone, added up: what ignores that heads of one kind share their rounds."""
    if not o.heads:
        return None
    return sum(model.seconds(head, o.scheme, o.network).p50_s for head in o.heads)
