"""Seconds of a trace: fitted compute + hops x one-way delay + bytes / bandwidth.

Only compute is fitted, on loopback, where it is everything that the parties' processes do: arithmetic, Python, and
handing tensors to the transport. Rounds, bytes and hops are counted.

Whatever else runs on a machine only ever adds time, and adds it unevenly. So coefficients are fitted to the fastest of
each workload's runs, and what usual runs take beyond that is kept as quantiles of their ratio to the prediction.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from scipy.optimize import nnls

from bench.machine import this_machine
from cost_models.features import UNITS, Features, Vector, features
from mpc.network import LOOPBACK, NetworkProfile
from mpc.scheme import Scheme
from mpc.trace import Trace

Quantiles = tuple[float, float, float]

SCHEMA = 1
RECORD = "calibration"

# Splitting rounds and bytes further fits one machine better on one day and worse on the next.
ONLINE_FEATURES = ("rounds", "ring_bytes", "binary_bytes", "macs", "operations")
DEALER_FEATURES = ("correlations", "dealer_bytes", "ring_bytes", "binary_bytes", "macs")

_ROBUST_STEPS = 20
_ROBUST_RELATIVE = 0.05  # residuals beyond this weigh by their size, not its square (Huber)


class MachineWarning(UserWarning):
    """A cost model was fitted on another machine: rounds and bytes still hold, its seconds may not."""


@dataclass(frozen=True)
class Observation:
    """One workload that was run: its trace and seconds of every repeat, `online_s` of the slowest party.

    `what` and `shape` name it in records. `heads` holds, where that makes sense, traces of its heads one by one, for
    the baseline that sums over heads. Raises ValueError without repeats or for seconds that are not positive.
    """

    what: str
    shape: str
    trace: Trace
    scheme: Scheme
    online_s: tuple[float, ...]
    dealer_s: tuple[float, ...] = ()
    network: NetworkProfile = LOOPBACK
    heads: tuple[Trace, ...] = ()

    def __post_init__(self) -> None:
        if not self.online_s or not all(math.isfinite(s) and s > 0 for s in self.online_s):
            raise ValueError(f"{self.what} {self.shape}: online_s must hold positive seconds, got {self.online_s}")
        if not all(math.isfinite(s) and s >= 0 for s in self.dealer_s):
            raise ValueError(f"{self.what} {self.shape}: dealer_s must hold seconds >= 0, got {self.dealer_s}")

    @property
    def undisturbed_s(self) -> float:
        """Online seconds of the fastest repeat."""
        return min(self.online_s)

    @property
    def median_s(self) -> float:
        """Median online seconds over the repeats."""
        return median(self.online_s)

    @property
    def features(self) -> Features:
        """Features of the trace under the scheme that it was run with."""
        return features(self.trace, self.scheme)


@dataclass(frozen=True, slots=True)
class Estimate:
    """Predicted seconds of one run: median and 90 % interval on a machine as busy as it was when it was calibrated.

    `compute_s`, `delay_s` and `transfer_s` add up to `undisturbed_s`, what the run takes with the machine to itself.
    """

    p50_s: float
    p05_s: float
    p95_s: float
    compute_s: float
    delay_s: float
    transfer_s: float

    @property
    def undisturbed_s(self) -> float:
        """Seconds of the run on a machine that does nothing else."""
        return self.compute_s + self.delay_s + self.transfer_s

    def to_json(self) -> dict[str, float]:
        """Plain values for a record."""
        parts = {"compute_s": self.compute_s, "delay_s": self.delay_s, "transfer_s": self.transfer_s}
        return {"p50": self.p50_s, "p05": self.p05_s, "p95": self.p95_s, **parts}


@dataclass(frozen=True)
class CostModel:
    """Seconds per unit of each feature (UNITS), for one scheme on one machine.

    Coefficients predict undisturbed compute; `residuals` are the 5, 50 and 95 % quantiles of measured / predicted over
    all runs of workloads left out of the fit. Raises ValueError for an unknown feature, a negative coefficient, or
    quantiles out of order.
    """

    coefficients: Mapping[str, float]
    scheme: Scheme
    machine: Mapping[str, Any]
    residuals: Quantiles
    dealer_coefficients: Mapping[str, float] = field(default_factory=dict)
    dealer_residuals: Quantiles = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        for name, seconds in (*self.coefficients.items(), *self.dealer_coefficients.items()):
            if name not in UNITS:
                raise ValueError(f"unknown feature {name!r}; known: {', '.join(UNITS)}")
            if not (math.isfinite(seconds) and seconds >= 0):
                raise ValueError(f"the coefficient of {name} must be >= 0 seconds, got {seconds}")
        for quantiles in (self.residuals, self.dealer_residuals):
            if len(quantiles) != 3 or quantiles[0] < 0 or sorted(quantiles) != list(quantiles):
                raise ValueError(f"residuals are 5, 50 and 95 % quantiles in order, got {quantiles}")

    def seconds(self, trace: Trace, scheme: Scheme, network: NetworkProfile) -> Estimate:
        """Online seconds of one run of `trace` on `network`.

        The interval covers a run of a workload that was not fitted; it says nothing about the link, taken as stated.
        Raises ValueError where the model was fitted for another scheme.
        """
        self._demand(scheme)
        counted = features(trace, scheme)
        compute_s = _weighted(self.coefficients, counted)
        delay_s, transfer_s = network.link_s(counted.hops, 0), network.link_s(0, counted.sent_bytes)
        return _estimate(compute_s, delay_s, transfer_s, self.residuals)

    def dealer_seconds(self, trace: Trace, scheme: Scheme) -> Estimate:
        """Seconds of the dealer's work for one run of `trace` on loopback, no part of the online seconds.

        Raises ValueError where the model was fitted for another scheme or without dealer seconds.
        """
        self._demand(scheme)
        if not self.dealer_coefficients:
            raise ValueError("this cost model was fitted without dealer seconds; calibrate again to have them")
        return _estimate(_weighted(self.dealer_coefficients, features(trace, scheme)), 0.0, 0.0, self.dealer_residuals)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a record, schema first."""
        return {
            "schema": SCHEMA,
            "record": RECORD,
            "coefficients": dict(self.coefficients),
            "dealer_coefficients": dict(self.dealer_coefficients),
            "residuals": list(self.residuals),
            "dealer_residuals": list(self.dealer_residuals),
            "scheme": self.scheme.to_json(),
            "machine": dict(self.machine),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> CostModel:
        """The model in a calibration record; more keys than the model's own are left aside.

        Raises ValueError for another schema or record. Warns (MachineWarning) where it was fitted on another machine.
        """
        if record.get("schema") != SCHEMA or record.get("record") != RECORD:
            found = f"schema {record.get('schema')!r}, record {record.get('record')!r}"
            raise ValueError(f"not a calibration of schema {SCHEMA}: {found}; calibrate again with this version")
        model = cls(
            coefficients=dict(record["coefficients"]),
            scheme=Scheme(**record["scheme"]),
            machine=dict(record["machine"]),
            residuals=_quantiles(record["residuals"]),
            dealer_coefficients=dict(record["dealer_coefficients"]),
            dealer_residuals=_quantiles(record["dealer_residuals"]),
        )
        model._warn_of_other_machine()
        return model

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the model to `path`, whole or not at all."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CostModel:
        """The model of a file written by `save` or of a calibration.json; raises and warns as `from_json`."""
        return cls.from_json(json.loads(Path(path).read_text()))

    def _demand(self, scheme: Scheme) -> None:
        if scheme == self.scheme:
            return
        mine, asked = self.scheme.to_json(), scheme.to_json()
        differing = ", ".join(f"{key} {asked[key]} (fitted for {mine[key]})" for key in mine if mine[key] != asked[key])
        raise ValueError(
            f"the cost model was fitted for another scheme: {differing}; calibrate under the scheme asked for"
        )

    def _warn_of_other_machine(self) -> None:
        here = this_machine().label
        if self.machine.get("label") != here:
            there = self.machine.get("label", "an unnamed machine")
            message = f"the cost model was fitted on {there}, this is {here}: calibrate here for seconds that hold"
            warnings.warn(message, MachineWarning, stacklevel=4)


def fit(observations: Sequence[Observation], machine: Mapping[str, Any] | None = None) -> CostModel:
    """The cost model that explains `observations`, all on loopback under one scheme.

    Non-negative least squares on relative error, reweighted so that a few disturbed workloads do not bend it (Huber).
    Quantiles come from leaving each observation out in turn. The dealer is fitted where every observation has dealer
    seconds. `machine` is that of the observations, this one by default. Raises ValueError for unfit observations.
    """
    _demand_comparable(observations)
    counted = [o.features for o in observations]
    online = [o.online_s for o in observations]
    coefficients, residuals = _fit_named(counted, online, ONLINE_FEATURES)
    dealer: tuple[dict[str, float], Quantiles] = ({}, (1.0, 1.0, 1.0))
    if all(o.dealer_s and min(o.dealer_s) > 0 for o in observations):
        dealer = _fit_named(counted, [o.dealer_s for o in observations], DEALER_FEATURES)
    where = this_machine().to_json() if machine is None else machine
    return CostModel(coefficients, observations[0].scheme, where, residuals, *dealer)


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


def write_json(path: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
    """Writes one JSON file whole or not at all, creating its folder. Raises ValueError for NaN and infinity."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
    partial.replace(path)


def _fit_named(
    counted: Sequence[Features], samples_s: Sequence[tuple[float, ...]], names: Sequence[str]
) -> tuple[dict[str, float], Quantiles]:
    """Coefficients by name, and quantiles of sample / prediction with each observation left out in turn."""
    matrix = np.array([f.vector(names) for f in counted])
    measured_s = np.array([min(s) for s in samples_s])
    solution = nonnegative_relative(matrix, measured_s)
    ratios: list[float] = []
    for left_out, samples in enumerate(samples_s):
        kept = np.arange(len(measured_s)) != left_out
        predicted_s = matrix[left_out] @ nonnegative_relative(matrix[kept], measured_s[kept])
        ratios += [sample / predicted_s for sample in samples if predicted_s > 0]
    low, middle, high = np.quantile(ratios, (0.05, 0.5, 0.95))
    return dict(zip(names, solution.tolist(), strict=True)), (float(low), float(middle), float(high))


def _demand_comparable(observations: Sequence[Observation]) -> None:
    if len(observations) < 2:
        raise ValueError(
            f"a fit needs at least 2 observations, got {len(observations)}; run the whole calibration plan"
        )
    schemes = {o.scheme for o in observations}
    if len(schemes) > 1:
        raise ValueError(f"observations of {len(schemes)} schemes cannot be fitted together; fit one model for each")
    links = {o.network.name for o in observations if o.network != LOOPBACK}
    if links:
        raise ValueError(
            f"compute is fitted on loopback, not on {', '.join(sorted(links))}; leave those for the evaluation"
        )


def _weighted(coefficients: Mapping[str, float], counted: Features) -> float:
    return float(sum(seconds * getattr(counted, name) for name, seconds in coefficients.items()))


def _estimate(compute_s: float, delay_s: float, transfer_s: float, residuals: Quantiles) -> Estimate:
    low_s, middle_s, high_s = (ratio * compute_s + delay_s + transfer_s for ratio in residuals)
    return Estimate(middle_s, low_s, high_s, compute_s, delay_s, transfer_s)


def _quantiles(values: Sequence[float]) -> Quantiles:
    low, middle, high = values
    return float(low), float(middle), float(high)
