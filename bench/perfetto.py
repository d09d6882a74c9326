"""A run as a trace that Perfetto and Chrome's about:tracing draw: a process for every party, with three tracks.

The form is the Trace Event Format: complete events (`X`) with `ts` and `dur` in microseconds, metadata (`M`) for names,
and flow events (`s`, `f`) for the arrows between the parties' messages.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.run_directory import write_json
from mpc.ledger import LogEntry, MessageLog
from mpc.traffic import Correlation, Message, message_traffic

OPERATIONS, MESSAGES, DEALER = 0, 1, 2  # tracks of a party
_TRACKS = {OPERATIONS: "operations", MESSAGES: "messages", DEALER: "dealer"}
_LEAST_S = 1e-9  # what is shorter is rounding

Event = dict[str, Any]


def trace_events(logs: Sequence[MessageLog], about: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The trace of one run from the logs of its parties; `about` is kept beside it (scheme, network, mode).

    Time 0 is when the first party began. The dealer's work between two messages is drawn where that gap begins: a log
    holds how long it took, not when.
    """
    zero_s = min(log.start_s for log in logs)
    events: list[Event] = []
    for log in logs:
        events += [*_names(log), *_operations(log, zero_s), *_messages(log, zero_s)]
    return {
        "displayTimeUnit": "ms",
        "otherData": dict(about or {}),
        "traceEvents": [*events, *_arrows(logs, zero_s)],
    }


def write_trace(path: str | os.PathLike[str], logs: Sequence[MessageLog], about: Mapping[str, Any]) -> Path:
    """Stores the trace whole or not at all; open it at ui.perfetto.dev, which reads the file where it is."""
    return write_json(path, trace_events(logs, about), indent=None)


def _names(log: MessageLog) -> Iterator[Event]:
    yield {"ph": "M", "name": "process_name", "pid": log.party, "tid": 0, "args": {"name": f"party {log.party}"}}
    for track, name in _TRACKS.items():
        yield {"ph": "M", "name": "thread_name", "pid": log.party, "tid": track, "args": {"name": name}}


def _slice(
    party: int, track: int, name: str, category: str, start_s: float, seconds: float, args: Mapping[str, Any]
) -> Event:
    times = {"ts": start_s * 1e6, "dur": max(0.0, seconds) * 1e6}
    return {"ph": "X", "name": name, "cat": category, "pid": party, "tid": track, **times, "args": dict(args)}


def _operations(log: MessageLog, zero_s: float) -> Iterator[Event]:
    for span in log.spans:
        args = {"site": span.site, "online_ms": span.online_s * 1e3}
        yield _slice(log.party, OPERATIONS, span.op, "op", span.start_s - zero_s, span.end_s - span.start_s, args)


def _messages(log: MessageLog, zero_s: float) -> Iterator[Event]:
    """Online messages with the local work before each, and on its own track what the dealer did meanwhile."""
    ended_s, number, dealt_bytes = log.start_s, 0, 0
    for entry in log.entries:
        if isinstance(entry.event, Correlation):
            dealt_bytes += entry.event.dealer_bytes
        elif entry.of_dealer:
            args = _of_message(entry)
            start_s = entry.start_s - zero_s
            yield _slice(log.party, DEALER, entry.event.collective, "dealer", start_s, entry.wait_s, args)
        else:
            gap_s = entry.start_s - ended_s
            apart_s = gap_s - entry.compute_s
            if apart_s > _LEAST_S:
                args = {"correction_bytes": dealt_bytes}
                yield _slice(log.party, DEALER, "not online", "dealer", ended_s - zero_s, apart_s, args)
                dealt_bytes = 0
            if entry.compute_s > _LEAST_S:
                start_s = entry.start_s - entry.compute_s - zero_s
                args = {"op": entry.op, "site": entry.site}
                yield _slice(log.party, MESSAGES, "compute", "compute", start_s, entry.compute_s, args)
            args = {"number": number, **_of_message(entry), "compute_ms": entry.compute_s * 1e3}
            start_s = entry.start_s - zero_s
            yield _slice(log.party, MESSAGES, entry.event.collective, "message", start_s, entry.wait_s, args)
            ended_s, number = entry.start_s + entry.wait_s, number + 1


def _of_message(entry: LogEntry) -> dict[str, Any]:
    assert isinstance(entry.event, Message)
    payload = entry.event.payload_bytes
    return {"op": entry.op, "site": entry.site, "bytes": sum(payload), "tensors": len(payload)}


def _arrows(logs: Sequence[MessageLog], zero_s: float) -> Iterator[Event]:
    """From where each party begins a message to where a party that waits for it goes on."""
    if len({len(log.messages) for log in logs}) > 1:
        return
    parties = logs[0].parties
    for number, entries in enumerate(zip(*(log.messages for log in logs), strict=True)):
        message = entries[0].event
        assert isinstance(message, Message)
        waits = message_traffic(message, parties, logs[0].transport).rounds
        for sender, sent in zip(logs, entries, strict=True):
            for receiver, taken in zip(logs, entries, strict=True):
                if sender is receiver or not waits[receiver.party]:
                    continue
                arrow = {"name": message.collective, "cat": "wire", "id": f"{number}:{sender.party}:{receiver.party}"}
                begun_us = (sent.start_s - zero_s) * 1e6
                # Just inside the slice that it points to: at its very end the next one begins.
                inside_us = (taken.start_s + 0.999 * taken.wait_s - zero_s) * 1e6
                start = {"ph": "s", "pid": sender.party, "tid": MESSAGES, "ts": begun_us}
                end = {"ph": "f", "bp": "e", "pid": receiver.party, "tid": MESSAGES, "ts": max(begun_us, inside_us)}
                yield {**start, **arrow}
                yield {**end, **arrow}
