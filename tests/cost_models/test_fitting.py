"""Planted laws are recovered, what is left out is predicted without itself, and intervals hold as often as they say."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cost_models.correction import Correction
from cost_models.features import PLACES, UNITS, counts, moved_bytes, trace_counts
from cost_models.fitting import Residual, fit, nonnegative_relative, pace_spread, spread_of
from cost_models.linear import POOLED, CostModel, InNetwork
from cost_models.observations import Observation, OperationSamples
from mpc.network import LOOPBACK, network
from mpc.scheme import Scheme
from mpc.trace import Operand, Operation, Trace

SCHEME = Scheme()
MACHINE = {"label": "test machine"}
# Laws that contradict each other: what a round or a byte takes depends on the operation.
PLANTED = {
    "relu": {"rounds": 2e-3, "binary_bytes": 2e-8},
    "linear weight": {"operations": 1e-4, "ring_bytes": 8e-9, "macs": 1e-9},
    "square": {"operations": 5e-4, "ring_bytes": 9e-8},
}
INSIDE = {
    "relu": InNetwork(0.0, 1.2),
    "linear weight": InNetwork(3e-4, 1.0, 4e-9),
    "square": InNetwork(1e-4, 0.9),
}


def secret(op: str, *shape: int) -> Operation:
    return Operation(op, (Operand(shape, "secret"),), shape)


def linear(rows: int, inputs: int, outputs: int) -> Operation:
    operands = (Operand((rows, inputs), "secret"), Operand((outputs, inputs), "weight"))
    return Operation("linear", operands, (rows, outputs), (("macs", rows * inputs * outputs),))


def drawn(generator: np.random.Generator, each: int) -> dict[str, list[Operation]]:
    """Operations of every planted law, sizes over two decades."""

    def size() -> int:
        return int(10 ** generator.uniform(1, 3))

    return {
        "relu": [secret("relu", 60 * size()) for _ in range(each)],
        "linear weight": [linear(size(), size(), size()) for _ in range(each)],
        "square": [secret("square", 9 * size()) for _ in range(each)],
    }


def law_s(key: str, operation: Operation) -> float:
    counted = dict(zip(UNITS, counts(operation, SCHEME), strict=True))
    return float(sum(seconds * counted[name] for name, seconds in PLANTED[key].items()))


def sampled(
    operations: dict[str, list[Operation]], generator: np.random.Generator, noise: float = 0.0
) -> list[OperationSamples]:
    return [
        OperationSamples(f"{key} {n}", operation, tuple(law_s(key, operation) * generator.lognormal(0, noise, size=5)))
        for key, group in operations.items()
        for n, operation in enumerate(group)
    ]


def networks(generator: np.random.Generator, count: int, noise: float = 0.0, dealer: bool = False) -> list[Observation]:
    found = []
    for number in range(count):
        operations = drawn(generator, 3 + 2 * number)
        trace = Trace(tuple(operation for group in operations.values() for operation in group))
        op_s = tuple(
            INSIDE[key].seconds(law_s(key, operation), moved_bytes(operation, SCHEME))
            for key, group in operations.items()
            for operation in group
        )
        online_s = tuple(sum(op_s) * generator.lognormal(0, noise, size=5))
        dealer_s = (float(trace_counts(trace, SCHEME)[list(UNITS).index("dealer_bytes")]) * 5e-9,) * dealer
        found.append(Observation("network", f"{number}", trace, SCHEME, online_s, dealer_s, op_s=op_s))
    return found


def fitted(samples: Sequence[OperationSamples], observations: Sequence[Observation]) -> CostModel:
    return fit(samples, observations, SCHEME, MACHINE, threads=2)


def test_the_law_of_every_operation_is_recovered() -> None:
    generator = np.random.default_rng(0)
    model = fitted(sampled(drawn(generator, 20), generator), [])
    assert model.operations.keys() == {*PLANTED, POOLED}
    for key, group in drawn(generator, 10).items():
        for operation in group:
            assert model.operation_s(operation) == pytest.approx(law_s(key, operation), rel=1e-3)
    # Where nothing else that is counted is proportional to them, coefficients are the planted ones.
    assert model.operations["linear weight"]["macs"] == pytest.approx(1e-9, rel=1e-2)
    assert (model.scheme, model.machine, model.threads) == (SCHEME, MACHINE, 2)


def test_what_is_fitted_is_at_an_even_pace() -> None:
    generator = np.random.default_rng(5)
    truth = sampled(drawn(generator, 20), generator)
    spells = [replace(s, online_s=tuple(t * generator.choice((1.0, 1.4)) for t in s.online_s)) for s in truth]
    raw, known = (
        fitted(spells, []),
        fitted([replace(s, even_s=t.online_s) for s, t in zip(spells, truth, strict=True)], []),
    )
    for sample in truth:
        assert known.operation_s(sample.operation) == pytest.approx(sample.median_s, rel=1e-3)
    assert max(abs(raw.operation_s(s.operation) / s.median_s - 1) for s in truth) > 0.05
    assert known.spread.sides(1.0, 1.0)[3] < 0.2 * raw.spread.sides(1.0, 1.0)[3]


def test_what_one_operation_barely_out_of_a_cache_took_is_not_the_price_of_a_byte() -> None:
    """A third more at 40 kB beyond the caches is a law where several operations say so, and else a disturbance."""
    inside = [secret("add", 40_000 * (1 + n)) for n in range(9)]
    out, *further = (secret("add", 380_000 + 5_000 * n) for n in range(4))
    far_bytes = {operation: counts(operation, SCHEME)[PLACES["memory_bytes"]] for operation in (out, *further)}
    assert min(far_bytes.values()) == far_bytes[out] > 0

    def took_s(operation: Operation) -> float:
        return 1e-3 * (1 + far_bytes.get(operation, 0.0) / far_bytes[out] / 3)

    def predicted_s(*operations: Operation) -> float:
        samples = [OperationSamples("add", each, (took_s(each),)) for each in operations]
        return fitted(samples, []).operation_s(secret("add", 3_800_000))

    assert predicted_s(*inside, out) < 2e-3
    assert predicted_s(*inside, out, *further) > 50e-3


def test_what_no_law_says_is_learnt_from_similar_operations() -> None:
    """Seconds that swing by a tenth with size, as where an allocator changes its ways."""

    def swung(operation: Operation) -> float:
        return 1 + 0.1 * math.sin(math.log(operation.elements))

    generator = np.random.default_rng(12)
    samples = [
        replace(s, online_s=tuple(t * swung(s.operation) for t in s.online_s))
        for s in sampled(drawn(generator, 40), generator, noise=0.01)
    ]
    model = fitted(samples, [])
    law = replace(model, correction=Correction())
    tested = [(key, operation) for key, group in drawn(generator, 40).items() for operation in group]

    def error(predicting: CostModel) -> float:
        return statistics.mean(
            abs(predicting.operation_s(operation) / (law_s(key, operation) * swung(operation)) - 1)
            for key, operation in tested
        )

    assert error(model) < 0.5 * error(law)
    assert model.spread.common + model.spread.independent < 0.06


def test_the_law_survives_noise_and_a_few_disturbed_operations() -> None:
    generator = np.random.default_rng(1)
    samples = sampled(drawn(generator, 30), generator, noise=0.03)
    disturbed = [
        replace(s, online_s=tuple(4 * t for t in s.online_s)) if n % 10 == 0 else s for n, s in enumerate(samples)
    ]
    model = fitted(disturbed, [])
    errors = [
        abs(model.operation_s(operation) / law_s(key, operation) - 1)
        for key, group in drawn(generator, 20).items()
        for operation in group
    ]
    assert np.median(errors) < 0.03
    assert np.max(errors) < 0.25


def test_what_operations_take_inside_networks_is_recovered_by_kind() -> None:
    generator = np.random.default_rng(2)
    model = fitted(sampled(drawn(generator, 20), generator), networks(generator, 6))
    for key, planted in INSIDE.items():
        for operation in drawn(generator, 5)[key]:
            inside_s = model.cost(Trace((operation,))).compute_s
            planted_s = planted.seconds(law_s(key, operation), moved_bytes(operation, SCHEME))
            assert inside_s == pytest.approx(planted_s, rel=0.06)
    for fresh in networks(generator, 3):
        assert model.seconds(fresh.trace, SCHEME, LOOPBACK).p50_s == pytest.approx(fresh.median_s, rel=0.03)
    assert fitted(sampled(drawn(generator, 8), generator), []).in_networks == {POOLED: InNetwork()}


def test_networks_that_take_longer_than_their_operations_scale_them_all() -> None:
    generator = np.random.default_rng(3)
    samples, plain = sampled(drawn(generator, 8), generator), networks(generator, 4)
    longer = [replace(network, online_s=tuple(1.25 * s for s in network.online_s)) for network in plain]
    usual, scaled = (fitted(samples, each).in_networks for each in (plain, longer))
    for key, each in usual.items():
        assert scaled[key].times == pytest.approx(1.25 * each.times)
        assert scaled[key].more_s == pytest.approx(1.25 * each.more_s)
        assert scaled[key].byte_s == pytest.approx(1.25 * each.byte_s)


def test_a_kind_that_few_networks_have_is_drawn_to_what_all_take() -> None:
    generator = np.random.default_rng(5)
    often = networks(generator, 4)
    one = secret("gelu", 50)
    rare = replace(often[0], trace=Trace((*often[0].trace.operations, one)), op_s=(*often[0].op_s, 1.0))
    model = fitted(sampled(drawn(generator, 8), generator), [rare, *often[1:]])
    usual, gelu = model.in_networks[POOLED], model.in_networks["gelu"]
    assert (gelu.times, gelu.byte_s) == (pytest.approx(usual.times, rel=0.03), pytest.approx(usual.byte_s, rel=0.03))
    assert usual.times != pytest.approx(model.in_networks["square"].times, rel=0.03)


def test_an_operation_of_too_few_shapes_takes_what_all_have_in_common() -> None:
    generator = np.random.default_rng(4)
    operations = drawn(generator, 8)
    three = {**operations, "square": operations["square"][:3]}
    model = fitted(sampled(three, generator), [])
    assert model.operations.keys() == {"relu", "linear weight", POOLED}
    only_linear = fitted(sampled({"linear weight": operations["linear weight"]}, generator), [])
    assert only_linear.operations[POOLED] == only_linear.operations["linear weight"]
    assert only_linear.operation_s(secret("relu", 100)) > 0


def test_intervals_come_from_what_was_predicted_without_itself() -> None:
    generator = np.random.default_rng(5)
    samples = sampled(drawn(generator, 7), generator, noise=0.1)
    observed = networks(generator, 5, noise=0.1)
    residuals = []
    for out, sample in enumerate(samples):
        predicted_s = fitted([*samples[:out], *samples[out + 1 :]], []).operation_s(sample.operation)
        residuals.append(Residual(math.log(sample.median_s / predicted_s), predicted_s, 1.0))
    for out, one in enumerate(observed):
        others = fitted(samples, [*observed[:out], *observed[out + 1 :]])
        predicted_s, cost = others.seconds(one.trace, SCHEME, LOOPBACK).p50_s, others.cost(one.trace)
        shares2 = cost.compute_s2 / cost.compute_s**2
        residuals.append(Residual(math.log(one.median_s / predicted_s), predicted_s, shares2))
    expected, found = spread_of(residuals), fitted(samples, observed).spread
    assert found.scores == pytest.approx(expected.scores, rel=1e-3)
    assert (found.common, found.independent) == pytest.approx((expected.common, expected.independent), rel=1e-3)


# Of n, counted from the smallest: rank (n + 1) level, outwards; where that lies outside, the last there is.
@pytest.mark.parametrize(
    ("n", "ranks"), [(19, (1, 5, 15, 19)), (39, (2, 10, 30, 38)), (4, (1, 1, 4, 4)), (10, (1, 2, 9, 10))]
)
def test_conformal_ranks_by_hand(n: int, ranks: tuple[int, ...]) -> None:
    logs = np.random.default_rng(n).normal(0, 0.1, size=n)
    spread = spread_of([Residual(float(log), 0.5, 0.25) for log in logs])
    quantiles = [score * spread.scale(0.5, 0.25) for score in spread.scores]
    assert quantiles == pytest.approx([sorted(logs)[rank - 1] for rank in ranks])


def scattered(generator: np.random.Generator, count: int) -> list[Residual]:
    """Heavy-tailed residuals whose scale depends on seconds and shares."""
    residuals = []
    for _ in range(count):
        seconds, shares2 = float(10 ** generator.uniform(-4, 0)), float(generator.uniform(0.02, 1.0))
        scale = math.sqrt(0.02**2 + 0.1**2 * shares2 + (2e-4 / seconds) ** 2)
        residuals.append(Residual(scale * float(generator.standard_t(3)), seconds, shares2))
    return residuals


def test_intervals_hold_as_often_as_they_say() -> None:
    generator = np.random.default_rng(6)
    inside_90, inside_50 = [], []
    for _ in range(100):
        spread = spread_of(scattered(generator, 39))
        low, lower, upper, high = spread.scores
        for new in scattered(generator, 20):
            score = new.log_ratio / spread.scale(new.compute_s, new.shares2)
            inside_90.append(low <= score <= high)
            inside_50.append(lower <= score <= upper)
    # Ranks 2 to 38 and 10 to 30 of 39 hold 36/40 and 20/40 of what is new; below, four standard deviations of these
    # 2,000, which share 100 calibrations.
    assert abs(np.mean(inside_90) - 0.9) < 4 * math.sqrt(0.9 * 0.1 * (1 / 2000 + 1 / (100 * 41)))
    assert abs(np.mean(inside_50) - 0.5) < 4 * math.sqrt(0.25 * (1 / 2000 + 1 / (100 * 41)))


def test_a_machine_that_is_slower_in_some_passes_widens_every_interval() -> None:
    generator = np.random.default_rng(11)
    steady = sampled(drawn(generator, 20), generator, noise=0.01)
    factors = (1.0, 1.3, 1.3, 1.0, 1.0)  # thirds of two passes, two and one
    uneven = [replace(s, online_s=tuple(t * f for t, f in zip(s.online_s, factors, strict=True))) for s in steady]
    assert pace_spread(steady) < 0.005
    assert pace_spread(uneven) == pytest.approx(
        math.log(1.3) * statistics.stdev([0.5, 0.5, 0.0]) * math.sqrt(2 / 3), rel=0.05
    )
    assert pace_spread([replace(s, online_s=s.online_s[:1]) for s in steady]) == 0.0
    narrow, wide = (fitted(samples, []).spread for samples in (steady, uneven))
    assert wide.pace == pace_spread(uneven)
    assert wide.sides(1.0, 0.0)[3] > 1.6 * wide.pace
    assert wide.pace > 10 * math.hypot(narrow.scale(1.0, 0.0), narrow.pace)


def test_scales_tell_short_runs_and_single_operations_apart() -> None:
    spread = spread_of(scattered(np.random.default_rng(7), 2000))
    short, long = spread.scale(2e-4, 0.02), spread.scale(1.0, 0.02)
    one, many = spread.scale(1.0, 1.0), spread.scale(1.0, 0.02)
    assert short / long == pytest.approx(1.0 / math.hypot(0.02, 0.1 * math.sqrt(0.02)), rel=0.25)
    assert one / many == pytest.approx(math.hypot(0.02, 0.1) / math.hypot(0.02, 0.1 * math.sqrt(0.02)), rel=0.25)


def test_the_dealer_is_fitted_to_networks_where_all_have_its_seconds() -> None:
    generator = np.random.default_rng(8)
    samples, observed = sampled(drawn(generator, 6), generator), networks(generator, 6, dealer=True)
    model = fitted(samples, observed)
    for fresh in networks(generator, 3, dealer=True):
        assert model.dealer_seconds(fresh.trace, SCHEME) == pytest.approx(fresh.dealer_s[0], rel=1e-2)
    assert fitted(samples, [*observed[:-1], replace(observed[-1], dealer_s=())]).dealer == {}
    assert fitted(samples, observed[:1]).dealer == {}


def test_coefficients_are_never_negative_and_outliers_do_not_move_them() -> None:
    generator = np.random.default_rng(9)
    matrix = np.column_stack([generator.uniform(1, 2, size=(40, 2)), np.zeros(40)])
    assert nonnegative_relative(matrix, matrix @ [3.0, 5.0, 0.0]) == pytest.approx([3.0, 5.0, 0.0])
    measured_s = matrix @ [3.0, 5.0, 0.0] * np.where(np.arange(40) % 8 == 0, 3.0, 1.0)
    assert nonnegative_relative(matrix, measured_s) == pytest.approx([3.0, 5.0, 0.0], rel=0.01)
    falling = nonnegative_relative(matrix, matrix @ [3.0, -1.0, 0.0])
    assert falling[0] > 0 and falling[1:].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scheme": Scheme(parties=3)}, "another scheme cannot be fitted"),
        ({"network": network("cheetah-wan")}, "fitted on loopback, not on cheetah-wan"),
    ],
)
def test_unfit_observations_are_refused(change: dict[str, Any], message: str) -> None:
    generator = np.random.default_rng(10)
    samples, observed = sampled(drawn(generator, 2), generator), networks(generator, 2)
    with pytest.raises(ValueError, match=message):
        fitted(samples, [observed[0], replace(observed[1], **change)])
    with pytest.raises(ValueError, match="at least 4 operations, got 3; run the whole plan"):
        fitted(samples[:3], observed)
