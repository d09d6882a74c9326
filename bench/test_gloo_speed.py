"""What a collective of gloo takes where its threads may take each other's place, and where not: one run, one ratio.

    pytest bench/test_gloo_speed.py -m parties

The parties' own setting is SCHED_BATCH (`mpc.party`); SCHED_OTHER is what a process has by default.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from mpc.parties import Parties, Party
from mpc.scheme import Scheme

WORDS = 16_000
TIMES = 250

if not hasattr(os, "SCHED_BATCH"):
    pytest.skip("policies of scheduling are Linux's", allow_module_level=True)


def all_reduces(_: Party, policy: int, words: int, times: int) -> float:
    """Median seconds of an all_reduce while every thread of this process runs under `policy`."""
    import torch.distributed as dist

    for thread in Path("/proc/self/task").iterdir():
        os.sched_setscheduler(int(thread.name), policy, os.sched_param(0))
    values, seconds = torch.ones(words, dtype=torch.int64), []
    for _time in range(times):
        values.fill_(1)
        start_s = time.perf_counter()
        dist.all_reduce(values)
        seconds.append(time.perf_counter() - start_s)
        assert (values == dist.get_world_size()).all()
    return statistics.median(seconds)


@pytest.fixture(scope="module")
def parties() -> Iterator[Parties]:
    """The same two parties under both policies."""
    with Parties(Scheme(), deadline_s=250) as started:
        yield started


@pytest.mark.parties
@pytest.mark.benchmark(group=f"all_reduce of {WORDS:,} words, {TIMES} times")
@pytest.mark.parametrize("policy", ["SCHED_OTHER", "SCHED_BATCH"])
def test_all_reduce(benchmark: BenchmarkFixture, parties: Parties, policy: str) -> None:
    arguments = [(getattr(os, policy), WORDS, TIMES)] * 2
    seconds = benchmark.pedantic(parties.run, (all_reduces, arguments), rounds=5, warmup_rounds=1)  # type: ignore[no-untyped-call]
    benchmark.extra_info |= {"median_s": max(seconds)}
