"""`map` and `search mpcvit` as commands: last line, exit codes, what is left in the run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import cli
import remeasure
from bench.machine import this_machine
from bench.run_directory import write_json
from cost_models.calibration import save_default
from cost_models.linear import POOLED, CostModel, Spread
from models.spec import BlockSpec, ViTSpec
from mpc.scheme import Scheme

SPEC = ViTSpec(32, 16, 8, 10, (BlockSpec(("relu_softmax", "scaling"), 4, 8),) * 2, name="tiny")
DIRECT = Scheme(transport="direct")


def run(monkeypatch: pytest.MonkeyPatch, capsys: Any, *arguments: str) -> tuple[int, dict[str, Any] | None, str]:
    """Exit code, the JSON of the last line, and what went to stderr."""
    monkeypatch.setattr(sys, "argv", ["mpc-pareto", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    last = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else None
    code = exit_.value.code
    assert isinstance(code, int)
    return code, last, captured.err


@pytest.fixture
def calibrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with made-up calibrations of two schemes in which compute is next to nothing."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "configuration"))
    monkeypatch.chdir(tmp_path)
    spread = Spread(0.05, 0.0, 0.0, (-1.0, -0.5, 0.5, 1.0))
    for scheme in (Scheme(), DIRECT):
        model = CostModel({POOLED: {"operations": 1e-6}}, scheme, this_machine().to_json(), spread)
        save_default(model.to_json(), scheme)
    write_json(tmp_path / "tiny.json", SPEC.to_json())
    return tmp_path


def test_a_map_of_kinds_ends_with_shares_and_named_networks(
    calibrated: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    layer = ("--tokens", "9", "--dim", "16", "--heads", "2", "--points", "8", "--out", "there")
    code, last, _ = run(monkeypatch, capsys, "map", "--kinds", "softmax,relu_softmax,scaling", *layer)
    assert code == 0 and last is not None
    (panel,) = last["panels"]
    assert (panel["accuracy"], panel["contenders"]) == (None, ["softmax", "relu_softmax", "scaling"])
    assert panel["shares"] == {"scaling": 1.0}
    assert {row["network"] for row in last["networks"]} >= {"cheetah-lan", "cheetah-wan"}
    record = json.loads(Path(last["json"]).read_text())
    assert (record["record"], len(record["plane"]["bandwidth_mbit"])) == ("winner_map", 8)
    assert all(Path(path).is_file() and Path(path).parent == Path("there") for path in last["figure"].values())


@pytest.mark.parametrize(
    ("arguments", "message", "expected"),
    [
        (("map", "--accuracy", "0.9"), "--accuracy does not apply to attention kinds", 2),
        (("map", "no/such/run", "--tokens", "9"), "--tokens does not apply to a run's networks", 2),
        (("map", "--bandwidth", "10"), "--bandwidth takes two numbers separated by a comma, got '10'", 2),
        (("map", "--kinds", "sofmax"), "did you mean softmax?", 2),
        (("map", "no/such/run"), "no/such/run is not a run", 1),
        (("map", "--scheme", "tuned"), "run: mpc-pareto calibrate --scheme tuned --transport direct", 1),
        (("search", "mpcvit", "--out", "x", "--repeats", "4"), "", 2),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(
    calibrated: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    arguments: tuple[str, ...],
    message: str,
    expected: int,
) -> None:
    code, last, error = run(monkeypatch, capsys, *arguments)
    assert (code, last) == (expected, None)
    assert message in error


@pytest.mark.parties
@pytest.mark.slow
def test_a_budget_is_met_by_measured_seconds_only(
    calibrated: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    search = ("search", "mpcvit", "--out", "run", "--model", "spec:tiny.json", "--epochs", "1", "--ratios", "0.5")
    search = (*search, "--transport", "direct")
    code, last, error = run(monkeypatch, capsys, *search, "--budget", "latency<=60s@1gbit/2ms", "--no-measure")
    assert code == 0 and last is not None, error
    assert last["budget_met"] is None and last["budget"]["measured_s"] is None
    predicted_s = {row["name"]: row["seconds"] for row in last["front"]}

    code, last, error = run(monkeypatch, capsys, *search, "--budget", "latency<=60s@1gbit/2ms")
    assert code == 0 and last is not None, error
    assert last["budget_met"] is True and last["budget"]["tries"] == 1
    assert last["budget"]["mode"] == "emulated-transport"
    assert 0 < last["budget"]["measured_s"] <= 60
    assert {row["name"]: row["measured_s"]["n"] for row in last["remeasured"]} == {"0.5": 5, "budget": 5}
    assert all(row["predicted_s"]["p50"] == pytest.approx(predicted_s[row["name"]]) for row in last["remeasured"])

    # Predicted seconds leave out nearly all compute: what just meets the budget by prediction does not when it is run.
    # Nothing that was measured is measured again.
    monkeypatch.setattr(remeasure, "TRIES", 1)
    monkeypatch.setattr(remeasure, "parties_on", None)
    budget = f"latency<={predicted_s['budget'] * 1.0001:.6f}s@1gbit/2ms"
    code, last, error = run(monkeypatch, capsys, *search, "--budget", budget)
    assert code == 1 and last is not None, error
    assert last["budget_met"] is False
    assert last["budget"]["measured_s"] > last["budget"]["asked_s"] > last["budget"]["predicted_s"]
    assert "no network found meets latency<=" in error and len(error.splitlines()) == 1
    assert not (calibrated / "run/front/budget.json").exists()
    assert (calibrated / "run/front/0.5.json").exists()
    records = [json.loads(line) for line in (calibrated / "run/remeasured.jsonl").read_text().splitlines()]
    assert [record["name"] for record in records] == ["0.5", "budget, try 1"]
