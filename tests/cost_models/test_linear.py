from __future__ import annotations

import dataclasses
import itertools
import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.machine import this_machine
from cost_models.correction import correction_of
from cost_models.linear import POOLED, Cost, CostModel, Estimate, InNetwork, MachineWarning, Spread
from cost_models.observations import OperationSamples
from cost_models.waking import resume_s
from mpc.congestion import PAYLOAD_SHARE, ramp_s
from mpc.network import LOOPBACK, NetworkProfile, network
from mpc.scheme import Scheme
from mpc.trace import Operand, Operation, Trace

SCHEME = Scheme()
# A relu of n elements has 9 rounds and opens 24 n bytes of ring elements, of 232 n; anything else takes half a second.
OPERATIONS = {"relu": {"rounds": 1e-3, "ring_bytes": 1e-6}, POOLED: {"operations": 0.5}}
RELU_S = 9 * 1e-3 + 240 * 1e-6
INSIDE = {"relu": InNetwork(0.25, 2.0), POOLED: InNetwork(0.0, 3.0)}
LINK = NetworkProfile("link", one_way_delay_s=0.5, bytes_per_s=232.0, source="test")


def secret(op: str, *shape: int) -> Operation:
    return Operation(op, (Operand(shape, "secret"),), shape)


ONE = Trace((secret("relu", 10),))
TRACES = st.lists(st.tuples(st.sampled_from(["relu", "square", "gelu"]), st.integers(1, 30_000)), max_size=4).map(
    lambda chosen: Trace(tuple(secret(op, elements) for op, elements in chosen))
)


def model(**changes: object) -> CostModel:
    spread = Spread(0.3, 0.4, 0.0, (-2.0, -1.0, 1.0, 2.0))
    plain = CostModel(OPERATIONS, SCHEME, {"label": "test machine"}, spread, INSIDE, 0.125, link_spread=0.5)
    return dataclasses.replace(plain, **changes, _costs={})  # type: ignore[arg-type]


def test_seconds_on_a_link_by_hand() -> None:
    estimate = model().seconds(ONE, SCHEME, LINK)
    woken_s = 9 * resume_s(0.125, 4 * 0.5)  # over gloo a process sleeps four delays for a message
    compute_s, link_s = 0.25 + 2 * RELU_S, 36 * 0.5 + woken_s + 10 / PAYLOAD_SHARE
    assert estimate.compute_s == pytest.approx(compute_s)
    assert estimate.delay_s == pytest.approx(36 * 0.5 + woken_s)  # one-way delays, and resuming in every round
    assert estimate.transfer_s == pytest.approx(10 / PAYLOAD_SHARE)
    assert estimate.p50_s == pytest.approx(compute_s + link_s)
    # The scale is sqrt(0.3^2 + 0.4^2) = 0.5 for one operation; the scores are -2, -1, 1 and 2.
    quartile = 0.5 * 0.6744897501960817 / 1.6448536269514722  # of a normal distribution whose 95 % quantile is 0.5
    assert estimate.p05_s == pytest.approx(compute_s * math.exp(-1) + link_s * math.exp(-0.5))
    assert estimate.p25_s == pytest.approx(compute_s * math.exp(-0.5) + link_s * math.exp(-quartile))
    assert estimate.p75_s == pytest.approx(compute_s * math.exp(0.5) + link_s * math.exp(quartile))
    assert estimate.p95_s == pytest.approx(compute_s * math.exp(1) + link_s * math.exp(0.5))


def test_an_operation_alone_finds_caches_as_it_left_them() -> None:
    alone = model().alone(ONE.operations[0])
    assert (alone.p50_s, alone.delay_s, alone.transfer_s) == (pytest.approx(RELU_S), 0.0, 0.0)
    assert alone.p95_s == pytest.approx(RELU_S * math.exp(1))


def test_resuming_costs_less_where_messages_come_sooner() -> None:
    direct = Scheme(transport="direct")
    short = dataclasses.replace(LINK, one_way_delay_s=3e-3)
    rounds = max(ONE.traffic(direct).online.rounds)
    added_s = [model(scheme=direct, wake_s=wake_s).seconds(ONE, direct, short).delay_s for wake_s in (0.0, 1.0)]
    assert added_s[1] - added_s[0] == pytest.approx(rounds * 0.5)


def test_at_half_the_pace_everything_of_the_machine_s_own_takes_twice_as_long() -> None:
    slow, usual = (m.seconds(ONE, SCHEME, LINK) for m in (model(wake_s=0.0).at_pace(2.0), model(wake_s=0.0)))
    assert slow.compute_s == pytest.approx(2 * usual.compute_s)
    assert (slow.delay_s, slow.transfer_s) == (usual.delay_s, usual.transfer_s)
    assert model().at_pace(2.0).alone(ONE.operations[0]).p50_s == pytest.approx(2 * RELU_S)


def test_loopback_adds_nothing() -> None:
    estimate = model(wake_s=7.0).seconds(ONE, SCHEME, LOOPBACK)
    assert (estimate.delay_s, estimate.transfer_s) == (0.0, 0.0)
    assert estimate.p50_s == estimate.compute_s == pytest.approx(0.25 + 2 * RELU_S)


def test_operations_that_were_not_swept_take_pooled_coefficients() -> None:
    swept, unswept = secret("relu", 10), secret("square", 10)
    assert model().operation_s(swept) == pytest.approx(RELU_S)
    assert model().operation_s(unswept) == 0.5


def test_similar_operations_correct_what_the_law_says() -> None:
    relu = ONE.operations[0]
    taken = OperationSamples("relu", relu, (1.2 * RELU_S,) * 5)
    corrected = model(correction=correction_of([taken], [RELU_S], SCHEME), machine=this_machine().to_json())
    times = corrected.operation_s(relu) / RELU_S
    assert 1.1 < times < 1.2
    assert corrected.cost(ONE).compute_s == pytest.approx(0.25 + 2 * times * RELU_S)
    assert corrected.at_pace(3.0).operation_s(relu) == pytest.approx(3 * times * RELU_S)
    record = corrected.to_json()
    assert CostModel.from_json(record) == corrected
    del record["correction"]  # as written before there was one
    assert CostModel.from_json(record).operation_s(relu) == pytest.approx(RELU_S)


def test_errors_of_many_operations_cancel() -> None:
    for count in (1, 4, 16):
        estimate = model(in_networks={POOLED: InNetwork()}).seconds(Trace(ONE.operations * count), SCHEME, LOOPBACK)
        scale = math.sqrt(0.3**2 + 0.4**2 / count)
        assert estimate.p95_s == pytest.approx(count * RELU_S * math.exp(2 * scale))


def test_the_pace_of_the_machine_is_shared_by_all_operations() -> None:
    uneven = Spread(0.3, 0.4, 0.0, (-2.0, -1.0, 1.0, 2.0), pace=1.2, hours=0.7)
    normal = 1.6448536269514722 * math.hypot(1.2, 0.7), 0.6744897501960817 * math.hypot(1.2, 0.7)
    alone = 2 * math.hypot(0.3, 0.2), math.hypot(0.3, 0.2)
    high, upper = (math.hypot(*each) for each in zip(alone, normal, strict=True))
    assert uneven.sides(1.0, 0.25) == pytest.approx([-high, -upper, upper, high])
    assert uneven.sides(1.0, 1e9)[3] == pytest.approx(2 * 0.4 * math.sqrt(1e9), rel=1e-6)  # a pace is lost in it
    record = model(spread=uneven, machine=this_machine().to_json()).to_json()
    assert CostModel.from_json(record).spread == uneven
    del record["spread"]["pace"], record["spread"]["hours"]  # as written before there were any
    assert CostModel.from_json(record).spread == dataclasses.replace(uneven, pace=0.0, hours=0.0)


def test_without_a_pace_intervals_are_those_of_the_scores() -> None:
    shifted = Spread(0.3, 0.8, 0.0, (-0.1, 0.4, 0.9, 2.5))
    assert shifted.sides(1.0, 0.25) == pytest.approx([0.5 * score for score in shifted.scores])
    drifting = dataclasses.replace(shifted, pace=0.2)
    assert sorted(drifting.sides(1.0, 0.25)) == drifting.sides(1.0, 0.25)
    wider = zip(drifting.sides(1.0, 0.25), shifted.sides(1.0, 0.25), (-1, -1, 1, 1), strict=True)
    assert all(sign * (with_pace - without) > 0 for with_pace, without, sign in wider)


def test_at_a_known_pace_there_is_no_drift() -> None:
    uneven = Spread(0.3, 0.4, 0.0, (-2.0, -1.0, 1.0, 2.0), pace=0.1, hours=0.7)
    assert model(spread=uneven).at_pace(1.3).spread == dataclasses.replace(uneven, pace=0.0, hours=0.0)


def test_networks_may_be_at_another_pace_than_operations_alone() -> None:
    usual, now = model(), model().at_pace(1.5, 3.0)
    assert now.alone(ONE.operations[0]).p50_s == pytest.approx(1.5 * RELU_S)
    assert now.cost(ONE).compute_s == pytest.approx(3.0 * usual.cost(ONE).compute_s)
    assert now.wake_s == 3.0 * usual.wake_s
    assert model().at_pace(1.5, 3.0, 0.25).spread == dataclasses.replace(usual.spread, pace=0.25)


def test_a_short_run_scatters_by_its_jitter() -> None:
    jittery = model(spread=Spread(0.0, 0.0, 3e-3, (-2.0, -1.0, 1.0, 2.0)), in_networks={POOLED: InNetwork()})
    estimate = jittery.seconds(ONE, SCHEME, LOOPBACK)
    assert estimate.p75_s == pytest.approx(RELU_S * math.exp(3e-3 / RELU_S))
    assert jittery.spread.scale(0.0, 1.0) == 0.0


@given(TRACES, TRACES)
def test_costs_of_traces_in_a_row_add_up_but_for_the_largest_message(a: Trace, b: Trace) -> None:
    one, two, both = (model().cost(trace) for trace in (a, b, Trace(a.operations + b.operations)))
    together = one + two
    assert (both.operations, both.online) == (together.operations, together.online)
    assert both.largest_bytes == together.largest_bytes == max(one.largest_bytes, two.largest_bytes)
    assert both.online == Trace(a.operations + b.operations).traffic(SCHEME).online
    assert (both.compute_s, both.compute_s2) == pytest.approx((together.compute_s, together.compute_s2))
    each = sum((model().cost(Trace((operation,))) for operation in a.operations), Cost.zero(2))
    assert (each.online, each.largest_bytes, each.operations) == (one.online, one.largest_bytes, one.operations)
    assert (each.compute_s, each.compute_s2) == pytest.approx((one.compute_s, one.compute_s2))


@pytest.mark.parametrize("link", [LOOPBACK, network("cheetah-lan"), network("cheetah-wan"), network("20mbit/100ms")])
@given(traces=st.lists(TRACES, min_size=1, max_size=5))
def test_the_median_of_many_networks_at_once_is_that_of_each(link: NetworkProfile, traces: list[Trace]) -> None:
    one = model(wake_s=1e-4, scheme=Scheme(transport="direct"))
    costs = [one.cost(trace) for trace in traces]
    sums = [
        (c.compute_s, max(c.online.hops), max(c.online.bytes), max(c.online.rounds), c.largest_bytes) for c in costs
    ]
    columns = [np.array(column, dtype=np.float64) for column in zip(*sums, strict=True)]
    expected = [one.seconds_of(cost, link).p50_s for cost in costs]
    assert one.p50_of(*columns, link).tolist() == pytest.approx(expected)  # type: ignore[call-arg, arg-type]
    assert [one.p50_of(*map(float, each), link) for each in sums] == pytest.approx(expected)  # type: ignore[call-arg, arg-type]


def test_slow_start_of_the_largest_message_is_paid_once() -> None:
    wan, large, small = network("cheetah-wan"), secret("relu", 20_000), secret("relu", 10)
    direct = Scheme(transport="direct")
    largest_bytes = model().cost(Trace((large,))).largest_bytes
    assert ramp_s(wan, largest_bytes) > 0 == ramp_s(wan, model().cost(ONE).largest_bytes)
    for operations in ((large,), (large, large), (small, large)):
        trace = Trace(operations)
        estimate = model(scheme=direct).seconds(trace, direct, wan)
        sent_s = max(trace.traffic(direct).online.bytes) / (wan.bytes_per_s * PAYLOAD_SHARE)
        assert estimate.transfer_s - sent_s == pytest.approx(ramp_s(wan, largest_bytes))


def test_weights_opened_before_and_connections_that_are_kept_leave_no_slow_start() -> None:
    wan, largest_bytes = network("cheetah-wan"), 1e6
    for scheme, stalls_s in (
        (Scheme(transport="gloo"), 0.0),
        (Scheme("tuned", transport="direct"), 0.0),
        (Scheme("tuned", transport="direct", weights="public"), ramp_s(wan, largest_bytes)),
    ):
        sent_s = largest_bytes / (wan.bytes_per_s * PAYLOAD_SHARE)
        said_s = model(scheme=scheme).p50_of(0.0, 0.0, largest_bytes, 0.0, largest_bytes, wan)
        assert said_s == pytest.approx(sent_s + stalls_s)
    assert stalls_s > 0


@given(
    TRACES,
    st.sampled_from([LOOPBACK, network("cheetah-lan"), network("cheetah-wan")]),
    st.tuples(*[st.floats(0, 1)] * 3),
    st.tuples(*[st.floats(0, 3)] * 4),
)
def test_quantiles_are_in_order_and_parts_add_up(
    trace: Trace, link: NetworkProfile, scales: tuple[float, float, float], sizes: tuple[float, float, float, float]
) -> None:
    far_below, below, above, far_above = sizes
    spread = Spread(*scales, (-below - far_below, -below, above, above + far_above))
    e = model(spread=spread).seconds(trace, SCHEME, link)
    ordered = [e.p05_s, e.p25_s, e.p50_s, e.p75_s, e.p95_s]
    assert all(a <= b * (1 + 1e-12) for a, b in itertools.pairwise(ordered))
    assert e.p50_s == e.compute_s + e.delay_s + e.transfer_s


def test_dealer_seconds_by_hand() -> None:
    dealing = model(dealer={"dealer_bytes": 1e-9, "correlations": 1e-3})
    offline_bytes = sum(ONE.traffic(SCHEME).offline.bytes)
    assert offline_bytes > 0
    correlations = sum(ONE.traffic(SCHEME).offline.rounds)
    expected_s = offline_bytes * 1e-9 + correlations * 1e-3
    assert dealing.dealer_seconds(ONE, SCHEME) == pytest.approx(expected_s)
    assert dealing.dealer_seconds(Trace(ONE.operations * 3), SCHEME) == pytest.approx(3 * expected_s)
    assert dealing.seconds(ONE, SCHEME, LINK) == model().seconds(ONE, SCHEME, LINK)
    with pytest.raises(ValueError, match=r"without dealer seconds; calibrate again"):
        model().dealer_seconds(ONE, SCHEME)


def test_an_estimate_is_a_row_of_plain_seconds() -> None:
    row = Estimate(5.0, 1.0, 2.0, 8.0, 9.0, 3.0, 1.5, 0.5).to_json()
    quantiles = {"p05": 1.0, "p25": 2.0, "p50": 5.0, "p75": 8.0, "p95": 9.0}
    assert row == {**quantiles, "compute_s": 3.0, "delay_s": 1.5, "transfer_s": 0.5}


def test_json_round_trip(tmp_path: Path) -> None:
    original = model(dealer={"dealer_bytes": 1e-9}, threads=3)
    original.save(tmp_path / "new" / "model.json")
    with pytest.warns(MachineWarning, match=r"fitted on test machine, this is .*: calibrate here"):
        loaded = CostModel.load(tmp_path / "new" / "model.json")
    assert loaded == original
    assert loaded.seconds(ONE, SCHEME, LINK) == original.seconds(ONE, SCHEME, LINK)
    written = json.loads((tmp_path / "new" / "model.json").read_text())
    assert list(written)[:2] == ["schema", "record"]
    # Every field is in the record, so that none comes back as its default.
    assert {field.name for field in dataclasses.fields(CostModel)} - {"_costs"} <= written.keys()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model.json"]


def test_a_model_of_this_machine_loads_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CostModel.from_json({**model(machine=this_machine().to_json()).to_json(), "evaluation": {}})


@pytest.mark.parametrize(
    ("change", "found"), [({"schema": 1}, "schema 1"), ({"schema": 2}, "schema 2"), ({"record": "bench"}, "'bench'")]
)
def test_another_schema_or_record_is_refused_in_one_line(change: dict[str, object], found: str) -> None:
    with pytest.raises(ValueError, match=rf"not a calibration of schema 4: .*{found}.*; calibrate again") as refused:
        CostModel.from_json({**model().to_json(), **change})
    assert "\n" not in str(refused.value)


def test_another_scheme_is_refused_with_the_difference() -> None:
    with pytest.raises(ValueError, match=r"another scheme: parties 3 \(fitted for 2\); calibrate under the scheme"):
        model().seconds(ONE, Scheme(parties=3), LOOPBACK)
    with pytest.raises(ValueError, match=r"name tuned \(fitted for crypten\)"):
        model(dealer={"dealer_bytes": 1.0}).dealer_seconds(ONE, Scheme("tuned", transport="direct"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"operations": {POOLED: {"flops": 1.0}}}, r"unknown feature 'flops'; known: operations, rounds"),
        ({"operations": {POOLED: {"rounds": -1e-9}}}, "rounds must be >= 0"),
        ({"operations": {POOLED: {"rounds": math.inf}}}, "must be >= 0"),
        ({"operations": {"relu": {"rounds": 1e-3}}}, "needs pooled coefficients"),
        ({"dealer": {"dealer_bytes": math.nan}}, "dealer_bytes must be >= 0"),
    ],
)
def test_a_model_that_makes_no_sense_cannot_be_built(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(**change)


@pytest.mark.parametrize(
    "spread",
    [
        (-0.1, 0.0, 0.0, (0.0,) * 4),
        (0.0, 0.0, -1e-6, (0.0,) * 4),
        (0.0, 0.0, 0.0, (0.0,) * 4, -0.1),
        (0.1, 0.1, 0.0, (-1.0, 0.5, 0.2, 1.0)),
    ],
)
def test_a_spread_has_scales_and_quantiles_in_order(spread: tuple[object, ...]) -> None:
    with pytest.raises(ValueError, match="scales >= 0 and quantiles in order"):
        Spread(*spread)  # type: ignore[arg-type]
