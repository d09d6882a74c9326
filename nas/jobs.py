"""Several independent runs on a few cores: worker processes of one torch thread each, results in job order."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any


class JobError(RuntimeError):
    """A job failed; the message holds its name and its own traceback."""


@dataclass(frozen=True, slots=True)
class Job:
    """One call `function(**arguments, on_epoch=...)` in a worker; `function` must be importable, arguments picklable.

    With `reports` off, `on_epoch` is not passed.
    """

    name: str
    function: Callable[..., Any]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    reports: bool = True


@dataclass(frozen=True, slots=True)
class _Worker:
    process: BaseProcess
    pipe: Connection


def run_jobs(
    jobs: Sequence[Job],
    workers: int,
    on_epoch: Callable[[Job, dict[str, Any]], None] | None = None,
    on_done: Callable[[Job, Any], None] | None = None,
) -> list[Any]:
    """Run `jobs` on `workers` spawned processes and return their results in job order.

    `on_epoch` hears what a job reports while it runs, `on_done` each result as it comes. The first failure ends all
    others and raises JobError with the failing job's traceback. Workers end with this process, however it ends.
    """
    if workers < 1:
        raise ValueError(f"workers must be >= 1, got {workers}")
    results: dict[int, Any] = {}
    waiting = list(enumerate(jobs))[::-1]
    running: dict[Connection, tuple[int, _Worker]] = {}
    started: list[_Worker] = []
    try:
        for _ in range(min(workers, len(jobs))):
            started.append(_start_worker())
            _hand_out(started[-1], waiting, running)
        while running:
            for pipe in _ready(running):
                index, worker = running[pipe]
                what, value = _receive(worker, jobs[index])
                if what == "epoch":
                    if on_epoch:
                        on_epoch(jobs[index], value)
                    continue
                results[index] = value
                if on_done:
                    on_done(jobs[index], value)
                del running[pipe]
                _hand_out(worker, waiting, running)
    except BaseException:
        for worker in started:
            worker.process.terminate()
        raise
    finally:
        _reap(started)
    return [results[index] for index in range(len(jobs))]


def _hand_out(worker: _Worker, waiting: list[tuple[int, Job]], running: dict[Connection, tuple[int, _Worker]]) -> None:
    if waiting:
        index, job = waiting.pop()
        worker.pipe.send(job)
        running[worker.pipe] = (index, worker)
    else:
        worker.pipe.send(None)


def _ready(running: Mapping[Connection, Any]) -> list[Connection]:
    return [pipe for pipe in wait(list(running)) if isinstance(pipe, Connection)]


def _receive(worker: _Worker, job: Job) -> tuple[str, Any]:
    """The next message of a worker; a failure, or a worker that is gone, becomes JobError."""
    try:
        what, value = worker.pipe.recv()
    except (EOFError, OSError):
        worker.process.join(timeout=5)
        raise JobError(f"{job.name}: its worker process died with exit code {worker.process.exitcode}") from None
    if what == "failed":
        raise JobError(f"{job.name} failed:\n{value}")
    return what, value


def _start_worker() -> _Worker:
    context = multiprocessing.get_context("spawn")  # forking a process that has torch threads deadlocks
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _reap(workers: Sequence[_Worker]) -> None:
    """Wait for workers that were told to leave or terminated; kill one that does not."""
    for worker in workers:
        worker.process.join(timeout=10)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        worker.pipe.close()


def _work(pipe: Connection) -> None:
    """Body of a worker: run jobs from the pipe until it says None."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C too, and ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _use_one_thread()

    def report(record: dict[str, Any]) -> None:
        pipe.send(("epoch", record))

    try:
        while (job := pipe.recv()) is not None:
            extra = {"on_epoch": report} if job.reports else {}
            pipe.send(("done", job.function(**job.arguments, **extra)))
    except Exception:
        pipe.send(("failed", traceback.format_exc()))


def _use_one_thread() -> None:
    """One torch thread, whether torch is imported already or comes with a job (then it reads the environment)."""
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


def _end_with_parent() -> None:
    """Leave at once when the parent is gone, even if it was killed: nobody would read the result."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
