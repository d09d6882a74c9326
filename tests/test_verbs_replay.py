"""`bench --log` and `replay` on the command line: a log once written is re-timed and drawn without parties."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.message_log import RunLog, write_logs
from mpc.ledger import LogEntry, MessageLog, Span
from mpc.network import PROFILES
from mpc.scheme import Scheme
from mpc.traffic import Message
from tests.test_cli import run

ENTRY = LogEntry("relu", "act", Message("open", (80,)), compute_s=1.0, wait_s=0.25, start_s=11.0)
LOGS = tuple(
    MessageLog(party, 2, (ENTRY,), 1.5, 0.0, (Span("relu", "act", 10.0, 11.25, 1.25),), "direct", 10.0)
    for party in (0, 1)
)
RUN = RunLog(
    "attention relu", Scheme("tuned", transport="direct"), "loopback", "measured", {"label": "m"}, (1.5,), LOGS
)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return write_logs(tmp_path / "log.jsonl", [RUN])


def replayed(monkeypatch: pytest.MonkeyPatch, capsys: Any, *arguments: str | Path) -> Any:
    assert run(monkeypatch, "replay", *map(str, arguments), "--json") == 0
    return json.loads(capsys.readouterr().out)


def refused(monkeypatch: pytest.MonkeyPatch, capsys: Any, *arguments: str | Path) -> str:
    assert run(monkeypatch, "replay", *map(str, arguments), "--json") in (1, 2)
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1
    return str(error)


def test_a_log_is_replayed_on_every_profile(monkeypatch: pytest.MonkeyPatch, capsys: Any, log: Path) -> None:
    rows = replayed(monkeypatch, capsys, log)["rows"]
    assert [(row["network"], row["mode"]) for row in rows] == [
        (name, "measured" if name == "loopback" else "replayed") for name in PROFILES
    ]
    by_network = {row["network"]: row["online"] for row in rows}
    assert by_network["loopback"]["total_s"] == 1.5
    assert by_network["cheetah-wan"]["total_s"] == pytest.approx(1.5 + 0.02)  # transfer hides in what loopback took
    assert by_network["cheetah-wan"]["delay_s"] == pytest.approx(0.02)


def test_the_table_names_every_network(monkeypatch: pytest.MonkeyPatch, capsys: Any, log: Path) -> None:
    assert run(monkeypatch, "replay", str(log), "--network", "400mbit/40ms") == 0
    table = capsys.readouterr().out
    assert "attention relu" in table and "400mbit/40ms" in table and "1.5200" in table


def test_a_trace_is_as_measured_or_of_the_network_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, log: Path, tmp_path: Path
) -> None:
    traces = {}
    for name, asked in (("here", ()), ("there", ("--network", "cheetah-wan"))):
        path = tmp_path / f"{name}.json"
        assert replayed(monkeypatch, capsys, log, *asked, "--perfetto", path)["perfetto"] == str(path)
        traces[name] = json.loads(path.read_text())
    assert [traces[name]["otherData"]["mode"] for name in traces] == ["measured", "replayed"]
    waits_us = [
        next(e["dur"] for e in trace["traceEvents"] if e["name"] == "open" and e["ph"] == "X")
        for trace in traces.values()
    ]
    assert waits_us == pytest.approx([250_000, 270_000])


def test_what_cannot_be_replayed_or_drawn_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, log: Path, tmp_path: Path
) -> None:
    assert "holds 1 runs" in refused(monkeypatch, capsys, log, "--run", "2")
    two = write_logs(tmp_path / "two.jsonl", [RUN, RUN])
    drawn = ("--perfetto", tmp_path / "trace.json")
    assert "add --run" in refused(monkeypatch, capsys, two, *drawn)
    assert "no message log at" in refused(monkeypatch, capsys, tmp_path / "none")
    emulated = RunLog(**{**{f: getattr(RUN, f) for f in RUN.__slots__}, "network": "lan", "mode": "emulated-link"})
    away = write_logs(tmp_path / "away.jsonl", [emulated])
    assert "only runs on loopback can be replayed" in refused(monkeypatch, capsys, away, "--network", "cheetah-wan")


@pytest.mark.parties
def test_bench_writes_the_log_that_replay_reads(monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    layer = ("--tokens", "5", "--dim", "8", "--heads", "2", "--kinds", "scaling,relu_softmax", "--repeats", "3")
    asked = ("bench", "attention", *layer, "--scheme", "tuned", "--log", str(path))
    assert run(monkeypatch, *asked, "--json") == 0
    measured = json.loads(capsys.readouterr().out)["rows"]
    rows = replayed(monkeypatch, capsys, path, "--network", "cheetah-wan")["rows"]
    assert [(row["workload"], row["mode"]) for row in rows] == [
        (f"attention {kind}", mode) for kind in ("scaling", "relu_softmax") for mode in ("measured", "replayed")
    ]
    median_s = [row["seconds"]["online"]["median"] for row in measured]
    assert [row["online"]["total_s"] for row in rows[::2]] == pytest.approx(median_s)
    for here, there in zip(rows[::2], rows[1::2], strict=True):
        assert there["online"]["delay_s"] > 0.02 and there["times_measured"] > here["times_measured"] == 1
