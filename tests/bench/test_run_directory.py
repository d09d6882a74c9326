"""Run directories: a manifest that says what was run, and a resume that computes nothing twice."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from bench import run_directory
from bench.run_directory import RunDirectory, write_json

ARGUMENTS = {"network": "cheetah-wan", "ratios": (0.25, 0.5)}


def start(path: Path, seeds: tuple[int, ...] = (0,), **changes: Any) -> RunDirectory:
    return RunDirectory.start(path / "run", "search", {**ARGUMENTS, **changes}, seeds)


def test_the_manifest_names_what_the_run_depends_on(tmp_path: Path) -> None:
    start(tmp_path)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["verb"] == "search"
    assert manifest["arguments"] == {"network": "cheetah-wan", "ratios": [0.25, 0.5]}
    assert manifest["seeds"] == [0]
    assert {"torch", "crypten", "mpc-pareto"} <= set(manifest["versions"])
    assert manifest["machine"]["cores"] >= 1
    assert manifest["machine"]["torch_threads"] >= 1
    assert "commit" in manifest
    assert manifest["device"]["type"] in ("cpu", "cuda")
    assert (manifest["device"]["type"] == "cuda") == bool(manifest["device"]["gpus"])


def test_a_step_is_computed_once_and_returned_alike(tmp_path: Path) -> None:
    calls: list[int] = []

    def compute() -> dict[str, Any]:
        calls.append(1)
        return {"pair": (1, 2)}

    assert start(tmp_path).step("search.0", compute) == {"pair": [1, 2]}
    assert start(tmp_path).step("search.0", compute) == {"pair": [1, 2]}
    assert len(calls) == 1


def test_a_step_that_fails_is_done_again(tmp_path: Path) -> None:
    run = start(tmp_path)
    with pytest.raises(ZeroDivisionError):
        run.step("fit", lambda: 1 // 0)
    assert not run.done("fit")
    assert run.step("fit", lambda: 3) == 3
    assert run.done("fit")


def test_step_names_cannot_leave_the_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="file name"):
        start(tmp_path).step("../fit", lambda: 1)


def test_other_arguments_are_refused_by_name(tmp_path: Path) -> None:
    start(tmp_path)
    with pytest.raises(ValueError, match=r"network was 'cheetah-wan', is 'cheetah-lan'\); repeat its arguments"):
        start(tmp_path, network="cheetah-lan")
    with pytest.raises(ValueError, match=r"seeds was \[0\], is \[1\]"):
        start(tmp_path, seeds=(1,))


def test_resuming_elsewhere_is_noted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(tmp_path)
    monkeypatch.setattr(run_directory, "versions", lambda: {"torch": "9"})
    with pytest.warns(UserWarning, match="different versions"):
        start(tmp_path)
    assert [note["versions"] for note in start(tmp_path).manifest["resumed"]] == [{"torch": "9"}]


def test_a_manifest_of_an_earlier_version_is_resumed_without_a_warning(tmp_path: Path) -> None:
    manifest = dict(start(tmp_path).manifest)
    del manifest["device"]  # which earlier versions did not note
    write_json(tmp_path / "run" / "manifest.json", manifest)
    assert start(tmp_path).manifest == manifest


def test_a_write_that_is_interrupted_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = write_json(tmp_path / "front" / "1.json", {"found": 1})

    def killed(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        write_json(target, {"found": 2})
    assert json.loads(target.read_text()) == {"found": 1}
    assert list(target.parent.iterdir()) == [target]


def test_a_folder_without_manifest_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not a run"):
        RunDirectory.existing(tmp_path)


def test_records_of_a_run_are_empty_before_the_first(tmp_path: Path) -> None:
    run = start(tmp_path)
    assert run.records("samples") == []
    run.append("samples", {"record": "sample", "seconds": 0.5})
    assert [record["seconds"] for record in RunDirectory.existing(run.path).records("samples")] == [0.5]
