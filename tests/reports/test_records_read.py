from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cost_models.linear import SCHEMA
from reports.records_read import read_run


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Applies `change` to the first record of a JSON Lines file."""
    first, *rest = path.read_text().splitlines()
    record = json.loads(first)
    change(record)
    path.write_text("\n".join([json.dumps(record), *rest]) + "\n")


def test_a_whole_run_has_nothing_missing(run_dir: Path, synthetic: ModuleType) -> None:
    run = read_run(run_dir)
    assert (run.missing, run.notes) == ((), ())
    assert len(run.attention) == len(synthetic.KINDS) * len(synthetic.LINKS)
    assert len(run.candidates) == 21


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r: r.pop("accuracy"), r"networks\.jsonl line 1 lacks accuracy"),
        (lambda r: r["online"].pop("bytes"), r"line 1\.online lacks bytes"),
        (lambda r: r.update(accuracy="high"), r"line 1\.accuracy is 'high', expected int or float"),
        (lambda r: r.update(secure_images=True), r"secure_images is True, expected int"),
        (lambda r: r["seconds"]["cheetah-wan"].update(p50=None), r"seconds\.cheetah-wan\.p50 is None"),
        (lambda r: r["kinds"].append([3]), r"kinds\[4\]\[0\] is 3, expected str"),
        (lambda r: r.update(accuracy=float("nan")), r"line 1 holds NaN; what was not measured is null"),
        (lambda r: r.update(schema=2), r"line 1 is no record of a known schema"),
        (lambda r: r.update(record="attention"), r"is a 'attention' record, expected 'candidate'"),
    ],
)
def test_a_wrong_record_is_refused_by_place(
    run_dir: Path, change: Callable[[dict[str, Any]], object], says: str
) -> None:
    rewrite(run_dir / "networks.jsonl", change)
    with pytest.raises(ValueError, match=says):
        read_run(run_dir)


def test_what_was_not_measured_may_be_null(run_dir: Path) -> None:
    rewrite(run_dir / "networks.jsonl", lambda r: r.update(secure_accuracy=None, agreement=None, ratio=None))
    assert read_run(run_dir).candidates[0]["agreement"] is None


def test_a_torn_last_line_is_a_note_and_a_torn_inner_line_an_error(run_dir: Path) -> None:
    path = run_dir / "search.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"schema": 1, "rec')
    assert "search.jsonl line 91 is torn" in read_run(run_dir).notes[0]
    path.write_text('{"schema"\n' + whole)
    with pytest.raises(ValueError, match=r"search\.jsonl line 1 is not JSON"):
        read_run(run_dir)


def test_the_later_of_two_equal_identities_counts(run_dir: Path) -> None:
    path = run_dir / "networks.jsonl"
    again = {**json.loads(path.read_text().splitlines()[0]), "accuracy": 0.5}
    with path.open("a") as stream:
        stream.write(json.dumps(again) + "\n")
    candidates = read_run(run_dir).candidates
    assert len(candidates) == 21
    assert candidates[0]["accuracy"] == 0.5


def test_a_calibration_of_the_first_schema_is_refused(run_dir: Path) -> None:
    path = run_dir / "calibration.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 1}))
    known = f"this version reads schema {SCHEMA}"
    with pytest.raises(ValueError, match=rf"calibration\.json is no record of a known schema; {known}"):
        read_run(run_dir)


def test_what_nothing_is_said_of_may_be_null(run_dir: Path) -> None:
    path = run_dir / "calibration.json"
    record = json.loads(path.read_text())
    record["evaluation"]["links"]["points"][0]["repeatability"] = None
    record["evaluation"]["links"]["baselines"]["FLOPs"] = None
    path.write_text(json.dumps(record))
    assert read_run(run_dir).missing == ()
    record["evaluation"]["links"]["points"][0]["p05_s"] = None
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"evaluation\.links\.points\[0\]\.p05_s is None"):
        read_run(run_dir)
