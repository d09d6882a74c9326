"""The trace of a run against the Trace Event Format, and against the log that it was drawn from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.perfetto import DEALER, MESSAGES, OPERATIONS, trace_events, write_trace
from mpc.ledger import LogEntry, MessageLog, Span
from mpc.traffic import Correlation, Message

# Party 0: a quarter of a second of dealing, a second of work, half a second in an opening; party 1 comes a bit later.
FIRST = MessageLog(
    party=0,
    parties=2,
    entries=(
        LogEntry("relu", "act", Correlation("and", 80), 0.0, 0.0),
        LogEntry("relu", "act", Message("open", (80, 40)), compute_s=1.0, wait_s=0.5, start_s=11.25),
    ),
    online_s=1.5,
    dealer_s=0.25,
    spans=(Span("relu", "act", 10.25, 11.75, 1.5),),
    transport="direct",
    start_s=10.0,
)
LATER = LogEntry("relu", "act", Message("open", (80, 40)), compute_s=1.0, wait_s=0.25, start_s=11.5)
SECOND = replace(FIRST, party=1, entries=(LATER,), spans=(), start_s=10.25)


def slices(trace: dict[str, Any], party: int, track: int) -> list[tuple[str, float, float]]:
    return [
        (event["name"], event["ts"], event["dur"])
        for event in trace["traceEvents"]
        if event["ph"] == "X" and (event["pid"], event["tid"]) == (party, track)
    ]


def test_every_track_holds_what_the_log_holds_in_microseconds() -> None:
    trace = trace_events([FIRST, SECOND])
    assert slices(trace, 0, OPERATIONS) == [("relu", 250_000, 1_500_000)]
    assert slices(trace, 0, DEALER) == [("not online", 0, 250_000)]
    assert slices(trace, 0, MESSAGES) == [("compute", 250_000, 1_000_000), ("open", 1_250_000, 500_000)]
    assert slices(trace, 1, MESSAGES)[-1] == ("open", 1_500_000, 250_000)
    (opening,) = [e for e in trace["traceEvents"] if e["ph"] == "X" and e["name"] == "open" and e["pid"] == 0]
    assert opening["args"].items() >= {"op": "relu", "site": "act", "bytes": 120, "tensors": 2, "number": 0}.items()


def test_arrows_begin_and_end_inside_the_messages_that_they_join() -> None:
    trace = trace_events([FIRST, SECOND])
    arrows = [e for e in trace["traceEvents"] if e["ph"] in "sf"]
    assert len(arrows) == 4 and len({e["id"] for e in arrows}) == 2
    for arrow in arrows:
        inside = [(s, d) for name, s, d in slices(trace, arrow["pid"], arrow["tid"]) if name == "open"]
        assert any(start <= arrow["ts"] < start + duration for start, duration in inside)
        assert arrow["ph"] == "s" or arrow["bp"] == "e"


def test_the_file_is_of_the_trace_event_format(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "trace.json", [FIRST, SECOND], {"network": "loopback"})
    trace = json.loads(path.read_text())
    assert trace["otherData"] == {"network": "loopback"} and trace["displayTimeUnit"] == "ms"
    names = {(e["name"], e["args"]["name"]) for e in trace["traceEvents"] if e["ph"] == "M"}
    assert names >= {("process_name", "party 0"), ("process_name", "party 1"), ("thread_name", "messages")}
    for event in trace["traceEvents"]:
        assert {"ph", "name", "pid"} <= event.keys() and event["ph"] in "MXsf"
        assert event["ph"] == "M" or event["ts"] >= 0
        assert event["ph"] != "X" or event["dur"] >= 0


def test_a_scatter_of_the_dealer_is_on_its_track() -> None:
    dealt = LogEntry("mean", "", Message("scatter", (24,)), 0.0, 0.125, of_dealer=True, start_s=10.0)
    trace = trace_events([replace(FIRST, entries=(dealt, *FIRST.entries))])
    assert slices(trace, 0, DEALER)[0] == ("scatter", 0, pytest.approx(125_000))
