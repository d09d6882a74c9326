from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from bench.run_directory import RunDirectory
from cost_models.calibration import default_path
from demo import DemoSettings, demo
from mpc.scheme import Scheme
from tests.small_demo import SETTINGS

pytestmark = [pytest.mark.parties, pytest.mark.slow, pytest.mark.timeout(1500)]


def _start(out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.small_demo", str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def _wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    until_s = time.monotonic() + 600
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until_s, f"{path} did not appear"
        time.sleep(0.05)


def _children(group: int) -> list[int]:
    """Living processes of a process group."""
    alive = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == group and fields[0] != "Z":
                alive.append(int(entry.name))
    return alive


def _finish(out: Path) -> dict:
    process = _start(out)
    stdout, stderr = process.communicate(timeout=600)
    assert process.returncode == 0, stderr
    return json.loads(stdout.splitlines()[-1])


def test_a_killed_demo_resumes_where_it_was_and_leaves_nothing_behind(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    for sign in ("steps/attention.json", "train/softmax/epochs.jsonl", "steps/measure-softmax.json"):
        process = _start(out)
        _wait_for(out / sign, process)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        until_s = time.monotonic() + 10
        while _children(process.pid) and time.monotonic() < until_s:
            time.sleep(0.1)
        assert not _children(process.pid)
    attention = (out / "steps/attention.json").stat().st_mtime_ns
    first = _finish(out)
    assert (out / "steps/attention.json").stat().st_mtime_ns == attention  # measured once, before the first kill
    assert Path(first["page"]).exists()
    assert 1 <= len(first["findings"]) <= 5
    names = {candidate["name"] for candidate in first["candidates"]}
    assert {"softmax", "relu_softmax", "scaling"} <= names
    lines = (out / "networks.jsonl").read_text().splitlines()
    assert len(lines) == len(names)

    kept = default_path(Scheme())
    calibrated = json.loads(kept.read_text()) | {"others_share": 0.0, "kept": "by its owner"}
    kept.write_text(json.dumps(calibrated))
    measured = (out / "steps/measure-scaling.json").stat().st_mtime_ns
    assert _finish(out) == first
    assert (out / "steps/measure-scaling.json").stat().st_mtime_ns == measured  # a finished demo only draws again
    assert json.loads(kept.read_text()) == calibrated


def test_a_run_of_other_settings_is_refused(tmp_path: Path) -> None:
    RunDirectory.start(tmp_path / "run", "demo", SETTINGS.to_json(), SETTINGS.seeds)
    with pytest.raises(ValueError, match=r"secure_images|spec"):
        demo(tmp_path / "run", Console(stderr=True), DemoSettings())
