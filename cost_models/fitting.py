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
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np
from scipy.optimize import minimize, nnls

from cost_models.features import DEALER_FEATURES, ONLINE_FEATURES, PLACES, Vector, counts, model_key, trace_counts
from cost_models.linear import POOLED, QUANTILES, Coefficients, CostModel, Spread
from cost_models.observations import Observation, OperationSamples
from mpc.network import LOOPBACK
from mpc.scheme import Scheme

_ROBUST_STEPS = 20
_ROBUST_RELATIVE = 0.05  # residuals beyond this weigh by their size, not its square (Huber)
_FEWEST = 4  # shapes of one kind of operation that a fit of its own needs
_NO_SPREAD = Spread(0.0, 0.0, 0.0, (0.0, 0.0, 0.0, 0.0))


def fit(
    samples: Sequence[OperationSamples],
    networks: Sequence[Observation],
    scheme: Scheme,
    machine: Mapping[str, Any],
    threads: int = 1,
) -> CostModel:
    """The cost model that explains operations of a sweep and whole networks, all on loopback under one scheme.

    Operations are fitted to the sweep; what networks take beyond the sum of their operations is the model's `start_s`
    and `factor`. The dealer is fitted to the networks, where all of them have dealer seconds. Raises ValueError for
    unfit observations.
    """
    _demand_comparable(networks, scheme)
    if len(samples) < _FEWEST:
        raise ValueError(f"a fit needs at least {_FEWEST} operations, got {len(samples)}; run the whole plan")
    alone = CostModel(_coefficients(samples, scheme), scheme, machine, _NO_SPREAD, threads=threads)
    start_s, factor = _around(alone, networks)
    residuals = [*_left_out_operations(scheme, samples), *_left_out_networks(alone, networks)]
    return replace(
        alone,
        start_s=start_s,
        factor=factor,
        spread=spread_of(residuals),
        dealer=_dealer(networks, scheme),
        _costs={},
    )


def _around(alone: CostModel, networks: Sequence[Observation]) -> tuple[float, float]:
    """Seconds of a start, and the factor on operations, that explain networks; `alone` has neither yet."""
    if len(networks) < 2:
        return 0.0, 1.0
    matrix = np.array([[1.0, alone.cost(network.trace).compute_s] for network in networks])
    start_s, factor = nonnegative_relative(matrix, np.array([network.median_s for network in networks]))
    return float(start_s), float(factor)


def _coefficients(samples: Iterable[OperationSamples], scheme: Scheme) -> dict[str, Coefficients]:
    groups: dict[str, list[OperationSamples]] = defaultdict(list)
    for sample in samples:
        groups[model_key(sample.operation)].append(sample)
        groups[POOLED].append(sample)
    return {key: _fit_group(group, scheme) for key, group in groups.items() if key == POOLED or len(group) >= _FEWEST}


def _fit_group(group: Sequence[OperationSamples], scheme: Scheme) -> Coefficients:
    matrix, measured_s = _matrix(group, scheme)
    return dict(zip(ONLINE_FEATURES, nonnegative_relative(matrix, measured_s).tolist(), strict=True))


def _matrix(group: Sequence[OperationSamples], scheme: Scheme) -> tuple[Vector, Vector]:
    matrix = np.array([counts(sample.operation, scheme) for sample in group])[:, : len(ONLINE_FEATURES)]
    return matrix, np.array([sample.median_s for sample in group])


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


def _left_out_operations(scheme: Scheme, samples: Sequence[OperationSamples]) -> list[Residual]:
    """Every swept operation, predicted from the others of its kind."""
    groups: dict[str, list[OperationSamples]] = defaultdict(list)
    for sample in samples:
        groups[model_key(sample.operation)].append(sample)
    residuals = []
    for group in groups.values():
        if len(group) <= _FEWEST:
            continue
        matrix, measured_s = _matrix(group, scheme)
        for out in range(len(group)):
            kept = np.arange(len(group)) != out
            predicted_s = float(matrix[out] @ nonnegative_relative(matrix[kept], measured_s[kept]))
            if predicted_s > 0:
                residuals.append(Residual(math.log(measured_s[out] / predicted_s), predicted_s, 1.0))
    return residuals


def _left_out_networks(alone: CostModel, networks: Sequence[Observation]) -> list[Residual]:
    """Every network, predicted from the sweep and from what the other networks say of starts and the factor."""
    residuals = []
    for out, network in enumerate(networks):
        start_s, factor = _around(alone, [*networks[:out], *networks[out + 1 :]])
        cost = alone.cost(network.trace)
        predicted_s = start_s + factor * cost.compute_s
        residuals.append(
            Residual(math.log(network.median_s / predicted_s), predicted_s, cost.compute_s2 / cost.compute_s**2)
        )
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
