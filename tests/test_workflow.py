"""What joins the folders: replay, candidates, searches on a link, the cross table."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import workflow
from bench.machine import this_machine
from bench.records import append, plain
from bench.run_directory import RunDirectory, write_json
from bench.secure_run import SecureRun
from cost_models.calibration import save_default
from cost_models.latency_term import KindLatency, MixtureLatency, mixture_latency
from cost_models.linear import POOLED, CostModel, Spread
from models.spec import BlockSpec, ViTSpec
from models.vit import VisionTransformer
from mpc.congestion import PAYLOAD_SHARE
from mpc.ledger import LogEntry, MessageLog, Span
from mpc.network import NetworkProfile, network
from mpc.parties import Parties
from mpc.scheme import Roles, Scheme
from mpc.trace import Trace
from mpc.traffic import Message
from nas.retrain import load_network
from nas.runs import SearchRequest, retrain_front, search_on_link
from reports.conform import conform
from reports.records_read import AttentionRecord, CandidateRecord, CrossTableRecord, read_run
from tests.reports.synthetic_run import attention as synthetic_attention

KINDS = ("relu_softmax", "scaling")
SPEC = ViTSpec(32, 16, 8, 10, (BlockSpec(("relu_softmax", "scaling"), 4, 8),) * 2, name="tiny")
LINK = NetworkProfile("hand", one_way_delay_s=0.5, bytes_per_s=1000.0, source="made up")

# Two messages: 16 bytes cross in 2 one-way delays, 8,000 bytes in 4. Transfer overlaps with what loopback took.
LOG = MessageLog(
    party=0,
    parties=2,
    entries=(
        LogEntry("relu", "a", Message("all_reduce", (16,)), compute_s=1.0, wait_s=0.5, start_s=11.0),
        LogEntry("linear", "b", Message("all_reduce", (8000,)), compute_s=2.0, wait_s=0.25, start_s=13.5),
    ),
    online_s=4.0,
    dealer_s=0.0,
    spans=(Span("relu", "", 10.0, 11.5, 1.5), Span("linear", "", 11.75, 13.75, 2.0), Span("sum", "", 13.75, 14, 0.25)),
    start_s=10.0,
)
LOGS = (LOG, replace(LOG, party=1))
RELU_S = 2 * 0.5
LINEAR_S = 4 * 0.5 + 8000 / (1000 * PAYLOAD_SHARE) - 0.25


def _run(scheme: Scheme) -> SecureRun:
    trace = Trace(())
    output = torch.zeros(1)
    return SecureRun(scheme, Roles(), trace, LOG.traffic, (4.0, 6.0, 5.0), (0.0,) * 3, (4.0,) * 3, output, LOGS, LOG, 1)


def test_a_layer_on_another_link_adds_delays_and_transfer_to_every_sample() -> None:
    run = _run(Scheme())
    record: dict[str, Any] = {"shape": {"batch": 2}, "seconds": {"online": {}, "dealer": None}, "network": "loopback"}
    (replayed,) = workflow.replayed_attention(run, record, [LINK])
    link_s = RELU_S + LINEAR_S
    assert replayed["seconds"]["online"]["samples"] == pytest.approx([4 + link_s, 6 + link_s, 5 + link_s])
    assert replayed["seconds"]["online"]["iqr"] == pytest.approx(1.0)
    assert replayed["seconds_per_image"] == pytest.approx((5 + link_s) / 2)
    assert (replayed["network"], replayed["mode"], replayed["seconds"]["total"]) == ("hand", "replayed", None)
    assert record["network"] == "loopback"


def test_seconds_by_operation_are_as_timed_plus_the_link_and_add_up() -> None:
    by_op = workflow.by_op_s(_run(Scheme()), LINK)
    expected = {"relu": 1.5 + RELU_S, "linear": 2.0 + LINEAR_S, "sum": 0.25, "between operations": 0.25}
    assert by_op == pytest.approx(expected)


def test_a_network_has_a_row_on_loopback_and_one_on_each_link() -> None:
    rows = workflow.network_rows(_run(Scheme()), "mpcvit:tiny", 4, {"max_abs_error": 1e-3}, [LINK])
    assert [(row["network"], row["mode"]) for row in rows] == [("loopback", "measured"), ("hand", "replayed")]
    assert [row["seconds_per_image"] for row in rows] == pytest.approx([5 / 4, (5 + RELU_S + LINEAR_S) / 4])
    assert [row["seconds"]["total"] is None for row in rows] == [False, True]  # the dealer's link is not replayed


def _cost_model(scheme: Scheme | None = None) -> CostModel:
    coefficients = {"rounds": 2e-3, "ring_bytes": 1e-8}
    spread = Spread(0.1, 0.0, 0.0, (-1.0, -0.5, 0.5, 1.0))
    return CostModel({POOLED: coefficients}, scheme or Scheme(), this_machine().to_json(), spread)


@pytest.mark.parties
def test_a_measured_candidate_is_what_the_report_reads(two_parties: Parties, tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained = VisionTransformer(SPEC).eval()
    images, labels = torch.randn(3, 3, 32, 32), torch.tensor([0, 1, 2])
    found = {"accuracy": 0.5, "found_by": "mpcvit/latency@cheetah-wan", "seed": 3, "ratio": 0.5}
    link = network("cheetah-wan")
    record = workflow.candidate_record(
        two_parties, "wan 0.5", trained, found, images, labels, _cost_model(), [link], repeats=3, batch=2
    )
    append(tmp_path / "networks.jsonl", record)
    (candidate,) = read_run(tmp_path).candidates
    conform(candidate, CandidateRecord, "candidate")
    assert (candidate["name"], candidate["seed"], candidate["ratio"]) == ("wan 0.5", 3, 0.5)
    assert candidate["kinds"] == [["relu_softmax", "scaling"]] * 2
    assert candidate["params"] == sum(parameter.numel() for parameter in trained.parameters())
    assert (candidate["secure_images"], candidate["agreement"]) == (3, 1.0)
    here, there = (candidate["measured_s"][name] for name in ("loopback", "cheetah-wan"))
    assert (here["mode"], here["n"], there["mode"], there["n"]) == ("measured", 3, "replayed", 3)
    link_s = candidate["online"]["hops"] * 0.02 + candidate["online"]["bytes"] / 50e6
    assert link_s - here["median"] < there["median"] - here["median"] < 1.02 * link_s
    predicted = candidate["seconds"]
    predicted_link_s = candidate["online"]["hops"] * 0.02 + candidate["online"]["bytes"] / (50e6 * PAYLOAD_SHARE)
    assert predicted["cheetah-wan"]["p50"] - predicted["loopback"]["p50"] == pytest.approx(predicted_link_s)
    assert predicted["loopback"]["p05"] < predicted["loopback"]["p50"] < predicted["loopback"]["p95"]
    by_op = candidate["by_op_s"]
    added_s = sum(by_op["cheetah-wan"].values()) - sum(by_op["loopback"].values())
    assert added_s == pytest.approx(there["median"] - here["median"])


@pytest.mark.parties
def test_a_candidate_of_the_tuned_scheme_has_ranges_of_training_images(tuned_parties: Parties) -> None:
    torch.manual_seed(0)
    trained, draw = VisionTransformer(SPEC).eval(), torch.Generator().manual_seed(3)
    images, others = (torch.randn(n, 3, 32, 32, generator=draw) for n in (2, 16))
    labels, found = torch.tensor([0, 1]), {"accuracy": 0.5, "found_by": "uniform", "seed": 0, "ratio": None}
    measure = partial(workflow.candidate_record, tuned_parties, "tiny", trained, found, images, labels, None, [])
    calibrated, default = measure(repeats=1, training_images=others), measure(repeats=1)
    for record in (calibrated, default):
        assert (record["ranges"], record["agreement"]) == ("checked by a plain shadow", 1.0)
        assert not record["functions_outside_their_domain"] and record["setup"]["bytes"] > 0
    assert calibrated["online"]["bytes"] < default["online"]["bytes"]


def _latency(link: str, present_s: float, per_head_s: float) -> MixtureLatency:
    layer = {"relu_softmax": KindLatency(present_s, per_head_s), "scaling": KindLatency(0.0, 0.0)}
    return MixtureLatency(KINDS, link, 1.0, (layer,) * 2, (2, 2))


SPREAD_OUT = (("relu_softmax", "scaling"),) * 2  # a head in each layer: presence is paid twice
TOGETHER = (("relu_softmax",) * 2, ("scaling",) * 2)  # both heads in one layer: presence is paid once


def test_found_for_one_link_and_run_on_another() -> None:
    latencies = {"lan": _latency("lan", 0.0, 0.5), "wan": _latency("wan", 1.0, 0.0)}
    found = [
        ("latency@lan", 0, 0.5, SPREAD_OUT),
        ("latency@wan", 0, 0.5, TOGETHER),
        ("latency@lan", 1, 0.5, TOGETHER),
        ("latency@wan", 1, 0.5, TOGETHER),
        ("l1", 0, 0.5, SPREAD_OUT),
    ]
    table = workflow.cross_table(found, latencies, "relu_softmax")
    conform(table, CrossTableRecord, "cross_table")
    assert [row["seconds"] for row in table["rows"]] == [
        {"lan": 2.0, "wan": 3.0},
        {"lan": 2.0, "wan": 2.0},
        {"lan": 2.0, "wan": 2.0},
        {"lan": 2.0, "wan": 2.0},
        {"lan": 2.0, "wan": 3.0},
    ]
    assert [row["relu_softmax_heads"] for row in table["rows"]] == [[1, 1], [2, 0], [2, 0], [2, 0], [1, 1]]
    on_lan, on_wan = table["verdict"].split("; On wan")
    # Seed 0: 3 s against 2 s, seed 1 the same network: mean +25 %, standard deviation 0.5 / sqrt(2) = 35.4 %.
    assert "networks found for lan take +25.0% (standard deviation 35.4% over 2 seeds" in on_wan
    assert "networks found for wan take +0.0% (standard deviation 0.0% over 2 seeds" in on_lan
    assert on_lan.endswith("differ in 1 of 2 networks)") and on_wan.endswith("differ in 1 of 2 networks).")


def test_one_link_leaves_nothing_to_compare() -> None:
    table = workflow.cross_table([("latency@lan", 0, 0.5, TOGETHER)], {"lan": _latency("lan", 0, 1)}, "relu_softmax")
    assert table["verdict"] == "Only one link was searched for: nothing to compare."


def _request(tmp_path: Path, **changes: Any) -> SearchRequest:
    spec = write_json(tmp_path / "tiny.json", SPEC.to_json())
    given: dict[str, Any] = {"link": "cheetah-wan", "kinds": KINDS, "ratios": (0.25, 0.75), "epochs": 1, **changes}
    return SearchRequest(f"spec:{spec}", "digits", **given)


def test_a_search_under_a_latency_needs_a_calibration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="run: mpc-pareto calibrate"):
        search_on_link(tmp_path / "run", _request(tmp_path), Scheme())
    assert not (tmp_path / "run").exists()


def test_a_budget_that_cannot_be_read_or_names_another_link_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="write latency<=SECONDSs@NETWORK"):
        _request(tmp_path, budget="20s")
    with pytest.raises(ValueError, match="different links"):
        _request(tmp_path, budget="latency<=20s@cheetah-lan")


@pytest.mark.slow
def test_a_search_writes_the_specs_that_are_then_retrained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "configuration"))
    save_default(_cost_model().to_json(), Scheme())
    out, heard = tmp_path / "run", list[dict[str, Any]]()
    latency = mixture_latency(SPEC, KINDS, _cost_model(), Scheme(), network("cheetah-wan"))
    within_s = latency.exact_s([("relu_softmax",) * 2, ("scaling",) * 2]) + 1e-6
    request = _request(tmp_path, budget=f"latency<={within_s:.6f}s@cheetah-wan")
    result = search_on_link(out, request, Scheme(), heard.append).to_json()
    assert [record["epoch"] for record in heard] == [0]
    assert heard[0]["latency_gradient_norm"] > 0
    assert (result["run"], result["objective"]) == (str(out), "latency@cheetah-wan")
    specs = {row["name"]: ViTSpec.from_json(json.loads(Path(row["spec"]).read_text())) for row in result["front"]}
    assert list(specs) == ["0.25", "0.75", "budget"]
    for row in result["front"]:
        spec = specs[row["name"]]
        assert row["heads"] == [block.kinds.count("relu_softmax") for block in spec.blocks]
        assert row["seconds"] == pytest.approx(latency.exact_s(spec.kinds_per_block))
        assert 0 <= row["accuracy"] <= 1
    assert [sum(row["heads"]) for row in result["front"][:2]] == [1, 3]
    assert result["front"][2]["seconds"] <= within_s
    with pytest.raises(ValueError, match="seed was 0, is 1"):
        search_on_link(out, _request(tmp_path, budget=request.budget, seed=1), Scheme())

    steps: list[tuple[int, int, str]] = []
    rows = retrain_front(out, "digits", True, None, 1, 0, lambda *step: steps.append(step))
    assert [row["name"] for row in rows] == ["0.25", "0.75", "budget"]
    assert [done for done, _, _ in steps] == [1, 2, 3, 4] and {total for _, total, _ in steps} == {4}
    assert steps[0][2] == "teacher"
    for row in rows:
        assert load_network(Path(row["folder"])).spec == specs[row["name"]]
        retrained = json.loads((Path(row["folder"]) / "retrained.json").read_text())
        assert retrained["distilled"] and retrained["accuracy"] == row["accuracy"]


def test_a_search_under_the_paper_s_norm_needs_no_calibration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "nothing"))
    request = _request(tmp_path, link="l1", ratios=(0.5,), weight=0.0)
    with pytest.raises((RuntimeError, ValueError), match="weight"):  # a weight of 0 is not the default weight
        search_on_link(tmp_path / "zero", request, Scheme())
    request = _request(tmp_path, link="l1", ratios=(0.5,))
    result = search_on_link(tmp_path / "run", request, Scheme()).to_json()
    assert (result["objective"], result["front"][0]["seconds"], sum(result["front"][0]["heads"])) == ("l1", None, 2)


def test_a_run_without_specs_has_nothing_to_retrain(tmp_path: Path) -> None:
    RunDirectory.start(tmp_path / "run", "search mpcvit", {})
    with pytest.raises(ValueError, match="run a search into it first"):
        retrain_front(tmp_path / "run", "digits", False, None, 1, 0, lambda *_: None)


def test_replayed_rows_are_what_the_report_reads() -> None:
    measured = synthetic_attention(random.Random(0))[0]
    (replayed,) = workflow.replayed_attention(_run(Scheme()), measured, [LINK])
    conform(plain(replayed), AttentionRecord, "attention")
