"""Candidates evaluated by several processes: the same results however many there are, and after any of them died."""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from bench.records import read
from nas import ray_pool
from nas.pool import EvaluationError, LocalPool, Pool, evaluate_all, open_pool
from tests.nas import evaluations

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save_file({"w": torch.tensor([0.5, 1.0]), "half": torch.ones(1, dtype=torch.bfloat16)}, path)
    return path


@pytest.fixture(scope="module")
def local() -> Iterator[LocalPool]:
    with LocalPool(2) as pool:
        yield pool


@pytest.fixture
def ray() -> Iterator[None]:
    package: Any = importlib.import_module("ray")
    package.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    package.shutdown()


def test_results_do_not_depend_on_the_number_of_workers(local: LocalPool) -> None:
    with LocalPool(1) as one:
        alone = evaluate_all(evaluations.drawn, [3, 1, 2], one, seed=7)
    assert evaluate_all(evaluations.drawn, [3, 1, 2], local, seed=7) == alone
    assert [result["candidate"] for result in alone] == [3, 1, 2]
    assert {result["threads"] for result in alone} == {1}
    assert len({tuple(result["numbers"]) for result in alone}) == 3
    assert evaluate_all(evaluations.drawn, [3], local, seed=8) != alone[:1]


def test_every_failure_is_told_after_all_others_are_evaluated(local: LocalPool, tmp_path: Path) -> None:
    cache = tmp_path / "evaluations.jsonl"
    with pytest.raises(EvaluationError, match=r"(?s)2 candidates failed, 2 did not; .*in odd_fails") as raised:
        evaluate_all(evaluations.odd_fails, [0, 1, 2, 3], local, cache=cache)
    assert list(raised.value.failures) == ["candidate 1 (1)", "candidate 3 (3)"]
    assert "candidate 3 (3) failed:\nTraceback" in str(raised.value)
    assert "ValueError: 3 is odd" in str(raised.value.failures["candidate 3 (3)"])
    assert sorted(row["result"] for row in read(cache)) == [0, 2]


def test_what_is_cached_is_not_evaluated_again(local: LocalPool, tmp_path: Path) -> None:
    cache, arguments = tmp_path / "evaluations.jsonl", {"folder": str(tmp_path)}
    heard: list[tuple[int, int]] = []
    assert evaluate_all(evaluations.noted, [1, 2, 1], local, arguments=arguments, cache=cache) == [1, 2, 1]
    with cache.open("a") as file:
        file.write('{"schema":1,"record":"eval')  # a killed writer's last row
    with pytest.warns(UserWarning, match="cut short"):
        again = evaluate_all(
            evaluations.noted,
            [2, 3, 1],
            local,
            arguments=arguments,
            cache=cache,
            on_done=lambda done, total: heard.append((done, total)),
        )
    assert again == [2, 3, 1]
    assert [len((tmp_path / name).read_text().split()) for name in ("1", "2", "3")] == [1, 1, 1]
    assert heard == [(2, 3), (3, 3)]
    assert len(read(cache)) == 3


def test_the_cache_tells_seeds_arguments_and_weights_apart(weights: Path, tmp_path: Path) -> None:
    cache, other = tmp_path / "evaluations.jsonl", tmp_path / "other.safetensors"
    save_file({"w": torch.tensor([10.0])}, other)
    with LocalPool(1) as pool:
        for seed, scale in ((0, 1.0), (1, 1.0), (0, 2.0), (0, 1.0)):
            evaluate_all(evaluations.drawn, [1], pool, arguments={"scale": scale}, seed=seed, cache=cache)
    for path, result in ((weights, 3.0), (other, 20.0)):
        with LocalPool(1, path) as pool:
            assert evaluate_all(evaluations.weighed, [2], pool, cache=cache) == [result]
    assert len(read(cache)) == 5


def test_writing_into_the_shared_weights_fails_and_harms_nobody_else(weights: Path) -> None:
    with LocalPool(1, weights) as pool, pytest.raises(EvaluationError, match="wrote into the shared weights") as raised:
        evaluate_all(evaluations.spoilt, [0, 1, 2], pool)
    assert list(raised.value.failures) == ["candidate 1 (1)"]
    with LocalPool(1, weights) as pool:
        with pytest.raises(EvaluationError):
            evaluate_all(evaluations.spoilt, [1], pool)
        assert evaluate_all(evaluations.weighed, [2], pool) == [3.0]


def test_weights_that_change_under_a_pool_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"w": torch.ones(1)}, path)
    with LocalPool(1, path) as pool:
        save_file({"w": torch.zeros(1)}, path)
        with pytest.raises(EvaluationError, match="has changed since its pool was opened"):
            evaluate_all(evaluations.weighed, [1], pool)


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_its_candidate_tried_again(tmp_path: Path) -> None:
    with LocalPool(2) as pool:
        given = {"folder": str(tmp_path), "times": 1}
        assert evaluate_all(evaluations.dies, [0, 1, 2], pool, arguments=given) == [0, 1, 2]
        with pytest.raises(EvaluationError, match=r"candidate 1 \(1\): its worker process died with exit code -9"):
            evaluate_all(evaluations.dies, [0, 1, 2], pool, arguments={**given, "times": 99})
        assert evaluate_all(evaluations.odd_fails, [4, 6], pool) == [4, 6]


def test_what_no_record_holds_and_what_no_worker_imports_is_refused(local: LocalPool) -> None:
    with pytest.raises(EvaluationError, match="result is nan"):
        evaluate_all(evaluations.not_finite, [1], local)
    with pytest.raises(ValueError, match="candidate 0 is a object"):
        evaluate_all(evaluations.odd_fails, [object()], local)
    with pytest.raises(ValueError, match="top level of a module"):
        evaluate_all(lambda candidate: candidate, [1], local)
    assert evaluate_all(evaluations.odd_fails, [], local) == []


def test_unknown_pools_and_a_missing_ray_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no pool 'slurm'; known: local, ray"):
        open_pool("slurm")
    with open_pool("local", 1) as pool:
        assert pool.weights_id is None
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"this pool needs Ray; install it: pip install 'mpc-pareto\[ray\]'"):
        open_pool("ray")


PARENT = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from nas.pool import evaluate_all, open_pool
from tests.nas.evaluations import noted
if __name__ == "__main__":
    with open_pool({where!r}, 2) as pool:
        given = {{"folder": {folder!r}, "wait_s": 1.0}}
        evaluate_all(noted, list(range(100)), pool, arguments=given, cache=Path({folder!r}) / "evaluations.jsonl")
"""


def _killed_parent(where: str, tmp_path: Path) -> set[int]:
    """Kills a process that evaluates when two results are cached; its workers' processes, which must end."""
    cache, script = tmp_path / "evaluations.jsonl", tmp_path / "parent.py"
    script.write_text(PARENT.format(root=str(ROOT), where=where, folder=str(tmp_path)))
    parent = subprocess.Popen([sys.executable, str(script)], cwd=ROOT)
    _wait_for(lambda: cache.exists() and cache.read_bytes().count(b"\n") >= 2, 120)
    parent.kill()
    parent.wait()
    workers = {int(pid) for file in tmp_path.iterdir() if file.name.isdigit() for pid in file.read_text().split()}
    _wait_for(lambda: not any(_alive(worker) for worker in workers), 60)
    return workers


def _resumes(pool: Pool, tmp_path: Path) -> None:
    """Whoever resumes evaluates what is not in the cache, and only that."""
    cache = tmp_path / "evaluations.jsonl"
    cached = {row["candidate"] for row in read(cache)}
    given = {"folder": str(tmp_path), "wait_s": 1.0}
    first = sorted(cached)[:2]
    assert evaluate_all(evaluations.noted, first, pool, arguments=given, cache=cache) == first
    assert [len((tmp_path / str(candidate)).read_text().split()) for candidate in first] == [1, 1]
    assert len(read(cache)) == len(cached)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::bench.records.TornRecordWarning")
def test_a_killed_search_leaves_no_worker_and_goes_on_from_its_cache(local: LocalPool, tmp_path: Path) -> None:
    assert len(_killed_parent("local", tmp_path)) == 2
    _resumes(local, tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own, of what it will change and of sockets at its end
def test_ray_gives_the_results_of_local_processes(ray: None, local: LocalPool, weights: Path, tmp_path: Path) -> None:
    with ray_pool.RayPool(2, weights) as pool, LocalPool(1, weights) as processes:
        expected = evaluate_all(evaluations.weighed, [1, 2, 3], processes)
        assert evaluate_all(evaluations.weighed, [1, 2, 3], pool) == expected
        with pytest.raises(EvaluationError, match="wrote into the shared weights"):
            evaluate_all(evaluations.spoilt, [1], pool)
        assert evaluate_all(evaluations.weighed, [1, 2, 3], pool) == expected
    with ray_pool.RayPool(weights=None) as pool:
        assert evaluate_all(evaluations.drawn, [3, 1], pool) == evaluate_all(evaluations.drawn, [3, 1], local)
        with pytest.raises(EvaluationError, match=r"(?s)candidate 0 \(1\) failed:\nTraceback.*ValueError: 1 is odd"):
            evaluate_all(evaluations.odd_fails, [1, 2], pool)
        given = {"folder": str(tmp_path), "times": 1}
        assert evaluate_all(evaluations.dies, [0, 1, 2], pool, arguments=given) == [0, 1, 2]
        with pytest.raises(EvaluationError, match=r"candidate 1 \(1\): its worker died"):
            evaluate_all(evaluations.dies, [0, 1], pool, arguments={**given, "times": 99})
        assert evaluate_all(evaluations.odd_fails, [4], pool) == [4]
    with pytest.raises(ValueError, match=r"has room for 2 workers \(2 CPUs\), not for 3; ask for fewer"):
        ray_pool.RayPool(3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_killed_search_leaves_no_ray_worker(local: LocalPool, tmp_path: Path) -> None:
    assert len(_killed_parent("ray", tmp_path)) == 2
    _resumes(local, tmp_path)


def _wait_for(probe: Callable[[], bool], limit_s: float) -> None:
    deadline_s = time.monotonic() + limit_s
    while not probe():
        assert time.monotonic() < deadline_s, f"nothing within {limit_s} s"
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
