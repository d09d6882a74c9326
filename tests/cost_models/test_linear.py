from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from cost_models.features import features
from cost_models.linear import CostModel, MachineWarning, Observation, fit
from mpc.network import LOOPBACK, NetworkProfile, network
from mpc.scheme import Scheme
from mpc.trace import Operand, Operation, Trace

SCHEME = Scheme()
HERE = {"label": "test machine"}
PLANTED = {"rounds": 2e-3, "ring_bytes": 8e-9, "binary_bytes": 2e-8, "macs": 1e-9}
NO_DEALER: tuple[float, ...] = ()


def secret(op: str, *shape: int) -> Operation:
    return Operation(op, (Operand(shape, "secret"),), shape)


def linear(rows: int, inputs: int, outputs: int) -> Operation:
    operands = (Operand((rows, inputs), "secret"), Operand((outputs, inputs), "weight"))
    return Operation("linear", operands, (rows, outputs), (("macs", rows * inputs * outputs),))


def traces(count: int, generator: np.random.Generator) -> list[Trace]:
    """Products, comparisons and squarings in changing proportions, sizes over two decades."""
    found = []
    for _ in range(count):
        rows, inputs, outputs, compared, squared = (int(10 ** generator.uniform(1, 3)) for _ in range(5))
        repeated = int(generator.integers(1, 12))
        products = (linear(rows, inputs, outputs),) * int(generator.integers(1, 4))
        found.append(Trace((*products, secret("relu", 60 * compared), *(secret("square", squared),) * repeated)))
    return found


def planted_s(trace: Trace) -> float:
    counted = features(trace, SCHEME)
    return float(sum(seconds * getattr(counted, name) for name, seconds in PLANTED.items()))


def observations(
    of: Sequence[Trace], generator: np.random.Generator, noise: float, dealer: bool = False
) -> list[Observation]:
    found = []
    for trace in of:
        online_s = tuple(planted_s(trace) * generator.lognormal(0, noise, size=5))
        dealer_s = tuple(features(trace, SCHEME).dealer_bytes * 5e-9 for _ in range(5)) if dealer else NO_DEALER
        found.append(Observation("synthetic", "", trace, SCHEME, online_s, dealer_s))
    return found


def model(**changes: object) -> CostModel:
    return dataclasses.replace(CostModel(PLANTED, SCHEME, HERE, (0.8, 1.1, 1.25)), **changes)  # type: ignore[arg-type]


def test_fit_recovers_planted_coefficients_without_noise() -> None:
    generator = np.random.default_rng(0)
    fitted = fit(observations(traces(40, generator), generator, noise=0.0), HERE)
    fresh = traces(20, generator)
    for trace in fresh:
        assert fitted.seconds(trace, SCHEME, LOOPBACK).p50_s == pytest.approx(planted_s(trace), rel=1e-3)


def test_fit_predicts_under_noise_and_with_a_few_disturbed_runs() -> None:
    generator = np.random.default_rng(1)
    noisy = observations(traces(60, generator), generator, noise=0.05)
    disturbed = [dataclasses.replace(o, online_s=tuple(3 * s for s in o.online_s)) for o in noisy[:5]]
    fitted = fit([*disturbed, *noisy[5:]], HERE)
    fresh = traces(40, generator)
    errors = [abs(fitted.seconds(t, SCHEME, LOOPBACK).p50_s / planted_s(t) - 1) for t in fresh]
    assert np.median(errors) < 0.03
    assert fitted.coefficients["binary_bytes"] == pytest.approx(PLANTED["binary_bytes"], rel=0.2)
    assert all(seconds >= 0 for seconds in fitted.coefficients.values())


def test_other_work_on_the_machine_moves_the_quantiles_and_not_the_coefficients() -> None:
    generator = np.random.default_rng(6)
    quiet = observations(traces(60, generator), generator, noise=0.01)
    busy = [
        dataclasses.replace(o, online_s=tuple(s * f for s, f in zip(o.online_s, (3, 1, 2, 1.5, 4), strict=True)))
        for o in quiet
    ]
    on_quiet, on_busy = fit(quiet, HERE), fit(busy, HERE)
    trace = traces(1, generator)[0]
    estimates = [fitted.seconds(trace, SCHEME, LOOPBACK) for fitted in (on_quiet, on_busy)]
    assert estimates[1].compute_s == pytest.approx(estimates[0].compute_s, rel=0.03)
    assert estimates[1].p50_s == pytest.approx(2 * estimates[0].p50_s, rel=0.05)


def test_interval_covers_about_nine_in_ten_new_runs() -> None:
    generator = np.random.default_rng(2)
    fitted = fit(observations(traces(60, generator), generator, noise=0.2), HERE)
    inside = []
    for trace in traces(400, generator):
        estimate = fitted.seconds(trace, SCHEME, LOOPBACK)
        inside.append(estimate.p05_s <= planted_s(trace) * generator.lognormal(0, 0.2) <= estimate.p95_s)
    assert 0.85 <= np.mean(inside) <= 0.97


def test_dealer_seconds_are_fitted_beside_the_online_ones() -> None:
    generator = np.random.default_rng(3)
    fitted = fit(observations(traces(40, generator), generator, noise=0.05, dealer=True), HERE)
    trace = traces(1, generator)[0]
    expected_s = features(trace, SCHEME).dealer_bytes * 5e-9
    assert fitted.dealer_seconds(trace, SCHEME).p50_s == pytest.approx(expected_s, rel=1e-3)
    with pytest.raises(ValueError, match="without dealer seconds"):
        model().dealer_seconds(trace, SCHEME)


def test_seconds_on_a_link_by_hand() -> None:
    link = NetworkProfile("link", one_way_delay_s=0.5, bytes_per_s=232.0, source="test")
    estimate = model().seconds(Trace((secret("relu", 10),)), SCHEME, link)
    compute_s = 9 * 2e-3 + 240 * 8e-9 + 2080 * 2e-8
    assert estimate.compute_s == pytest.approx(compute_s)
    assert (estimate.delay_s, estimate.transfer_s) == (pytest.approx(36 * 0.5), pytest.approx(10))
    assert estimate.p50_s == pytest.approx(1.1 * compute_s + 28)
    assert estimate.undisturbed_s == pytest.approx(compute_s + 28)
    assert estimate.p05_s == pytest.approx(0.8 * compute_s + 28)
    assert estimate.p95_s == pytest.approx(1.25 * compute_s + 28)


def test_json_round_trip(tmp_path: Path) -> None:
    original = model(dealer_coefficients={"dealer_bytes": 1e-9}, dealer_residuals=(0.5, 1.0, 2.0))
    original.save(tmp_path / "new" / "model.json")
    with pytest.warns(MachineWarning, match="test machine"):
        assert CostModel.load(tmp_path / "new" / "model.json") == original
    assert list(json.loads((tmp_path / "new" / "model.json").read_text()))[:2] == ["schema", "record"]


def test_a_model_of_this_machine_loads_without_a_warning() -> None:
    record = fit(observations(traces(5, np.random.default_rng(4)), np.random.default_rng(4), 0.0)).to_json()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CostModel.from_json(record)


@pytest.mark.parametrize("change", [{"schema": 2}, {"record": "measurement"}])
def test_another_schema_or_record_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="not a calibration of schema 1"):
        CostModel.from_json({**model().to_json(), **change})


def test_another_scheme_is_refused_with_the_difference() -> None:
    trace = Trace((secret("relu", 10),))
    with pytest.raises(ValueError, match=r"parties 3 \(fitted for 2\).*calibrate"):
        model().seconds(trace, Scheme(parties=3), LOOPBACK)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coefficients": {"flops": 1.0}}, "unknown feature 'flops'"),
        ({"coefficients": {"rounds": -1e-9}}, "must be >= 0"),
        ({"residuals": (1.1, 1.0, 1.2)}, "in order"),
    ],
)
def test_a_model_that_makes_no_sense_cannot_be_built(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(**change)


def test_unfit_observations_are_refused() -> None:
    generator = np.random.default_rng(5)
    some = observations(traces(3, generator), generator, noise=0.0)
    with pytest.raises(ValueError, match="at least 2"):
        fit(some[:1])
    with pytest.raises(ValueError, match="2 schemes"):
        fit([some[0], dataclasses.replace(some[1], scheme=Scheme(parties=3))])
    with pytest.raises(ValueError, match="loopback, not on cheetah-wan"):
        fit([some[0], dataclasses.replace(some[1], network=network("cheetah-wan"))])
    with pytest.raises(ValueError, match="positive seconds"):
        dataclasses.replace(some[0], online_s=(0.0,))
