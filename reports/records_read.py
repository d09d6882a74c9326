"""Reading a run directory for the report.

Every file may be absent. Keys beyond the declared ones are ignored; a missing key, a value of the wrong type, NaN or an
unknown schema is an error that names file, line and key. Where a file holds a record twice (same identity), the later
one counts, so that a resumed run may append. `reports/records.py` says what the files hold.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from cost_models.linear import SCHEMA as CALIBRATION_SCHEMA
from reports.conform import conform
from reports.records import (
    AttentionRecord,
    CalibrationRecord,
    CandidateRecord,
    CrossTableRecord,
    RemeasuredRecord,
    SearchEpochRecord,
    WinnerMapRecord,
)

SCHEMA = 1
SCHEMAS = {"calibration": CALIBRATION_SCHEMA}  # of the kinds that have moved on


@dataclass(frozen=True, slots=True)
class Run:
    """The records of a run directory; `missing` and `notes` are sentences for the page."""

    attention: tuple[AttentionRecord, ...]
    candidates: tuple[CandidateRecord, ...]
    calibration: CalibrationRecord | None
    search: tuple[SearchEpochRecord, ...]
    cross_table: CrossTableRecord | None
    remeasured: tuple[RemeasuredRecord, ...]
    winners: WinnerMapRecord | None
    manifest: Mapping[str, Any]
    missing: tuple[str, ...]
    notes: tuple[str, ...]


def read_run(run_dir: Path) -> Run:
    """Everything that `run_dir` holds for a report. Raises ValueError where a record is not what this module says."""
    if not run_dir.is_dir():
        raise ValueError(f"{run_dir} is not a directory; give the directory that `demo`, `bench` or `search` wrote")
    notes: list[str] = []
    attention = _lines(run_dir / "attention.jsonl", "attention", AttentionRecord, _attention_identity, notes)
    candidates = _lines(run_dir / "networks.jsonl", "candidate", CandidateRecord, lambda r: r["name"], notes)
    search = _lines(
        run_dir / "search.jsonl",
        "search_epoch",
        SearchEpochRecord,
        lambda r: (r["objective"], r["seed"], r["epoch"]),
        notes,
    )
    calibration = _single(run_dir / "calibration.json", "calibration", CalibrationRecord)
    cross_table = _single(run_dir / "cross_table.json", "cross_table", CrossTableRecord)
    remeasured = _lines(run_dir / "remeasured.jsonl", "remeasured", RemeasuredRecord, lambda r: r["name"], notes)
    winners = _single(run_dir / "winners.json", "winner_map", WinnerMapRecord)
    manifest_path = run_dir / "manifest.json"
    manifest = _decode(manifest_path.read_text("utf-8"), "manifest.json") if manifest_path.exists() else {}
    found = {
        "attention.jsonl: attention kinds": attention,
        "networks.jsonl: candidates, fronts and breakdown by op": candidates,
        "calibration.json: error of the cost model on what it never saw": calibration,
        "search.jsonl: course of the search": search,
        "cross_table.json: found for one network, run on another": cross_table,
        "remeasured.jsonl: a search's front, measured": remeasured,
        "winners.json: the fastest by bandwidth and delay": winners,
        "manifest.json: versions, machine, commit": manifest,
    }
    missing = tuple(what for what, records in found.items() if not records)
    known = (attention, candidates, calibration, search, cross_table, remeasured, winners)
    return Run(*known, manifest, missing, tuple(notes))


def _attention_identity(record: Any) -> tuple[str, ...]:
    return (record["kind"], record["network"], json.dumps([record["shape"], record["scheme"]], sort_keys=True))


def _lines(
    path: Path, kind: str, declared: Any, identity: Callable[[Any], object], notes: list[str]
) -> tuple[Any, ...]:
    """The records of a JSON Lines file, the latest of each identity; a torn last line becomes a note."""
    if not path.exists():
        return ()
    lines = path.read_text("utf-8").splitlines()
    latest: dict[object, Any] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path.name} line {number}"
        try:
            record = _decode(line, where)
        except json.JSONDecodeError:
            if number < len(lines):
                raise ValueError(f"{where} is not JSON; remove the line or repeat the run") from None
            notes.append(f"{where} is torn (the run was stopped while writing it) and was left out")
            continue
        _check(record, kind, declared, where)
        latest[identity(record)] = record
    return tuple(latest.values())


def _single(path: Path, kind: str, declared: Any) -> Any:
    if not path.exists():
        return None
    try:
        record = _decode(path.read_text("utf-8"), path.name)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path.name} is not JSON ({error}); repeat the step that wrote it") from None
    _check(record, kind, declared, path.name)
    return record


def _decode(text: str, where: str) -> Any:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{where} holds {constant}; what was not measured is null")

    return json.loads(text, parse_constant=refuse)


def _check(record: Any, kind: str, declared: Any, where: str) -> None:
    schema = SCHEMAS.get(kind, SCHEMA)
    if not isinstance(record, dict) or record.get("schema") != schema:
        known = f"this version reads schema {schema}"
        raise ValueError(f"{where} is no record of a known schema; {known}: update mpc-pareto or repeat the run")
    if record.get("record") != kind:
        raise ValueError(f"{where} is a {record.get('record')!r} record, expected {kind!r}")
    conform(record, declared, where)
