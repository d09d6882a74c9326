"""Message logs on disk: all that the parties of a run sent, and when, so that the run can be replayed and drawn later.

A file is JSON Lines, a run a line. It is written whole or not at all, and read strictly: half a log replays to seconds
that nobody measured.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.machine import this_machine
from bench.records import SCHEMA, plain
from bench.run_directory import write_whole
from bench.secure_run import SecureRun
from mpc.ledger import LogEntry, MessageLog, Span
from mpc.scheme import Scheme
from mpc.traffic import Correlation, Event, Message

_RECORD = "message_log"


@dataclass(frozen=True, slots=True)
class RunLog:
    """One run of a workload: where and how it was run, seconds of every repeat, and the logs of all parties in one.

    `logs` are those of the repeat with the median online time; `machine` is a record's.
    """

    workload: str
    scheme: Scheme
    network: str
    mode: str
    machine: Mapping[str, Any]
    online_s: tuple[float, ...]
    logs: tuple[MessageLog, ...]

    @classmethod
    def of(cls, run: SecureRun, workload: str, network: str = "loopback", mode: str = "measured") -> RunLog:
        """The log of a run that was just made, on this machine."""
        return cls(workload, run.scheme, network, mode, this_machine().to_json(), run.online_s, run.logs)

    def to_json(self) -> dict[str, Any]:
        """Plain values, as a line of the file holds them."""
        return {
            "schema": SCHEMA,
            "record": _RECORD,
            "workload": self.workload,
            "scheme": self.scheme.to_json(),
            "network": self.network,
            "mode": self.mode,
            "machine": self.machine,
            "online_s": self.online_s,
            "logs": [_log_json(log) for log in self.logs],
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> RunLog:
        """The run of a line; KeyError, TypeError or ValueError where it is none."""
        return cls(
            row["workload"],
            Scheme(**row["scheme"]),
            row["network"],
            row["mode"],
            row["machine"],
            tuple(row["online_s"]),
            tuple(map(_log, row["logs"])),
        )


def write_logs(path: str | os.PathLike[str], runs: Sequence[RunLog]) -> Path:
    """`path` holds exactly these runs, whole or not at all; its folder is made. What was there before is replaced."""
    rows = [json.dumps(plain(run), separators=(",", ":"), allow_nan=False, ensure_ascii=False) for run in runs]
    return write_whole(path, "".join(row + "\n" for row in rows))


def read_logs(path: str | os.PathLike[str]) -> list[RunLog]:
    """The runs of a file that `write_logs` wrote.

    Raises FileNotFoundError for a missing file, ValueError for one that was cut short, damaged or written by something
    else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no message log at {path}; mpc-pareto bench attention --log {path} writes one")
    lines = path.read_bytes().split(b"\n")
    if lines[-1] or len(lines) < 2:
        raise ValueError(f"{path} is empty or was cut short; record the run again with bench --log")
    return [_read_line(f"{path}, line {number}", line) for number, line in enumerate(lines[:-1], start=1)]


def _read_line(where: str, line: bytes) -> RunLog:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is no message log, or damaged ({error}); record it with bench --log") from error
    kind = row.get("record") if isinstance(row, dict) else None
    if kind != _RECORD:
        raise ValueError(f"{where} is no message log but {kind or 'something else'}; bench --log writes message logs")
    if row.get("schema") != SCHEMA:
        raise ValueError(f"{where} has schema {row.get('schema')}; this program reads schema {SCHEMA}")
    try:
        return RunLog.from_json(row)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{where} is damaged ({type(error).__name__}: {error}); record the run again") from error


def _log_json(log: MessageLog) -> dict[str, Any]:
    return {
        "party": log.party,
        "parties": log.parties,
        "transport": log.transport,
        "start_s": log.start_s,
        "online_s": log.online_s,
        "dealer_s": log.dealer_s,
        "entries": [_entry_json(entry) for entry in log.entries],
        "spans": [asdict(span) for span in log.spans],
    }


def _log(row: Mapping[str, Any]) -> MessageLog:
    entries, spans = tuple(map(_entry, row["entries"])), tuple(Span(**span) for span in row["spans"])
    return MessageLog(**{**row, "entries": entries, "spans": spans})


def _entry_json(entry: LogEntry) -> dict[str, Any]:
    """A message or a correlation, under the name of what it is; a correlation has no seconds."""
    where = {"op": entry.op, "site": entry.site}
    if isinstance(entry.event, Correlation):
        return {**where, "correlation": asdict(entry.event)}
    seconds = {"compute_s": entry.compute_s, "wait_s": entry.wait_s, "start_s": entry.start_s}
    return {**where, "message": asdict(entry.event), **seconds, "of_dealer": entry.of_dealer}


def _entry(row: Mapping[str, Any]) -> LogEntry:
    if "correlation" in row:
        given = row["correlation"]
        event: Event = Correlation(given["kind"], given["dealer_bytes"], _tuples(given["sizes"]))
        return LogEntry(row["op"], row["site"], event, 0.0, 0.0)
    given = row["message"]
    event = Message(given["collective"], tuple(given["payload_bytes"]), given["root"], given["phase"])
    seconds = row["compute_s"], row["wait_s"], row["of_dealer"], row["start_s"]
    return LogEntry(row["op"], row["site"], event, *seconds)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
