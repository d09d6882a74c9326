from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nas.jobs import Job, JobError, run_jobs

ROOT = Path(__file__).resolve().parents[2]


def count(upto: int, on_epoch: Callable[[dict[str, Any]], None]) -> int:
    for epoch in range(upto):
        on_epoch({"epoch": epoch})
    return upto * 10


def fail(message: str, on_epoch: Callable[[dict[str, Any]], None]) -> None:
    raise ValueError(message)


def threads() -> int:
    import torch

    return torch.get_num_threads()


def test_results_come_in_job_order_and_reports_reach_the_parent() -> None:
    heard: list[tuple[str, int]] = []
    done: list[str] = []
    jobs = [Job(f"job {n}", count, {"upto": n}) for n in (3, 1, 2)]
    results = run_jobs(
        jobs,
        2,
        lambda job, record: heard.append((job.name, record["epoch"])),
        lambda job, result: done.append(job.name),
    )
    assert results == [30, 10, 20]
    assert sorted(heard) == [("job 1", 0), ("job 2", 0), ("job 2", 1), ("job 3", 0), ("job 3", 1), ("job 3", 2)]
    assert sorted(done) == ["job 1", "job 2", "job 3"]


@pytest.mark.slow
def test_a_worker_has_one_torch_thread() -> None:
    assert run_jobs([Job("threads", threads, reports=False)], 1) == [1]


def test_the_first_failure_ends_all_with_its_own_traceback() -> None:
    started_s = time.monotonic()
    with pytest.raises(JobError, match=r"bad failed:\n(?s:.)*in fail\n(?s:.)*ValueError: the reason"):
        run_jobs([Job("bad", fail, {"message": "the reason"}), Job("long", _sleep, {"seconds": 300}, reports=False)], 2)
    assert time.monotonic() - started_s < 120


def _sleep(seconds: float) -> None:
    time.sleep(seconds)


def test_a_worker_that_dies_is_reported() -> None:
    with pytest.raises(JobError, match=r"victim: its worker process died with exit code -9"):
        run_jobs([Job("victim", _die, reports=False)], 1)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_no_jobs_give_no_results() -> None:
    assert run_jobs([], 2) == []


def test_no_workers_are_refused() -> None:
    with pytest.raises(ValueError, match="workers must be >= 1"):
        run_jobs([Job("root", math.sqrt, reports=False)], 0)


def note_and_wait(file: str) -> None:
    Path(file).write_text(str(os.getpid()))
    time.sleep(300)


def test_a_killed_parent_leaves_no_worker(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    script = tmp_path / "parent.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from nas.jobs import Job, run_jobs\n"
        "from tests.nas.test_jobs import note_and_wait\n"
        "if __name__ == '__main__':\n"
        f"    run_jobs([Job('wait', note_and_wait, {{'file': {str(note)!r}}}, reports=False)], 1)\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)])
    worker = int(_wait_for(lambda: note.read_text() if note.exists() else "", 120))
    parent.kill()
    parent.wait()
    assert _wait_for(lambda: "gone" if not _alive(worker) else "", 30) == "gone"


def _wait_for(probe: Callable[[], str], limit_s: float) -> str:
    deadline_s = time.monotonic() + limit_s
    while time.monotonic() < deadline_s:
        if answer := probe():
            return answer
        time.sleep(0.05)
    raise AssertionError(f"nothing within {limit_s} s")


def _alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
