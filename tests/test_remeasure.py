"""A front measured after a search: what is chosen when a prediction was too good, and what a resumed run repeats."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import nas.runs
import remeasure
from bench.machine import this_machine
from bench.run_directory import RunDirectory
from cost_models.latency_term import KindLatency, MixtureLatency
from cost_models.linear import POOLED, CostModel, Spread
from models.spec import BlockSpec, ViTSpec
from mpc.network import LOOPBACK, network
from mpc.scheme import Scheme
from nas.data import load
from nas.runs import Searched, SearchRequest
from nas.search_mpcvit import SearchResult
from remeasure import TRIES, OnRun, Place, Remeasuring, place_for, settle
from reports.conform import conform
from reports.records import RemeasuredRecord

KINDS = ("relu_softmax", "scaling")
SPEC = ViTSpec(32, 16, 8, 10, (BlockSpec(KINDS, 4, 8),) * 2, name="tiny")
# A head of relu_softmax is predicted to take a second, everything else a second; likelier is the dear kind, first head.
LAYER = {"relu_softmax": KindLatency(0.0, 1.0), "scaling": KindLatency(0.0, 0.0)}
LATENCY = MixtureLatency(KINDS, "cheetah-wan", 1.0, (LAYER,) * 2, (2, 2))
P = (((0.9, 0.1), (0.8, 0.2)), ((0.7, 0.3), (0.6, 0.4)))


def searched(folder: Path, budget_s: float | None, monkeypatch: pytest.MonkeyPatch) -> Searched:
    monkeypatch.setattr(nas.runs, "zero_shot_accuracy", lambda *_: 0.5)
    budget = None if budget_s is None else f"latency<={budget_s:g}s@cheetah-wan"
    request = SearchRequest("spec:tiny", "digits", "cheetah-wan", KINDS, (0.5,), budget)
    result = SearchResult(SPEC, KINDS, P, "latency@cheetah-wan", "softmax", 0, 0.5, 3.0, folder / "none", ())
    run = RunDirectory.start(folder, "search mpcvit", {})
    front = {"0.5": (("relu_softmax", "relu_softmax"), ("scaling", "scaling"))}
    found = Searched(run, request, Scheme(), result, load("digits"), LATENCY, None, front)
    if budget_s is not None:
        front["budget"] = found.within(budget_s)
    return found


class SlowerThanPredicted(Remeasuring):
    """Measures what the latency term says times `factor`, and keeps what it was asked for."""

    factor = 1.0
    asked: list[dict[str, ViTSpec]]

    def measure(self, specs: Mapping[str, ViTSpec], on_run: OnRun = lambda *_: None) -> dict[str, dict[str, Any]]:
        """Made-up seconds."""
        self.asked.append(dict(specs))
        records = {}
        for name, spec in specs.items():
            predicted_s = LATENCY.exact_s(spec.kinds_per_block)
            records[name] = {
                "record": "remeasured",
                "name": name,
                "kinds": [list(kinds) for kinds in spec.kinds_per_block],
                "measured_s": {"median": self.factor * predicted_s},
                "predicted_s": {"p50": predicted_s},
            }
        return records


def slower(found: Searched, factor: float) -> SlowerThanPredicted:
    place = Place(network("cheetah-wan"), LOOPBACK, "link", "replayed")
    remeasuring = SlowerThanPredicted(found.run, Scheme(), place, None)
    remeasuring.factor, remeasuring.asked = factor, []
    return remeasuring


def test_a_budget_that_is_met_as_measured_keeps_its_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = searched(tmp_path, 4.0, monkeypatch)
    front = found.to_json()["front"]
    settled = settle(found, front, slower(found, 1.0))
    assert (settled.budget_met, list(settled.front)) == (True, front)
    assert settled.budget is not None and settled.budget["measured_s"]["median"] == 4.0
    assert [record["name"] for record in settled.remeasured] == ["0.5", "budget"]
    assert (tmp_path / "front/budget.json").exists()


def test_a_prediction_that_was_too_good_leads_to_a_faster_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 4 s allow 3 kept heads as predicted; they take 6 s. The limit is then 4 x 4 / 6 = 2.67 s: one head, 3 s as run.
    found = searched(tmp_path, 4.0, monkeypatch)
    remeasuring = slower(found, 1.5)
    settled = settle(found, found.to_json()["front"], remeasuring)
    assert settled.budget_met is True
    first, second = [record for record in settled.remeasured if "budget" in record]
    assert (first["name"], first["budget"]) == ("budget, try 1", {"asked_s": 4.0, "limit_s": 4.0, "met": False})
    assert (second["name"], second["budget"]["met"]) == ("budget", True)
    assert second["budget"]["limit_s"] == pytest.approx(4 * 4 / 6)
    assert second["measured_s"]["median"] == 3.0
    kept = ViTSpec.from_json(json.loads((tmp_path / "front/budget.json").read_text()))
    assert kept.kinds_per_block == (("relu_softmax", "scaling"), ("scaling", "scaling"))
    assert settled.front[-1]["heads"] == [1, 0] and settled.front[-1]["seconds"] == 2.0
    assert [list(asked) for asked in remeasuring.asked] == [["0.5", "budget"], ["budget"]]
    assert [record["name"] for record in found.run.records("remeasured")] == ["0.5", "budget, try 1", "budget"]


def test_a_budget_that_nothing_meets_as_measured_leaves_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = searched(tmp_path, 4.0, monkeypatch)
    front = found.to_json()["front"]
    assert (tmp_path / "front/budget.json").exists()
    settled = settle(found, front, slower(found, 5.0))
    assert settled.budget_met is False
    assert settled.budget is not None and settled.budget["measured_s"]["median"] == 20.0
    assert not (tmp_path / "front/budget.json").exists()
    assert [row["name"] for row in settled.front] == ["0.5"]
    assert len([record for record in settled.remeasured if "budget" in record]) <= TRIES


def test_without_a_budget_nothing_is_met_or_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = searched(tmp_path, None, monkeypatch)
    settled = settle(found, found.to_json()["front"], slower(found, 9.0))
    assert (settled.budget_met, settled.budget, len(settled.remeasured)) == (None, None, 1)


def test_where_networks_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    wan = network("cheetah-wan")
    direct, gloo = Scheme(transport="direct"), Scheme(transport="gloo")
    assert place_for(gloo, LOOPBACK).mode == "measured"
    assert (place_for(direct, wan).stage, place_for(direct, wan).mode) == (wan, "emulated-transport")
    monkeypatch.setattr(remeasure, "why_not", lambda: None)
    assert (place_for(gloo, wan).stage, place_for(gloo, wan).mode) == (wan, "emulated-link")
    monkeypatch.setattr(remeasure, "why_not", lambda: "no root")
    assert (place_for(gloo, wan).stage, place_for(gloo, wan).mode) == (LOOPBACK, "replayed")


def cost_model(scheme: Scheme) -> CostModel:
    spread = Spread(0.5, 0.1, 0.001, (-1.6, -0.7, 0.7, 1.6))
    return CostModel({POOLED: {"operations": 1e-3}}, scheme, this_machine().to_json(), spread)


FAST_LINK = network("1gbit/2ms")


@pytest.mark.parties
@pytest.mark.parametrize("mode", ["replayed", "emulated-transport"])
def test_networks_are_run_on_parties_and_never_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    scheme = Scheme(transport="direct") if mode == "emulated-transport" else Scheme()
    monkeypatch.setattr(remeasure, "why_not", lambda: "no root")
    place = place_for(scheme, FAST_LINK)
    assert place.mode == mode
    run = RunDirectory.start(tmp_path, "search mpcvit", {})
    specs = {"dear": SPEC, "cheap": SPEC.with_kinds("scaling"), "dear again": SPEC}
    heard: list[tuple[int, int, str]] = []
    with Remeasuring(run, scheme, place, cost_model(scheme), repeats=2) as remeasuring:
        records = remeasuring.measure(specs, lambda *what: heard.append(what))
    assert [what for _, _, what in heard] == ["dear", "cheap", "dear", "cheap", "measured"]  # interleaved, alike once
    assert list(records) == list(specs)
    for record in records.values():
        conform({"schema": 1, **record}, RemeasuredRecord, record["name"])
        assert (record["network"], record["mode"], record["measured_s"]["n"]) == (FAST_LINK.name, mode, 2)
        link_s = FAST_LINK.link_s(record["online"]["hops"], record["online"]["bytes"])
        assert record["measured_s"]["median"] > 0.8 * link_s  # what waits on loopback is no second wait on the link
        assert record["ratio"] == record["predicted_s"]["p50"] / record["measured_s"]["median"]
    assert records["dear"]["online"]["rounds"] > records["cheap"]["online"]["rounds"]
    assert records["dear"]["measured_s"] == records["dear again"]["measured_s"]

    # One of four runs is lost, as when the process is killed: only that one is repeated.
    steps = sorted((tmp_path / "steps").iterdir())
    assert len(steps) == 4
    before = {path: path.stat().st_mtime_ns for path in steps}
    steps[0].unlink()
    with Remeasuring(run, scheme, place, cost_model(scheme), repeats=2) as remeasuring:
        again = remeasuring.measure(specs)
    assert {path for path in steps if path.stat().st_mtime_ns != before[path]} == {steps[0]}
    assert again["dear"]["online"] == records["dear"]["online"]

    monkeypatch.setattr(remeasure, "parties_on", None)  # nothing is started where all is known
    with Remeasuring(run, scheme, place, cost_model(scheme), repeats=2) as remeasuring:
        assert remeasuring.measure(specs) == again
