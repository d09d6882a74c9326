"""How far predictions are from measurements, beside what simpler models would have said of the same workloads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from cost_models.linear import CostModel, Observation, nonnegative_relative

_ONE_FEATURE = {"macs only": "macs", "bytes only": "sent_bytes", "rounds only": "rounds"}


@dataclass(frozen=True, slots=True)
class Point:
    """One workload: median of its runs and its prediction, fastest of them and the undisturbed prediction."""

    what: str
    shape: str
    network: str
    measured_s: float
    predicted_s: float
    fastest_s: float
    undisturbed_s: float
    p05_s: float
    p95_s: float
    samples_s: tuple[float, ...]

    @property
    def relative_error(self) -> float:
        """|predicted - measured| / measured, of the median run."""
        return abs(self.predicted_s - self.measured_s) / self.measured_s

    def to_json(self) -> dict[str, Any]:
        """Plain values for a record."""
        return {**asdict(self), "samples_s": list(self.samples_s)}


@dataclass(frozen=True, slots=True)
class Scores:
    """Relative errors and rank correlations over `points` workloads; a correlation is None where ranks say nothing."""

    points: int
    median_error: float
    p90_error: float
    spearman: float | None
    kendall: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain values for a record."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Predicted against measured, point by point.

    `scores` are of p50 against the median run; `undisturbed` of the fitted seconds against the fastest run, which other
    work on the machine disturbed least. `coverage` is the share of all runs inside their 90 % interval, each workload
    counting the same. `baselines` are None where they say nothing about any of the points (rounds x RTT on loopback).
    """

    points: tuple[Point, ...]
    scores: Scores
    undisturbed: Scores
    coverage: float
    baselines: dict[str, Scores | None]

    @property
    def median_error(self) -> float:
        """Median relative error."""
        return self.scores.median_error

    @property
    def p90_error(self) -> float:
        """90th percentile of the relative error."""
        return self.scores.p90_error

    def to_json(self) -> dict[str, Any]:
        """Plain values for a record."""
        baselines = {name: scores and scores.to_json() for name, scores in self.baselines.items()}
        points = [point.to_json() for point in self.points]
        return {
            "points": points,
            "scores": self.scores.to_json(),
            "undisturbed": self.undisturbed.to_json(),
            "coverage": self.coverage,
            "baselines": baselines,
        }


def evaluate(model: CostModel, observations: Sequence[Observation], fitted_on: Sequence[Observation]) -> Evaluation:
    """`model` against `observations`; baselines that need a coefficient take it from `fitted_on`.

    Raises ValueError without observations.
    """
    if not observations:
        raise ValueError("nothing to evaluate: no observations")
    points = tuple(_point(model, o) for o in observations)
    inside = [np.mean([p.p05_s <= s <= p.p95_s for s in p.samples_s]) for p in points]
    scores = _scores([p.measured_s for p in points], [p.predicted_s for p in points])
    undisturbed = _scores([p.fastest_s for p in points], [p.undisturbed_s for p in points])
    baselines = {name: _one_feature(feature, observations, fitted_on) for name, feature in _ONE_FEATURE.items()}
    baselines["rounds x RTT"] = _rounds_times_rtt(observations)
    baselines["sum over heads"] = _sum_over_heads(model, observations)
    return Evaluation(points, scores, undisturbed, float(np.mean(inside)), baselines)


def _point(model: CostModel, o: Observation) -> Point:
    estimate = model.seconds(o.trace, o.scheme, o.network)
    return Point(
        what=o.what,
        shape=o.shape,
        network=o.network.name,
        measured_s=o.median_s,
        predicted_s=estimate.p50_s,
        fastest_s=o.undisturbed_s,
        undisturbed_s=estimate.undisturbed_s,
        p05_s=estimate.p05_s,
        p95_s=estimate.p95_s,
        samples_s=o.online_s,
    )


def _scores(measured_s: Sequence[float], predicted_s: Sequence[float]) -> Scores:
    measured, predicted = np.asarray(measured_s), np.asarray(predicted_s)
    errors = np.abs(predicted - measured) / measured
    ranked = len(errors) > 1 and np.ptp(measured) > 0 and np.ptp(predicted) > 0
    spearman = float(stats.spearmanr(measured, predicted).statistic) if ranked else None
    kendall = float(stats.kendalltau(measured, predicted).statistic) if ranked else None
    return Scores(len(errors), float(np.median(errors)), float(np.quantile(errors, 0.9)), spearman, kendall)


def _one_feature(feature: str, observations: Sequence[Observation], fitted_on: Sequence[Observation]) -> Scores | None:
    """A constant times one feature, the constant fitted like the model's own."""
    if not fitted_on:
        return None
    counts = np.array([o.features.vector([feature]) for o in fitted_on])
    seconds_per_unit = float(nonnegative_relative(counts, np.array([o.median_s for o in fitted_on]))[0])
    predicted_s = [seconds_per_unit * float(o.features.vector([feature])[0]) for o in observations]
    return _scores([o.median_s for o in observations], predicted_s)


def _rounds_times_rtt(observations: Sequence[Observation]) -> Scores | None:
    """The rule of thumb of papers; fits nothing, and says 0 on loopback, where it is left out."""
    distant = [o for o in observations if o.network.one_way_delay_s > 0]
    if not distant:
        return None
    return _scores([o.median_s for o in distant], [o.features.rounds * 2 * o.network.one_way_delay_s for o in distant])


def _sum_over_heads(model: CostModel, observations: Sequence[Observation]) -> Scores | None:
    """The model's own seconds of every head alone, added up: what ignores that heads of one kind share their rounds."""
    split = [o for o in observations if o.heads]
    if not split:
        return None
    alone_s = [sum(model.seconds(head, o.scheme, o.network).p50_s for head in o.heads) for o in split]
    return _scores([o.median_s for o in split], alone_s)
