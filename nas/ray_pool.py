"""Candidates evaluated on a Ray cluster, or on a Ray of this machine alone; needs the extra `ray`."""

from __future__ import annotations

import importlib
import math
import os
import traceback
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors.torch import load

from nas.jobs import settled, use_one_thread
from nas.pool import ATTEMPTS, SharedWeights, Task, file_digest


class RayPool:
    """`workers` Ray actors, by default as many as the cluster has room for, until the `with` block ends.

    `address` is `local` (a Ray of this machine, started for the pool), `auto` or HOST:PORT; a Ray that this process has
    joined already is used as it is. `weights` is a safetensors file that goes to Ray's object store once. A worker
    takes the cores and GPUs given, and sees no other GPU; a candidate whose worker dies is tried again. Workers end
    with this process, however it ends. Raises ValueError where Ray is not installed, or the cluster is too small.
    """

    def __init__(
        self,
        workers: int | None = None,
        weights: Path | None = None,
        address: str = "local",
        cores: float = 1,
        gpus: float = 0,
    ) -> None:
        if workers is not None and workers < 1:
            raise ValueError(f"workers must be >= 1, got {workers}")
        self._ray = _ray()
        self.weights_id = None if weights is None else file_digest(weights)
        self._started_ray = not self._ray.is_initialized()
        if self._started_ray:
            _start(self._ray, address, workers, cores)
        try:
            self._workers = _fitting(self._ray.cluster_resources(), workers, cores, gpus)
            content = None if weights is None else np.frombuffer(weights.read_bytes(), np.uint8)
            self._weights = self._ray.put(content)
        except BaseException:
            self.__exit__()
            raise
        self._actor = self._ray.remote(num_cpus=cores, num_gpus=gpus)(_Worker)
        self._idle: list[Any] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for actor in getattr(self, "_idle", ()):
            self._ray.kill(actor)
        if self._started_ray:
            self._ray.shutdown()

    def outcomes(self, tasks: Sequence[Task]) -> Generator[tuple[int, Any], None, None]:
        """As `Pool.outcomes` says."""
        running: dict[Any, tuple[Any, int]] = {}

        def hand_out(index: int) -> None:
            actor = self._idle.pop() if self._idle else self._actor.remote(self._weights)
            running[actor.evaluate.remote(tasks[index])] = (actor, index)

        def answers() -> Iterator[tuple[int, str, Any]]:
            (finished,), _ = self._ray.wait(list(running))
            actor, index = running.pop(finished)
            what, value = self._received(finished)
            if what != "died":
                self._idle.append(actor)
            yield index, what, value

        def has_room() -> bool:
            return bool(self._idle) or len(running) < self._workers

        try:
            yield from settled([task.name for task in tasks], ATTEMPTS, has_room, hand_out, answers)
        finally:
            for actor, _ in running.values():
                self._ray.kill(actor)

    def _received(self, finished: Any) -> tuple[str, Any]:
        """What a worker answers: done, failed, or died where it is gone."""
        errors = self._ray.exceptions
        try:
            what, value = self._ray.get(finished)
        except errors.RayTaskError as error:  # the task could not be read, or its answer not be sent
            return "failed", f" failed:\n{error}"
        except errors.RayError as error:
            return "died", f": its worker died ({error})"
        return what, f" failed:\n{value}" if what == "failed" else value


class _Worker:
    """One process of the cluster; Ray ends it with the process that asked for it."""

    def __init__(self, content: Any) -> None:
        use_one_thread()
        self._weights = None if content is None else SharedWeights(lambda: load(content.tobytes()))

    def evaluate(self, task: Task) -> tuple[str, Any]:
        """Done and the result, or failed and the traceback."""
        try:
            return "done", task.run(None) if self._weights is None else self._weights.evaluate(task)
        except Exception:
            return "failed", traceback.format_exc()


def _ray() -> Any:
    """The package, which publishes too much to be checked against; imported only here."""
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError:
        raise ValueError("this pool needs Ray; install it: pip install 'mpc-pareto[ray]'") from None


def _start(ray: Any, address: str, workers: int | None, cores: float) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports its use to its makers unless told not to
    own = address == "local"
    room = {"num_cpus": math.ceil(workers * cores)} if own and workers else {}
    ray.init(address=address, log_to_driver=False, **room, **({"include_dashboard": False} if own else {}))


def _fitting(resources: dict[str, float], workers: int | None, cores: float, gpus: float) -> int:
    """How many workers the cluster is asked for; ValueError where it will never have room for them."""
    needs = {name: need for name, need in (("CPU", cores), ("GPU", gpus)) if need > 0}
    room = min(int(resources.get(name, 0) / need) for name, need in needs.items())
    if room < (workers or 1):
        has = ", ".join(f"{resources.get(name, 0):g} {name}s" for name in needs)
        raise ValueError(f"the Ray cluster has room for {room} workers ({has}), not for {workers or 1}; ask for fewer")
    return workers or room
