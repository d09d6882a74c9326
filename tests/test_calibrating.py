"""Calibration on real parties: what is measured, fitted, frozen and only then tested."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import calibrating
from bench.link_runs import UNSEEN_LINKS, LinkMeasurement, LinkWorkload
from bench.machine import this_machine
from bench.records import plain
from bench.run_directory import versions
from bench.secure_run import SecureRun, run_module
from cost_models.calibration import (
    CALIBRATION_LINKS,
    FEWEST_PASSES,
    AttentionWorkload,
    CalibrationPlan,
    EvaluationPlan,
    NetworkWorkload,
)
from cost_models.features import model_key
from cost_models.linear import POOLED, CostModel, Spread
from cost_models.replay import replay
from cost_models.sweep import CASES, Case, Sizes
from models.spec import BlockSpec, ViTSpec
from mpc.elapsed import together_s
from mpc.network import LOOPBACK, NetworkProfile, network
from mpc.parties import Parties
from mpc.ranges import NOTHING_DECLARED
from mpc.reading import shape_reading
from mpc.scheme import Scheme
from reports.conform import conform
from reports.records import CalibrationRecord

SIZES = Sizes(batch=1, tokens=5, dim=8, heads=2, head_dim=4, mlp_width=16)
SPEC = ViTSpec(16, 8, 8, 4, (BlockSpec(("relu_softmax", "scaling"), 4, 8),), name="tiny")
LAYER = AttentionWorkload(("softmax", "scaling"), 5, 8)
NETWORKS = (NetworkWorkload(SPEC), NetworkWorkload(replace(SPEC, dim=16, name="wider"), batch=2))
CASES_OF_ALL = tuple(Case(name, SIZES) for name in CASES)
PLAN = CalibrationPlan(CASES_OF_ALL, NETWORKS, passes=2)
TEST = EvaluationPlan(
    tuple(Case(name, replace(SIZES, tokens=6, dim=12, batch=2)) for name in ("gelu", "qkv")),
    (LAYER,),
    (NetworkWorkload(SPEC.with_kinds("scaling")),),
    passes=2,
    sweeps=2,
)
EVENTS = list[tuple[str, Any]]


@pytest.fixture(params=["two_parties", "tuned_parties"])
def parties(request: Any) -> Parties:
    """Parties of each protocol set in turn."""
    started: Parties = request.getfixturevalue(request.param)
    return started


@pytest.fixture
def one_pace(monkeypatch: pytest.MonkeyPatch) -> list[calibrating.Measured]:
    """A machine of one pace: what is asked for runs, and of all of it is said what the first call said."""
    measured: list[calibrating.Measured] = []
    measure = calibrating.measure

    def as_at_first(*arguments: Any, **chosen: Any) -> calibrating.Measured:
        measured.append(measure(*arguments, **chosen))
        return measured[0]

    monkeypatch.setattr(calibrating, "measure", as_at_first)
    return measured


@pytest.mark.parties
def test_operations_and_workloads_are_measured_once_in_every_pass(parties: Parties) -> None:
    heard: list[tuple[int, int, str]] = []
    measured = calibrating.measure(
        parties, parties.scheme, CASES_OF_ALL, (LAYER, *NETWORKS), 3, lambda *said: heard.append(said)
    )
    assert [(number, count) for number, count, _ in heard] == [(number, 12) for number in range(12)]
    for start in (0, 4, 8):
        passed = sorted(what for _, _, what in heard[start : start + 4])
        assert passed == sorted(["operations", LAYER.what, *(network.what for network in NETWORKS)])
    assert {len(sample.online_s) for sample in measured.samples} == {len(s.even_s) for s in measured.samples} == {3}
    labels = [case.label for case in CASES_OF_ALL]
    assert list(dict.fromkeys(sample.what for sample in measured.samples)) == labels
    products = {s.what.split()[0]: s.operation for s in measured.samples if s.operation.op in ("linear", "matmul")}
    for case in CASES_OF_ALL:
        if case.macs and case.name != "patches":
            assert products[case.name]["macs"] == case.macs
    assert [o.what for o in measured.observations] == [LAYER.what, *(network.what for network in NETWORKS)]
    for observation in measured.observations:
        assert (len(observation.online_s), len(observation.dealer_s)) == (3, 3)
        assert (observation.scheme, observation.network) == (parties.scheme, LOOPBACK)
    assert [len(o.heads) for o in measured.observations] == [2, 0, 0]


@pytest.mark.parties
@pytest.mark.parametrize(("budget_s", "passes"), [(0.0, FEWEST_PASSES), (math.inf, FEWEST_PASSES + 2)])
def test_no_pass_begins_that_would_end_after_the_budget(tuned_parties: Parties, budget_s: float, passes: int) -> None:
    wanted = FEWEST_PASSES + 2
    cases, scheme = CASES_OF_ALL[:3], tuned_parties.scheme
    measured = calibrating.measure(tuned_parties, scheme, cases, (), wanted, budget_s=budget_s)
    assert {len(sample.online_s) for sample in measured.samples} == {passes}


@pytest.mark.parties
def test_passes_come_in_changing_order_and_the_first_calls_are_nobody_s(
    two_parties: Parties, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[list[int], float]] = []

    def run(parties: Parties, module: Any, *arguments: Any, **chosen: Any) -> SecureRun:
        found = run_module(parties, module, *arguments, **chosen)
        ran.append((list(module.order), found.online_s[0]))
        return found

    monkeypatch.setattr(calibrating, "run_module", run)
    measured = calibrating.measure(two_parties, two_parties.scheme, CASES_OF_ALL[:6], (), 3)
    orders = [order for order, _ in ran]
    assert len(ran) == 4 and orders[0] == list(range(6))
    assert all(sorted(order) == orders[0] for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    for number in range(3):  # three runs of every operation and what lies between make up a pass; the last one counts
        last_s = sum(sample.online_s[number] for sample in measured.samples)
        assert 0 < last_s < ran[1 + number][1]


@pytest.mark.parties
def test_a_model_is_frozen_before_anything_that_tests_it_has_run(
    parties: Parties, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: EVENTS = []

    def run(parties: Parties, module: Any, inputs: Any, *arguments: Any, **chosen: Any) -> SecureRun:
        events.append(("run", module))
        return run_module(parties, module, inputs, *arguments, **chosen)

    monkeypatch.setattr(calibrating, "run_module", run)
    record = calibrating.calibrate(parties, PLAN, TEST, on_frozen=lambda frozen: events.append(("frozen", frozen)))
    kinds = [kind for kind, _ in events]
    # One sweep more than passes, and every network in every pass; then the same of the test, and the references.
    # Over direct sockets a test sweeps four times in each of its two passes, and this one twice as often.
    sweeps = 2 * {"gloo": 1, "direct": 4}[parties.scheme.transport]
    runs = {"gloo": 1, "direct": 3}[parties.scheme.transport]
    before, after = 1 + 2 * (1 + len(NETWORKS)), 1 + 2 * (sweeps + runs * (2 + len(NETWORKS)))
    assert kinds == ["run"] * before + ["frozen"] + ["run"] * after
    tested = [TEST.layers[0].module, TEST.networks[0].module]
    assert not any(module is one for _, module in events[:before] for one in tested)
    _, frozen = events[before]
    conform(plain(record), CalibrationRecord, "calibration")
    conform(plain(frozen), CalibrationRecord, "frozen")
    assert (frozen["evaluation"], "evaluation_s" in frozen) == ({}, False)
    model = CostModel.from_json(record)
    assert model == CostModel.from_json(frozen)
    assert (model.scheme, model.machine["label"]) == (parties.scheme, this_machine().label)
    assert record["passes"] == PLAN.passes
    assert 0 <= (record["others_share"] or 0.0) <= 1 and record["calibration_s"] > 0 < record["evaluation_s"]
    groups = record["evaluation"]
    assert {group: len(tested["points"]) for group, tested in groups.items()}.keys() == {
        "operations",
        "layers",
        "networks",
    }
    for name, group in groups.items():
        for point in group["points"]:
            assert len(point["samples_s"]) == 2 * (sweeps if name == "operations" else runs)
            assert point["measured_s"] == statistics.median(point["samples_s"]) and point["predicted_s"] > 0
    (layer,), (whole,) = (groups[group]["points"] for group in ("layers", "networks"))
    assert (layer["what"], whole["what"]) == (LAYER.what, "network tiny")
    assert layer["baselines"]["sum over heads"] > 0 and whole["baselines"]["sum over heads"] is None
    assert {point["what"].split()[1] for point in groups["operations"]["points"]} == {"gelu", "qkv"}
    assert groups["operations"]["even"]["points"] == groups["operations"]["scores"]["points"]
    assert "even" not in groups["networks"]
    # At the pace of the references every prediction is that many times as long, and no reference is a point.
    alone, inside = record["pace"]["alone"], record["pace"]["inside"]
    assert alone > 0 and inside > 0 and alone != inside
    assert record["pace"]["alone_apart"] >= 0 and record["pace"]["inside_apart"] >= 0
    paced = abs(whole["predicted_s"] * inside / whole["measured_s"] - 1)
    assert groups["networks"]["paced"]["median_error"] == pytest.approx(paced)
    errors = [abs(p["predicted_s"] * alone / p["measured_s"] - 1) for p in groups["operations"]["points"]]
    assert groups["operations"]["paced"]["median_error"] == pytest.approx(statistics.median(errors))


@pytest.mark.parties
def test_every_operation_of_enough_shapes_has_coefficients_of_its_own(tuned_parties: Parties) -> None:
    several = tuple(
        Case(name, replace(SIZES, tokens=tokens, dim=4 * tokens)) for name in CASES for tokens in (5, 6, 9, 13)
    )
    swept = calibrating.measure(tuned_parties, tuned_parties.scheme, several, (), 1)
    record = calibrating.calibrate(tuned_parties, CalibrationPlan(several, NETWORKS, passes=1), None)
    assert record["operations"].keys() == {POOLED, *(model_key(sample.operation) for sample in swept.samples)}
    assert (record["evaluation"], "evaluation_s" in record) == ({}, False)


@pytest.mark.parties
@pytest.mark.usefixtures("one_pace")
def test_a_calibration_before_widens_the_intervals_by_how_far_the_pace_lies_apart(tuned_parties: Parties) -> None:
    plan = replace(PLAN, cases=tuple(c for c in CASES_OF_ALL for _ in range(3)), passes=1)
    first = {**calibrating.calibrate(tuned_parties, plan, None), "others_share": 0.0}
    assert (first["earlier"], first["no_earlier"], first["spread"]["hours"]) == ([], "there is none", 0.0)
    slower = CostModel.from_json(first).at_pace(3.0).to_json()  # as if it had been made in a slower hour
    second = {**calibrating.calibrate(tuned_parties, plan, None, earlier={**first, **slower}), "others_share": 0.0}
    (hour,) = second["earlier"]
    assert (hour["frozen_at"], second["no_earlier"]) == (first["frozen_at"], None)
    assert hour["pace"] == pytest.approx(3.0, rel=0.2) and second["spread"]["hours"] == abs(math.log(hour["pace"]))
    third = calibrating.calibrate(tuned_parties, plan, None, earlier=second)
    assert [each["frozen_at"] for each in third["earlier"]] == [first["frozen_at"], second["frozen_at"]]
    busy = calibrating.calibrate(tuned_parties, plan, None, earlier={**first, "others_share": 0.5})
    assert (busy["earlier"], busy["no_earlier"]) == ([], "was made while other programs ran")


@pytest.mark.parties
def test_a_kept_calibration_is_brought_to_the_pace_of_now(
    tuned_parties: Parties, one_pace: list[calibrating.Measured]
) -> None:
    plan = replace(PLAN, cases=tuple(c for c in CASES_OF_ALL for _ in range(3)), passes=5)
    first = {**calibrating.calibrate(tuned_parties, plan, None), "others_share": 0.0}
    fitted = CostModel.from_json(first)
    slower = {**first, **fitted.at_pace(3.0, 5.0).to_json()}  # as if this machine had been as slow then
    now = calibrating.read_pace(tuned_parties, slower, plan)
    conform(plain(now), CalibrationRecord, "paced")
    alone, inside = now["read_pace"]["alone"], now["read_pace"]["inside"]
    assert (alone, inside) == (pytest.approx(1 / 3, rel=0.2), pytest.approx(1 / 5, rel=0.2))
    (hour,) = now["earlier"]
    assert hour == {"frozen_at": first["frozen_at"], "pace": 1 / alone} and now["no_earlier"] is None
    model, (workload, _) = CostModel.from_json(now), NETWORKS
    assert model.spread.hours == pytest.approx(abs(math.log(alone)))
    assert replace(model.spread, hours=0.0) == CostModel.from_json(slower).spread
    trace = shape_reading(workload.module, workload.input_shape, tuned_parties.scheme.weights)
    assert model.cost(trace).compute_s == pytest.approx(5 * inside * fitted.cost(trace).compute_s)
    again = calibrating.read_pace(tuned_parties, now, plan)
    assert [each["frozen_at"] for each in again["earlier"]] == [first["frozen_at"], now["paced_at"]]
    assert again["read_pace"]["alone"] == pytest.approx(1.0)
    assert len(one_pace) == 3


@pytest.mark.parties
def test_what_was_brought_to_the_pace_of_now_is_tested_after_it_was_frozen(
    tuned_parties: Parties, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replace(PLAN, cases=tuple(c for c in CASES_OF_ALL for _ in range(3)), passes=5)
    kept = {**calibrating.calibrate(tuned_parties, plan, None), "others_share": 0.0}
    kept |= CostModel.from_json(kept).at_pace(3.0, 5.0).to_json()
    events: EVENTS = []

    def run(parties: Parties, module: Any, inputs: Any, *arguments: Any, **chosen: Any) -> SecureRun:
        events.append(("run", module))
        return run_module(parties, module, inputs, *arguments, **chosen)

    monkeypatch.setattr(calibrating, "run_module", run)
    now = calibrating.read_pace(
        tuned_parties, kept, plan, TEST, on_frozen=lambda frozen: events.append(("frozen", frozen))
    )
    conform(plain(now), CalibrationRecord, "tested")
    (place,) = (place for place, (kind, _) in enumerate(events) if kind == "frozen")
    tested = [TEST.layers[0].module, TEST.networks[0].module]
    assert not any(module is one for _, module in events[:place] for one in tested)
    assert all(any(module is one for _, module in events[place:]) for one in tested)
    frozen, model = events[place][1], CostModel.from_json(now)
    assert frozen["evaluation"] == kept["evaluation"] and CostModel.from_json(frozen) == model
    # Points are those of the model at the pace that was read; the pace of the test is beside that.
    predicted_s = {point["what"]: point["predicted_s"] for point in now["evaluation"]["operations"]["points"]}
    seen = calibrating.measure(tuned_parties, tuned_parties.scheme, TEST.cases, (), 1).samples
    linear = next(sample for sample in seen if sample.operation.op == "linear")
    assert predicted_s[f"operation {linear.what.split()[0]}"] == model.operation_s(linear.operation)
    assert now["pace"]["alone"] > 0 < now["pace"]["inside"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"versions": {"torch": "0.1"}}, "was made by other versions of packages, so that no pace is read from it"),
        ({"others_share": 0.5}, "was made while other programs ran"),
    ],
)
def test_no_pace_is_read_from_a_calibration_that_says_nothing_of_this_machine(
    changed: dict[str, Any], said: str
) -> None:
    spread, scheme = Spread(0.1, 0.1, 0.0, (-1.0, -0.5, 0.5, 1.0)), Scheme()
    model = CostModel({POOLED: {"rounds": 1e-3}}, scheme, this_machine().to_json(), spread)
    kept = {**model.to_json(), "frozen_at": "then", "versions": versions(), **changed}
    with pytest.raises(ValueError, match=f"the kept calibration {said}.*; calibrate anew"):
        calibrating.read_pace(SimpleNamespace(scheme=scheme), kept, PLAN)  # type: ignore[arg-type]


def test_what_cannot_be_tested_on_links_any_more_is_said_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    spread, scheme = Spread(0.1, 0.1, 0.0, (-1.0, -0.5, 0.5, 1.0)), Scheme()
    model = CostModel({POOLED: {"rounds": 1e-3}}, scheme, this_machine().to_json(), spread)
    kept = {**model.to_json(), "frozen_at": "then", "versions": versions(), "link_spread": 0.1}
    monkeypatch.setattr(calibrating, "why_not", lambda: "no root")
    parties = SimpleNamespace(scheme=scheme)
    with pytest.raises(ValueError, match=r"cannot be tested on links now \(no root\): give --no-links"):
        calibrating.read_pace(parties, kept, PLAN, replace(TEST, links=1))  # type: ignore[arg-type]


@pytest.mark.parties
@pytest.mark.parametrize("reason", [None, "no root"])
def test_links_are_fitted_before_the_model_is_frozen_and_tested_after(
    tuned_parties: Parties, monkeypatch: pytest.MonkeyPatch, reason: str | None
) -> None:
    events: EVENTS = []

    def fitted(model: CostModel, links: Any, _: Any) -> CostModel:
        events.append(("fitted", links))
        return replace(model, wake_s=0.125, _costs={})

    def tested(model: CostModel, links: Any, repeats: int, _: Any) -> dict[str, Any]:
        events.append(("tested", (model.wake_s, links, repeats)))
        return {"links": SimpleNamespace(to_json=dict)}

    def frozen(record: dict[str, Any]) -> None:
        events.append(("frozen", record["wake_s"]))

    monkeypatch.setattr(calibrating, "why_no_links", lambda _: reason)
    monkeypatch.setattr(calibrating, "with_links", fitted)
    monkeypatch.setattr(calibrating, "compare_on_links", tested)
    plan, test = replace(PLAN, passes=1), EvaluationPlan((), (LAYER,), (), passes=1, links=2, link_repeats=7)
    calibrating.calibrate(tuned_parties, plan, test, on_frozen=frozen, links=True)
    if reason:
        assert events == [("frozen", 0.0)]
    else:
        links = ("fitted", CALIBRATION_LINKS), ("tested", (0.125, UNSEEN_LINKS[:2], 7))
        assert events == [links[0], ("frozen", 0.125), links[1]]


@pytest.mark.parties
def test_resuming_is_fitted_to_some_links_and_replays_are_tested_on_others(
    tuned_parties: Parties, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheme, wake_s = tuned_parties.scheme, 1e-4
    workload = LinkWorkload("tiny", LAYER.module, torch.randn(LAYER.input_shape), NOTHING_DECLARED)
    logs = run_module(tuned_parties, workload.module, workload.inputs, scheme, warm_up=1).logs

    def measured(scheme: Scheme, links: Any, repeats: int, *_: Any, **__: Any) -> list[LinkMeasurement]:
        return [
            LinkMeasurement("tiny", link, "made up", (link_s(link),) * repeats, (1.0,) * repeats, logs)
            for link in links
        ]

    def link_s(link: NetworkProfile) -> float:
        return together_s(replay(logs, link, wake_s=wake_s).logs)

    monkeypatch.setattr(calibrating, "measure_links", measured)
    monkeypatch.setattr(calibrating, "link_workloads", lambda *_: [workload])
    spread = Spread(0.1, 0.1, 0.0, (-2.0, -1.0, 1.0, 2.0))
    plain = CostModel({POOLED: {"rounds": 1e-4}}, scheme, {}, spread, link_spread=0.5)
    fitted = calibrating.with_links(plain, CALIBRATION_LINKS)
    assert fitted.wake_s == pytest.approx(wake_s)
    assert 0 <= fitted.link_spread < 1e-6  # how far replays are off on these links, at most
    groups = calibrating.compare_on_links(fitted, ("500mbit/20ms", "40mbit/4ms"), 3)
    assert groups.keys() == {"links", "replays"}
    names = [(point.what, point.network, point.mode) for point in groups["links"].points]
    assert names == [("tiny", "500mbit/20ms", "made up"), ("tiny", "40mbit/4ms", "made up")]
    for point in groups["replays"].points:
        expected_s = together_s(replay(logs, network(point.network), wake_s=fitted.wake_s).logs)
        assert point.predicted_s == pytest.approx(expected_s)
        assert point.measured_s == pytest.approx(link_s(network(point.network)))
        assert (point.p95_s, point.p05_s) == pytest.approx(
            (expected_s * math.exp(fitted.link_spread), expected_s * math.exp(-fitted.link_spread))
        )
    trace = shape_reading(workload.module, LAYER.input_shape)
    predicted_s = [fitted.seconds(trace, scheme, network(point.network)).p50_s for point in groups["links"].points]
    assert [point.predicted_s for point in groups["links"].points] == predicted_s


def test_no_links_are_emulated_under_gloo_or_where_there_can_be_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrating, "why_not", lambda: "no root")
    assert calibrating.why_no_links(Scheme()) == "no root"
    assert calibrating.why_no_links(Scheme("tuned", transport="direct")) is None
