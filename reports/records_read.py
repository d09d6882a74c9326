"""What a run directory must hold for the report, and reading it.

Every file may be absent. Keys beyond the declared ones are ignored; a missing key, a value of the wrong type, NaN or an
unknown schema is an error that names file, line and key. Where a file holds a record twice (same identity), the later
one counts, so that a resumed run may append.

| file | a record | identity |
|---|---|---|
| attention.jsonl | `AttentionRecord` a line; measured, and replayed on other networks | kind, shape, scheme, network |
| networks.jsonl | `CandidateRecord` a line | name |
| calibration.json | one `CalibrationRecord` | |
| search.jsonl | `SearchEpochRecord` a line | objective, seed, epoch |
| cross_table.json | one `CrossTableRecord` | |
| manifest.json | anything; `versions`, `machine`, `commit`, `arguments`, `seeds` are shown | |

All seconds are those of the slowest party. Accuracies, agreements and errors are fractions in 0..1. `None` means not
measured, never 0.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypedDict

from reports.conform import conform

SCHEMA = 1


class PhaseRecord(TypedDict):
    """Traffic of one phase: the largest value over parties, and all of them in `per_party`."""

    rounds: int
    bytes: int
    hops: int
    per_party: list[Any]


class SpreadRecord(TypedDict):
    """Median and interquartile range of n runs, in seconds; `samples` holds the raw values where they were kept."""

    median: float
    iqr: float
    n: int


class MeasuredRecord(SpreadRecord):
    """`mode` is measured, replayed, emulated-transport or emulated-link."""

    mode: str


class IntervalRecord(TypedDict):
    """A predicted number of seconds with its 5 % and 95 % quantiles."""

    p50: float
    p05: float
    p95: float


class SchemeRecord(TypedDict):
    """`Scheme.to_json()`."""

    name: str
    parties: int
    functions: str
    dealer: str
    transport: str
    weights: str
    precision_bits: int


class ShapeRecord(TypedDict):
    """One attention layer, projections included."""

    tokens: int
    dim: int
    heads: int
    batch: int


class AttentionSeconds(TypedDict):
    """Seconds of a whole batch: online phase, dealer, both; the last two are None where the mode cannot tell."""

    online: SpreadRecord
    dealer: SpreadRecord | None
    total: SpreadRecord | None


class AttentionRecord(TypedDict):
    """One attention kind on one network: `"record": "attention"`."""

    schema: int
    record: str
    workload: str
    kind: str
    shape: ShapeRecord
    scheme: SchemeRecord
    network: str
    mode: str
    online: PhaseRecord
    offline: PhaseRecord
    setup: PhaseRecord
    seconds: AttentionSeconds
    seconds_per_image: float
    peak_bytes: int | None
    max_abs_error: float | None
    machine: dict[str, Any]


class TestedRecord(TypedDict, total=False):
    """How many images an accuracy was counted on, where that is known."""

    test_images: int


class CandidateRecord(TestedRecord):
    """One trained network: `"record": "candidate"`.

    `name` is short (it labels points, about 14 characters) and unique. `found_by` is a family such as `uniform`,
    `mpcvit/l1` or `mpcvit/latency@cheetah-wan`. `kinds` holds, for each layer, the kind of each head. `accuracy` is
    plain top-1 on `test_images` test images; the `secure_*` values come from `secure_images` images. `seconds`,
    `measured_s` and `by_op_s` are keyed by network and are online seconds for one image (batch 1); `by_op_s` splits the
    run behind `measured_s`.
    """

    schema: int
    record: str
    name: str
    found_by: str
    seed: int
    ratio: float | None
    kinds: list[list[str]]
    params: int
    macs: int
    accuracy: float
    secure_accuracy: float | None
    secure_images: int
    agreement: float | None
    max_logit_difference: float | None
    min_plain_margin: float | None
    seconds: dict[str, IntervalRecord]
    measured_s: dict[str, MeasuredRecord]
    by_op_s: dict[str, dict[str, float]]
    online: PhaseRecord
    scheme: SchemeRecord
    machine: dict[str, Any]


class FitPointRecord(TypedDict):
    """One workload, measured or replayed, beside its prediction."""

    what: str
    shape: Any
    network: str
    measured_s: float
    predicted_s: float


class CalibrationRecord(TypedDict):
    """The fitted cost model: `"record": "calibration"`. `median_error` and `p90_error` are relative, on `held_out`."""

    schema: int
    record: str
    coefficients: dict[str, Any]
    fit: list[FitPointRecord]
    held_out: list[FitPointRecord]
    median_error: float
    p90_error: float
    scheme: SchemeRecord
    machine: dict[str, Any]


class SearchEpochRecord(TypedDict):
    """One epoch of a search: `"record": "search_epoch"`; `p_relu_softmax[layer][head]` after the epoch.

    `accuracy` (validation) and the latency values are None where they were not computed.
    """

    schema: int
    record: str
    objective: str
    seed: int
    epoch: int
    loss: float
    cross_entropy: float
    latency_s: float | None
    latency_gradient_norm: float | None
    accuracy: float | None
    p_relu_softmax: list[list[float]]


class CrossRowRecord(TypedDict):
    """Networks found for one objective, run on every network."""

    found_for: str
    ratio: float | None
    seed: int
    seconds: dict[str, float]
    relu_softmax_heads: list[int]


class CrossTableRecord(TypedDict):
    """Found for one network, run on another: `"record": "cross_table"`."""

    schema: int
    record: str
    rows: list[CrossRowRecord]
    verdict: str


@dataclass(frozen=True, slots=True)
class Run:
    """The records of a run directory; `missing` and `notes` are sentences for the page."""

    attention: tuple[AttentionRecord, ...]
    candidates: tuple[CandidateRecord, ...]
    calibration: CalibrationRecord | None
    search: tuple[SearchEpochRecord, ...]
    cross_table: CrossTableRecord | None
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
    manifest_path = run_dir / "manifest.json"
    manifest = _decode(manifest_path.read_text("utf-8"), "manifest.json") if manifest_path.exists() else {}
    found = {
        "attention.jsonl: attention kinds": attention,
        "networks.jsonl: candidates, fronts and breakdown by op": candidates,
        "calibration.json: error of the cost model, fitted and held out": calibration,
        "search.jsonl: course of the search": search,
        "cross_table.json: found for one network, run on another": cross_table,
        "manifest.json: versions, machine, commit": manifest,
    }
    missing = tuple(what for what, records in found.items() if not records)
    return Run(attention, candidates, calibration, search, cross_table, manifest, missing, tuple(notes))


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
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        known = f"this version reads schema {SCHEMA}"
        raise ValueError(f"{where} is no record of a known schema; {known}: update mpc-pareto or repeat the run")
    if record.get("record") != kind:
        raise ValueError(f"{where} is a {record.get('record')!r} record, expected {kind!r}")
    conform(record, declared, where)
