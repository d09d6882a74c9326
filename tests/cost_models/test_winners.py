"""Winner maps: who is fastest where, who may compete, and where it is too close to call."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench.records import plain
from bench.run_directory import RunDirectory, write_json
from cost_models.calibration import AttentionWorkload
from cost_models.contenders import kinds_that_compete, map_of_run, networks_that_compete, scheme_of_run
from cost_models.linear import POOLED, Cost, CostModel, Spread
from cost_models.linear import write_json as write_model
from cost_models.winners import Contender, Plane, at, link_at, seconds_on_plane, winner_map
from models.spec import BlockSpec, ViTSpec
from mpc.network import network
from mpc.scheme import Scheme
from mpc.traffic import PhaseTraffic
from reports.conform import conform
from reports.records import WinnerMapRecord

SPREAD = Spread(0.02, 0.0, 0.0, (-1.0, -0.5, 0.5, 1.0))
MODEL = CostModel({POOLED: {"operations": 1e-3, "ring_bytes": 1e-9}}, Scheme(), {"label": "made up"}, SPREAD)
SMALL = Plane((10.0, 1000.0), (1.0, 100.0), 5)


def contender(
    name: str, rounds: int, sent_bytes: int, compute_s: float = 0.1, accuracy: float | None = None
) -> Contender:
    traffic = PhaseTraffic((rounds,) * 2, (sent_bytes,) * 2, (rounds,) * 2)
    return Contender(name, Cost(compute_s, compute_s**2, 1, traffic, 1000), accuracy)


FEW_ROUNDS, FEW_BYTES = contender("few rounds", 10, 20_000_000), contender("few bytes", 500, 1_000_000)


def test_every_point_is_what_the_cost_model_says_of_that_link() -> None:
    contenders = [FEW_ROUNDS, FEW_BYTES]
    seconds = seconds_on_plane(contenders, MODEL, SMALL)
    for row, round_trip_ms in enumerate(SMALL.round_trips):
        for column, bandwidth_mbit in enumerate(SMALL.bandwidths):
            link = link_at(bandwidth_mbit, round_trip_ms)
            estimates = [MODEL.seconds_of(c.cost, link) for c in contenders]
            assert seconds.p50[:, row, column] == pytest.approx([estimate.p50_s for estimate in estimates])
            assert list(seconds.p95[:, row, column]) == [estimate.p95_s for estimate in estimates]


def test_few_bytes_win_where_there_is_no_bandwidth_and_few_rounds_where_there_is_delay() -> None:
    record = winner_map("networks", [FEW_ROUNDS, FEW_BYTES], MODEL, SMALL)
    conform(json.loads(json.dumps(plain(record))), WinnerMapRecord, "winners")
    (panel,) = record["panels"]
    slow, fast = 0, -1
    assert panel["winner"][slow][slow] == 1  # 1 ms, 10 Mbit/s
    assert panel["winner"][fast][fast] == 0  # 100 ms, 1 Gbit/s
    assert panel["runner_up"][fast][fast] == 1
    assert panel["ratio"][fast][fast] == panel["runner_up_seconds"][fast][fast] / panel["seconds"][fast][fast] > 1
    # 20 MB in place of 1 MB at 10 Mbit/s are 15.2 s; 490 hops of 0.5 ms are 0.245 s.
    ahead_s = panel["runner_up_seconds"][slow][slow] - panel["seconds"][slow][slow]
    assert ahead_s == pytest.approx(15.2 - 0.245, rel=0.02)
    assert not panel["too_close"][slow][slow]


def test_overlapping_intervals_are_too_close_to_call() -> None:
    nearly = contender("nearly", 10, 20_000_000, compute_s=0.101)
    (panel,) = winner_map("networks", [FEW_ROUNDS, nearly, FEW_BYTES], MODEL, SMALL)["panels"]
    assert panel["winner"][-1][-1] == 0 and panel["too_close"][-1][-1]
    (panel,) = winner_map("networks", [FEW_ROUNDS, FEW_BYTES], MODEL, SMALL)["panels"]
    assert not panel["too_close"][-1][-1]


def test_only_networks_that_reach_the_accuracy_compete() -> None:
    networks = [
        contender("best", 500, 20_000_000, accuracy=0.98),
        contender("nearly best", 100, 10_000_000, accuracy=0.976),
        contender("fast", 1, 1000, accuracy=0.9),
    ]
    best, low = winner_map("networks", networks, MODEL, SMALL, [0.98, 0.9])["panels"]
    assert (best["contenders"], low["contenders"]) == ([0, 1], [0, 1, 2])
    assert {place for row in best["winner"] for place in row} == {1}
    assert {place for row in low["winner"] for place in row} == {2}
    (default,) = winner_map("networks", networks, MODEL, SMALL, accuracy_within=0.0)["panels"]
    assert (default["accuracy"], default["contenders"]) == (0.98, [0])
    assert default["runner_up"] == default["ratio"] == [[None] * 5] * 5  # alone
    with pytest.raises(ValueError, match=r"no network reaches an accuracy of 0\.99 .*the best has 0\.9800"):
        winner_map("networks", networks, MODEL, SMALL, [0.99])


@pytest.mark.parametrize(("standard_error", "competing"), [(0.002, [0, 1]), (0.01, [0, 1, 2])])
def test_accuracies_that_few_images_do_not_tell_apart_are_equal(standard_error: float, competing: list[int]) -> None:
    networks = [
        replace(contender(str(accuracy), 10, 1000, accuracy=accuracy), standard_error=standard_error)
        for accuracy in (0.98, 0.976, 0.971, 0.9)
    ]
    (panel,) = winner_map("networks", networks, MODEL, SMALL)["panels"]
    assert panel["contenders"] == competing
    assert panel["accuracy_within"] == max(0.005, standard_error)


def test_named_networks_lie_on_the_plane() -> None:
    profiles = {profile["name"]: profile for profile in Plane().profiles()}
    assert "loopback" not in profiles
    assert (profiles["cheetah-wan"]["bandwidth_mbit"], profiles["cheetah-wan"]["round_trip_ms"]) == (400, 40)
    record = winner_map("networks", [FEW_ROUNDS, FEW_BYTES], MODEL, Plane())
    (row,) = at(record, "cheetah-wan")["winners"]
    assert row["winner"] == "few rounds"
    assert row["seconds"] == pytest.approx(MODEL.seconds_of(FEW_ROUNDS.cost, network("cheetah-wan")).p50_s, rel=0.1)


@pytest.mark.parametrize(
    ("bounds", "says"), [({"bandwidth_mbit": (100.0, 10.0)}, "bandwidth rises"), ({"points": 1}, "at least 2 points")]
)
def test_a_plane_without_extent_is_refused(bounds: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Plane(**bounds)


def test_kinds_compete_as_layers_without_an_accuracy() -> None:
    kinds = kinds_that_compete([AttentionWorkload((kind,) * 2, 9, 16) for kind in ("softmax", "scaling")], MODEL)
    assert [(kind.name, kind.accuracy) for kind in kinds] == [("softmax", None), ("scaling", None)]
    (panel,) = winner_map("attention kinds", kinds, MODEL, SMALL)["panels"]
    assert panel["accuracy"] is None and {place for row in panel["winner"] for place in row} == {1}


def trained_run(folder: Path) -> Path:
    """Two trained networks of a search, without weights."""
    run = RunDirectory.start(folder, "search mpcvit", {"model": "x", **Scheme(transport="direct").to_json()})
    spec = ViTSpec(32, 16, 8, 10, (BlockSpec(("softmax",) * 2, 4, 8),), name="tiny")
    for name, kind, accuracy in (("teacher", "softmax", 0.97), ("0.5", "scaling", 0.9)):
        run.write_json(f"train/{name}/spec.json", spec.with_kinds(kind).to_json())
        run.write_json(f"train/{name}/retrained.json", {"accuracy": accuracy, "test_images": 360, "seed": 0})
    return folder


def test_networks_of_a_run_compete_with_their_accuracies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    run = trained_run(tmp_path / "run")
    scheme = Scheme(transport="direct")
    assert scheme_of_run(run) == scheme
    contenders, source = networks_that_compete(run, MODEL)
    assert {c.name: c.accuracy for c in contenders} == {"teacher": 0.97, "0.5": 0.9}
    assert source == "plain test accuracy, 360 images"
    rounds = {c.name: max(c.cost.online.rounds) for c in contenders}
    assert rounds["teacher"] > rounds["0.5"]
    assert map_of_run(run) is None  # not calibrated
    with pytest.warns(UserWarning, match="fitted on made up"):
        write_model(run / "calibration.json", CostModel(MODEL.operations, scheme, MODEL.machine, SPREAD).to_json())
        record = map_of_run(run)
    assert record is not None and [panel["contenders"] for panel in record["panels"]] == [[1]]


def test_a_run_that_trained_nothing_has_no_map(tmp_path: Path) -> None:
    RunDirectory.start(tmp_path, "search mpcvit", {})
    write_json(tmp_path / "front/0.5.json", {})
    with pytest.raises(ValueError, match="run: mpc-pareto retrain"):
        networks_that_compete(tmp_path, MODEL)
    assert map_of_run(tmp_path) is None
