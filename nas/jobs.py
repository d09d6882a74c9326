"""Several independent runs on a few cores: worker processes of one torch thread each, results in job order."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Self


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
    results: dict[int, Any] = {}
    with Workers(workers) as pool, closing(pool.outcomes(jobs, on_epoch)) as outcomes:
        for index, outcome in outcomes:
            if isinstance(outcome, JobError):
                raise outcome
            results[index] = outcome
            if on_done:
                on_done(jobs[index], outcome)
    return [results[index] for index in range(len(jobs))]


def settled(
    names: Sequence[str],
    attempts: int,
    has_room: Callable[[], bool],
    hand_out: Callable[[int], None],
    answers: Callable[[], Iterable[tuple[int, str, Any]]],
) -> Generator[tuple[int, Any], None, None]:
    """The number and the result of every job of `names`, as they come; of one that failed, a JobError instead.

    `hand_out` starts a job where `has_room`; `answers` waits, and gives for jobs that have ended their number, `done`,
    `failed` or `died`, and the result or what went wrong. A job that died is handed out again until `attempts` were
    made.
    """
    waiting, running = list(range(len(names)))[::-1], 0
    attempts_left = [attempts] * len(names)
    while waiting or running:
        while waiting and has_room():
            hand_out(waiting.pop())
            running += 1
        for index, what, value in answers():
            running -= 1
            attempts_left[index] -= what == "died"
            if what == "died" and attempts_left[index]:
                waiting.append(index)
                continue
            yield index, value if what == "done" else JobError(f"{names[index]}{value}")


class Workers:
    """Up to `count` spawned processes, started as jobs need them and kept for later ones until the `with` block ends.

    They end with this process, however it ends.
    """

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ValueError(f"workers must be >= 1, got {count}")
        self._count = count
        self._idle: list[_Worker] = []
        self._busy: dict[Connection, tuple[_Worker, int]] = {}  # what each pipe leads to: a worker, its job's number

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends all workers; those that are still at work do not finish it."""
        for worker in self._idle:
            with suppress(OSError):  # one that has died hears nothing
                worker.pipe.send(None)
        self._end_busy()
        _reap(self._idle)
        self._idle.clear()

    def outcomes(
        self, jobs: Sequence[Job], on_epoch: Callable[[Job, dict[str, Any]], None] | None = None, attempts: int = 1
    ) -> Generator[tuple[int, Any], None, None]:
        """The number and the result of every job, as they come; of one that failed, a JobError in place of a result.

        A job whose worker dies is given to another one until `attempts` were made. Close the iterator to end the jobs
        that still run, and their workers.
        """
        try:
            yield from settled(
                [job.name for job in jobs],
                attempts,
                lambda: bool(self._idle) or len(self._busy) < self._count,
                lambda index: self._hand_out(jobs[index], index),
                lambda: self._answers(jobs, on_epoch),
            )
        finally:
            self._end_busy()

    def _answers(
        self, jobs: Sequence[Job], on_epoch: Callable[[Job, dict[str, Any]], None] | None
    ) -> Iterator[tuple[int, str, Any]]:
        """What workers that have come to an end say now; epochs are passed on."""
        for pipe in _ready(self._busy):
            worker, index = self._busy[pipe]
            what, value = _receive(worker)
            if what == "epoch":
                if on_epoch:
                    on_epoch(jobs[index], value)
                continue
            del self._busy[pipe]
            if what != "died":
                self._idle.append(worker)
            yield index, what, value

    def _hand_out(self, job: Job, index: int) -> None:
        """Gives `job` to an idle worker, or to a new one where there is none that lives."""
        while self._idle:
            worker = self._idle.pop()
            try:
                worker.pipe.send(job)
            except OSError:
                _reap([worker])
                continue
            break
        else:
            worker = _start_worker()
            worker.pipe.send(job)
        self._busy[worker.pipe] = (worker, index)

    def _end_busy(self) -> None:
        workers = [worker for worker, _ in self._busy.values()]
        for worker in workers:
            worker.process.terminate()
        _reap(workers)
        self._busy.clear()


def _ready(pipes: Iterable[Connection]) -> list[Connection]:
    return [pipe for pipe in wait(list(pipes)) if isinstance(pipe, Connection)]


def _receive(worker: _Worker) -> tuple[str, Any]:
    """The next message of a worker: epoch, done, failed, or died where it is gone."""
    try:
        what, value = worker.pipe.recv()
    except (EOFError, OSError):
        worker.process.join(timeout=5)
        died = f": its worker process died with exit code {worker.process.exitcode}"
        _reap([worker])
        return "died", died
    return what, f" failed:\n{value}" if what == "failed" else value


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
    """Body of a worker: run jobs from the pipe until it says None or closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C too, and ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    use_one_thread()

    def report(record: dict[str, Any]) -> None:
        pipe.send(("epoch", record))

    while (packed := _next_message(pipe)) is not None:
        try:
            job = pickle.loads(packed)  # here, so that a function that cannot be imported is a failure of its job
            if job is None:
                return
            extra = {"on_epoch": report} if job.reports else {}
            pipe.send(("done", job.function(**job.arguments, **extra)))
        except Exception:
            pipe.send(("failed", traceback.format_exc()))


def _next_message(pipe: Connection) -> bytes | None:
    try:
        return pipe.recv_bytes()
    except EOFError:  # the parent has closed its end
        return None


def use_one_thread() -> None:
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
