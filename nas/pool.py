"""Evaluating the candidates of a search on processes of this machine or, with Ray, of many: the results are the same.

Every evaluation starts from generators seeded by what it evaluates, on one torch thread, so neither the number of
workers nor the order in which they finish shows in a result.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from bench.machine import usable_cores
from bench.records import append, plain, read
from nas.jobs import Job, JobError, Workers

ATTEMPTS = (
    2  # a worker may be lost to whatever else runs on its machine; one that dies twice on a candidate has a cause
)


class EvaluationError(JobError):
    """Candidates failed; `failures` holds the name and the error of each. All others were evaluated, and cached."""

    def __init__(self, failures: Mapping[str, JobError], evaluated: int) -> None:
        self.failures = dict(failures)
        reasons = "\n".join(str(failure) for failure in failures.values())
        super().__init__(f"{len(failures)} candidates failed, {evaluated} did not; {reasons}")


@dataclass(frozen=True, slots=True)
class Task:
    """One evaluation, `function(candidate, **arguments)`; `key` says what is evaluated and seeds the generators."""

    name: str
    key: str
    function: Callable[..., Any]
    candidate: Any
    arguments: Mapping[str, Any]

    def run(self, weights: Mapping[str, Tensor] | None) -> Any:
        """The result as JSON holds it; `weights` are passed on by that name where there are any."""
        state = int(self.key[:8], 16)
        random.seed(state)
        np.random.seed(state)
        torch.manual_seed(state)
        shared = {} if weights is None else {"weights": weights}
        return plain(self.function(self.candidate, **shared, **self.arguments), "result")


class Pool(Protocol):
    """Workers that evaluate; `weights_id` tells the weights that they share from others, None where there are none."""

    @property
    def weights_id(self) -> str | None:
        """Digest of the weights."""

    def outcomes(self, tasks: Sequence[Task]) -> Generator[tuple[int, Any], None, None]:
        """The number and the result of every task, as they come; of one that failed, a JobError."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def evaluate_all(
    function: Callable[..., Any],
    candidates: Sequence[Any],
    pool: Pool,
    *,
    arguments: Mapping[str, Any] | None = None,
    seed: int = 0,
    cache: Path | None = None,
    on_done: Callable[[int, int], None] | None = None,
) -> list[Any]:
    """`function(candidate, weights=..., **arguments)` of every candidate, in their order, as JSON holds it.

    `function` is importable by its name and leaves `weights`, the pool's tensors by name, as they are; candidates,
    arguments and results are what a record can hold. Equal candidates are evaluated once. With `cache`, each result is
    a row there as soon as it is known, and what the file has for the same function, candidate, arguments, seed and
    weights is not evaluated again; remove the file when the code of `function` changes. `on_done` hears how many of
    all different candidates are known. Raises EvaluationError for candidates that failed, after all others.
    """
    tasks = _tasks(function, candidates, dict(arguments or {}), seed, pool.weights_id)
    wanted = {task.key: task for task in tasks}
    known = {key: result for key, result in _cached(cache).items() if key in wanted}
    missing = [task for key, task in wanted.items() if key not in known]
    failures: dict[str, JobError] = {}
    if on_done:
        on_done(len(known), len(wanted))
    with closing(pool.outcomes(missing)) as outcomes:
        for index, outcome in outcomes:
            task = missing[index]
            if isinstance(outcome, JobError):
                failures[task.name] = outcome
                continue
            known[task.key] = outcome
            if cache:
                row = {"name": task.name, "candidate": task.candidate, "result": outcome}
                append(cache, {"record": "evaluation", "key": task.key, **row})
            if on_done:
                on_done(len(known), len(wanted))
    if failures:
        raise EvaluationError(failures, len(known))
    return [known[task.key] for task in tasks]


def open_pool(where: str = "local", workers: int | None = None, weights: Path | None = None) -> Pool:
    """A pool by name: `local`, `ray` (started on this machine for the pool), `ray:auto` or `ray:HOST:PORT` to join one.

    Raises ValueError for another name, and where Ray is wanted but not installed.
    """
    kind, _, address = where.partition(":")
    if where == "local":
        return LocalPool(workers, weights)
    if kind == "ray":
        from nas.ray_pool import RayPool

        return RayPool(workers, weights, address or "local")
    raise ValueError(f"there is no pool {where!r}; known: local, ray, ray:auto, ray:HOST:PORT")


class LocalPool:
    """`workers` processes of this machine, one for each core by default, until the `with` block ends.

    `weights` is a safetensors file that each maps into its memory once. A candidate whose worker dies is tried again.
    """

    def __init__(self, workers: int | None = None, weights: Path | None = None) -> None:
        self._workers = Workers(usable_cores() if workers is None else workers)
        self._weights = weights
        self.weights_id = None if weights is None else file_digest(weights)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.close()

    def outcomes(self, tasks: Sequence[Task]) -> Generator[tuple[int, Any], None, None]:
        """As `Pool.outcomes` says."""
        shared = {"weights": self._weights, "weights_id": self.weights_id}
        jobs = [Job(task.name, _evaluate, {"task": task, **shared}, reports=False) for task in tasks]
        return self._workers.outcomes(jobs, attempts=ATTEMPTS)


class SharedWeights:
    """The tensors that one worker evaluates with, read once by `load` and the same for every candidate."""

    def __init__(self, load: Callable[[], dict[str, Tensor]]) -> None:
        self._load = load
        self._tensors: dict[str, Tensor] | None = None

    def evaluate(self, task: Task) -> Any:
        """The result of `task`; RuntimeError where it wrote into the weights, which are then read again."""
        tensors = self._tensors = self._tensors or self._load()
        before = {name: tensor._version for name, tensor in tensors.items()}
        try:
            return task.run(dict(tensors))
        finally:
            written = [name for name, version in before.items() if tensors[name]._version != version]
            if written:
                self._tensors = None
                raise RuntimeError(f"the evaluation wrote into the shared weights ({written[0]}); let it copy them")


def file_digest(path: Path) -> str:
    """SHA-256 of a file; ValueError where there is none."""
    if not path.is_file():
        raise ValueError(f"there are no weights at {path}")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _evaluate(task: Task, weights: Path | None, weights_id: str | None) -> Any:
    """Body of a local worker's job."""
    return task.run(None) if weights is None else _shared(weights, weights_id).evaluate(task)


@lru_cache(maxsize=1)
def _shared(path: Path, weights_id: str | None) -> SharedWeights:
    def load() -> dict[str, Tensor]:
        if file_digest(path) != weights_id:
            raise ValueError(f"{path} has changed since its pool was opened; open a new one")
        return load_file(path)

    return SharedWeights(load)


def _tasks(
    function: Callable[..., Any],
    candidates: Sequence[Any],
    arguments: Mapping[str, Any],
    seed: int,
    weights_id: str | None,
) -> list[Task]:
    name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '<no name>')}"
    if "<" in name:
        raise ValueError(f"workers cannot import {name}; evaluate with a function at the top level of a module")
    asked = {"function": name, "arguments": plain(arguments, "arguments"), "seed": seed, "weights": weights_id}
    tasks = []
    for number, candidate in enumerate(candidates):
        form = plain(candidate, f"candidate {number}")
        identity = json.dumps({**asked, "candidate": form}, sort_keys=True).encode()
        text = getattr(candidate, "name", "") or json.dumps(form, separators=(",", ":"))
        label = f"candidate {number} ({text if len(text) <= 60 else text[:57] + '...'})"
        tasks.append(Task(label, hashlib.sha256(identity).hexdigest(), function, candidate, arguments))
    return tasks


def _cached(cache: Path | None) -> dict[str, Any]:
    if cache is None or not cache.exists():
        return {}
    return {record["key"]: record["result"] for record in read(cache, "evaluation")}
