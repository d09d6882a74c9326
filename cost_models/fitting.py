"""From measurements to a cost model: seconds of every kind of operation, and how sure they are.

Each kind of operation has its own coefficients, never negative, for the counted features (`cost_models.features`).
Intervals are calibrated on what was left out of the fit, every operation and every network in turn (conformal
prediction; Vovk et al., Algorithmic Learning in a Random World, 2005; Barber et al., Predictive
inference with the jackknife+, 2021).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from statistics import median, stdev
from typing import Any

import numpy as np
from scipy.optimize import minimize, nnls

from cost_models.correction import correction_of
from cost_models.features import (
    DEALER_FEATURES,
    ONLINE_FEATURES,
    PLACES,
    Vector,
    counts,
    model_key,
    moved_bytes,
    trace_counts,
)
from cost_models.linear import POOLED, QUANTILES, Coefficients, CostModel, InNetwork, Spread
from cost_models.observations import Observation, OperationSamples
from cost_models.sweep import FEWEST
from mpc.network import LOOPBACK
from mpc.scheme import Scheme

_ROBUST_STEPS = 20
_ROBUST_RELATIVE = 0.05  # residuals beyond this weigh by their size, not its square (Huber)
_PRIOR = 3.0  # operations that the prior of one kind inside networks weighs as much as
_NO_SPREAD = Spread(0.0, 0.0, 0.0, (0.0, 0.0, 0.0, 0.0))


def fit(
    samples: Sequence[OperationSamples],
    networks: Sequence[Observation],
    scheme: Scheme,
    machine: Mapping[str, Any],
    threads: int = 1,
) -> CostModel:
    """The cost model that explains operations of a sweep and whole networks, all on loopback under one scheme.

    Operations are fitted to the sweep; what they take inside networks beyond that is the model's `in_networks`, fitted
    to networks whose operations were timed one by one. The dealer is fitted to the networks, where all of them have
    dealer seconds. Raises ValueError for unfit observations.
    """
    _demand_comparable(networks, scheme)
    if len(samples) < FEWEST:
        raise ValueError(f"a fit needs at least {FEWEST} operations, got {len(samples)}; run the whole plan")
    law = CostModel(_coefficients(samples, scheme), scheme, machine, _NO_SPREAD, threads=threads)
    laws_s = [law.operation_s(sample.operation) for sample in samples]
    alone = replace(law, correction=correction_of(samples, laws_s, scheme), _costs={})
    residuals = [*_left_out_operations(scheme, samples, laws_s), *_left_out_networks(alone, networks)]
    return replace(
        alone,
        in_networks=_inside(alone, networks),
        spread=replace(spread_of(residuals), pace=pace_spread(samples)),
        dealer=_dealer(networks, scheme),
        _costs={},
    )


def _inside(alone: CostModel, networks: Sequence[Observation]) -> dict[str, InNetwork]:
    """What operations take inside `networks`, by kind of operation; `alone` does not know it yet.

    Every kind is drawn towards what all operations take, the more the fewer of it were timed. The median of a sum is
    not the sum of medians, so that all are scaled to the networks' own medians at the end.
    """
    rows: dict[str, list[tuple[float, float, float, float]]] = defaultdict(list)
    for network in networks:
        for operation, seconds in zip(network.trace.operations, network.op_s, strict=True):
            features = 1.0, alone.operation_s(operation), moved_bytes(operation, alone.scheme)
            rows[model_key(operation)].append((*features, seconds))
    if not rows:
        return {POOLED: InNetwork()}
    every = np.array([row for group in rows.values() for row in group])
    times, byte_s = nonnegative_relative(every[:, 1:3], every[:, 3])
    usual = InNetwork(0.0, float(times), float(byte_s))
    fitted = {key: _inside_of(np.array(group), usual) for key, group in rows.items()} | {POOLED: usual}
    model = replace(alone, in_networks=fitted, _costs={})
    scale = float(median(network.median_s / model.cost(network.trace).compute_s for network in networks))
    return {key: InNetwork(*(scale * value for value in astuple(each))) for key, each in fitted.items()}


def _inside_of(rows: Vector, usual: InNetwork) -> InNetwork:
    """Least squares of relative errors, with a prior of `_PRIOR` operations of middling size at `usual`."""
    features, inside_s = rows[:, :3], rows[:, 3]
    relative = features / inside_s[:, None]
    prior = np.diag(math.sqrt(_PRIOR) * np.sqrt(np.mean(relative**2, axis=0)))[1:]
    matrix = np.concatenate([relative, prior])
    norms = np.linalg.norm(matrix, axis=0)
    norms[norms == 0] = 1.0  # a law may say 0 seconds of all that was timed
    wanted = np.concatenate([np.ones(len(rows)), prior @ astuple(usual)])
    more_s, times, byte_s = nnls(matrix / norms, wanted)[0] / norms
    return InNetwork(float(more_s), float(times), float(byte_s))


def _coefficients(samples: Iterable[OperationSamples], scheme: Scheme) -> dict[str, Coefficients]:
    groups: dict[str, list[OperationSamples]] = defaultdict(list)
    for sample in samples:
        groups[model_key(sample.operation)].append(sample)
        groups[POOLED].append(sample)
    return {key: _fit_group(group, scheme) for key, group in groups.items() if key == POOLED or len(group) >= FEWEST}


def _fit_group(group: Sequence[OperationSamples], scheme: Scheme) -> Coefficients:
    return dict(zip(ONLINE_FEATURES, _law(*_matrix(group, scheme)).tolist(), strict=True))


def _matrix(group: Sequence[OperationSamples], scheme: Scheme) -> tuple[Vector, Vector]:
    matrix = np.array([counts(sample.operation, scheme) for sample in group])[:, : len(ONLINE_FEATURES)]
    return matrix, np.array([sample.usual_s for sample in group])


def _law(matrix: Vector, measured_s: Vector) -> Vector:
    """Seconds per unit of each feature, 0 for one that fewer than FEWEST operations have.

    One operation that is barely out of a cache would otherwise put all that it took beyond its law on those few bytes.
    """
    often = np.count_nonzero(matrix, axis=0) >= FEWEST
    return nonnegative_relative(np.where(often, matrix, 0.0), measured_s)


def nonnegative_relative(matrix: Vector, measured_s: Vector) -> Vector:
    """Non-negative c that minimises the Huber loss of (matrix c - measured) / measured, by reweighted least squares."""
    relative = matrix / measured_s[:, None]
    column_norms = np.linalg.norm(relative, axis=0)
    scaled = relative / np.where(column_norms > 0, column_norms, 1.0)
    weights = np.ones(len(measured_s))
    for _ in range(_ROBUST_STEPS):
        solution, _residual_norm = nnls(scaled * weights[:, None], weights)
        residuals = np.abs(scaled @ solution - 1)
        weights = np.sqrt(np.minimum(1.0, _ROBUST_RELATIVE / np.maximum(residuals, 1e-12)))
    return np.asarray(np.where(column_norms > 0, solution / np.where(column_norms > 0, column_norms, 1.0), 0.0))


@dataclass(frozen=True, slots=True)
class Residual:
    """Logarithm of measured over predicted compute, of something left out; `shares2` as in `Spread`."""

    log_ratio: float
    compute_s: float
    shares2: float


def _left_out_operations(
    scheme: Scheme, samples: Sequence[OperationSamples], laws_s: Sequence[float]
) -> list[Residual]:
    """Every swept operation, predicted from the others: the law of its kind, and what they say beyond their laws."""
    groups: dict[str, list[int]] = defaultdict(list)
    for number, sample in enumerate(samples):
        groups[model_key(sample.operation)].append(number)
    residuals = []
    for numbers in groups.values():
        if len(numbers) <= FEWEST:
            continue
        matrix, measured_s = _matrix([samples[number] for number in numbers], scheme)
        for row, out in enumerate(numbers):
            kept = np.arange(len(numbers)) != row
            kind_s = matrix @ _law(matrix[kept], measured_s[kept])
            known_s = {**dict(enumerate(laws_s)), **dict(zip(numbers, kind_s.tolist(), strict=True))}
            law_s = known_s.pop(out)
            if law_s <= 0:
                continue
            correction = correction_of([samples[number] for number in known_s], list(known_s.values()), scheme)
            predicted_s = law_s * correction.factor(samples[out].operation, law_s, scheme)
            residuals.append(Residual(math.log(samples[out].usual_s / predicted_s), predicted_s, 1.0))
    return residuals


def _left_out_networks(alone: CostModel, networks: Sequence[Observation]) -> list[Residual]:
    """Every network, predicted from the sweep and from what the other networks say of operations inside networks."""
    residuals = []
    for out, network in enumerate(networks):
        others = _inside(alone, [*networks[:out], *networks[out + 1 :]])
        cost = replace(alone, in_networks=others, _costs={}).cost(network.trace)
        ratio, shares2 = network.median_s / cost.compute_s, cost.compute_s2 / cost.compute_s**2
        residuals.append(Residual(math.log(ratio), cost.compute_s, shares2))
    return residuals


def spread_of(residuals: Sequence[Residual]) -> Spread:
    """Scales of greatest likelihood (of a Laplace distribution), and conformal quantiles of residual over scale."""
    if not residuals:
        return _NO_SPREAD
    logs = np.array([residual.log_ratio for residual in residuals])
    seconds = np.array([residual.compute_s for residual in residuals])
    shares2 = np.array([residual.shares2 for residual in residuals])

    def scales(parameters: Vector) -> Vector:
        common, independent, jitter_s = np.exp(parameters)
        return np.asarray(np.sqrt(common**2 + independent**2 * shares2 + (jitter_s / seconds) ** 2))

    def loss(parameters: Vector) -> float:
        scale = scales(parameters)
        return float(np.sum(np.log(scale) + np.abs(logs) / scale))

    start = np.log([0.03, 0.05, 1e-5])
    best = minimize(loss, start, method="Nelder-Mead", options={"maxiter": 2000, "xatol": 1e-3, "fatol": 1e-6})
    common, independent, jitter_s = (float(value) for value in np.exp(best.x))
    low, lower, upper, high = (_conformal(logs / scales(best.x), level) for level in QUANTILES)
    return Spread(common, independent, jitter_s, (low, lower, upper, high))


def pace_spread(samples: Sequence[OperationSamples]) -> float:
    """How far the machine's pace, in logarithms, may lie from that of these passes in as many others.

    Every operation has a sample of every pass. The deviation of thirds of the passes in a row, as of means of three.
    """
    thirds = paces_of_thirds([sample.online_s for sample in samples])
    return math.sqrt(2 / len(thirds)) * stdev(thirds) if len(thirds) > 1 else 0.0


def paces_of_thirds(samples_s: Sequence[Sequence[float]]) -> list[float]:
    """Logarithms of the machine's pace in each third of the passes in a row, from seconds of workloads in every pass.

    The pace of a pass is the median, over the workloads, of its seconds over their median of all passes. What differs
    from one pass to the next is no drift, and medians even it out.
    """
    seconds = np.log(samples_s)
    paces = np.median(seconds - np.median(seconds, axis=1, keepdims=True), axis=0)
    return [float(np.mean(third)) for third in np.array_split(paces, min(3, len(paces)))]


def _conformal(scores: Vector, level: float) -> float:
    """The quantile that a new score stays on the side of with at least the level's probability, rank (n + 1) level."""
    ordered = np.sort(scores)
    rank = (len(ordered) + 1) * level
    place = math.ceil(rank) if level > 0.5 else math.floor(rank)
    return float(ordered[min(max(place, 1), len(ordered)) - 1])


def _dealer(networks: Sequence[Observation], scheme: Scheme) -> Coefficients:
    if len(networks) < 2 or not all(network.dealer_s and min(network.dealer_s) > 0 for network in networks):
        return {}
    places = [PLACES[name] for name in DEALER_FEATURES]
    matrix = np.array([trace_counts(network.trace, scheme)[places] for network in networks])
    measured_s = np.array([median(network.dealer_s) for network in networks])
    return dict(zip(DEALER_FEATURES, nonnegative_relative(matrix, measured_s).tolist(), strict=True))


def _demand_comparable(networks: Sequence[Observation], scheme: Scheme) -> None:
    if any(network.scheme != scheme for network in networks):
        raise ValueError("observations of another scheme cannot be fitted with these; fit one model for each")
    links = {network.network.name for network in networks if network.network != LOOPBACK}
    if links:
        raise ValueError(
            f"compute is fitted on loopback, not on {', '.join(sorted(links))}; leave those for the evaluation"
        )
