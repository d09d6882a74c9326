"""How fast a network is counted, as pytest-benchmark cases: `pytest bench/test_predict_speed.py`.

Nothing is asserted of seconds. `extra_info` of the saved JSON holds ratios, which say more across machines: of the
whole command to importing torch and timm, and of what is asked of a traced network to its reading. In a round nothing
is remembered of the rounds before: neither descriptions of operations nor their closed forms.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from models.names import build, input_shape
from mpc.reading import shape_reading
from mpc.scheme import Scheme
from mpc.tensor import forget_descriptions
from mpc.trace import Trace, forget_closed_forms
from mpc.traffic import Traffic

ROOT = Path(__file__).resolve().parent.parent
NAME = "timm:deit_tiny_patch16_224"
SCHEMES = [Scheme(), Scheme("tuned", transport="direct"), Scheme(parties=3), Scheme(functions="released")]
IMPORTS = "import torch, timm"
COMMAND = f"import sys, cli; sys.argv = ['mpc-pareto', 'predict', {NAME!r}]; cli.main()"
Counted = tuple[Traffic, dict[str, Traffic], dict[str, Traffic]]


def _traced(name: str) -> Trace:
    network = build(name, draws=False)
    return shape_reading(network, input_shape(network))


def _counted(trace: Trace, scheme: Scheme) -> Counted:
    """All that `predict` shows of a scheme's traffic."""
    return trace.traffic(scheme), trace.by_op(scheme), trace.by_module(scheme)


def _forget() -> None:
    forget_descriptions()
    forget_closed_forms()


def _timed(benchmark: BenchmarkFixture, function: Callable[[], Any], rounds: int = 9) -> Any:
    """What the last call gave; nothing is remembered of the call before."""
    return benchmark.pedantic(function, setup=_forget, rounds=rounds, warmup_rounds=1)  # type: ignore[no-untyped-call]


def _statistics(benchmark: BenchmarkFixture) -> Any:
    """What was made of the seconds of all rounds, which are its `data`."""
    assert benchmark.stats is not None, "nothing was timed yet"
    return benchmark.stats


def _process_s(code: str) -> float:
    start_s = perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
    return perf_counter() - start_s


def _reading_s() -> float:
    """Median seconds from the name to the trace."""
    seconds = []
    for _ in range(5):
        _forget()
        start_s = perf_counter()
        _traced(NAME)
        seconds.append(perf_counter() - start_s)
    return median(seconds)


@pytest.mark.benchmark(group="predict, whole command")
def test_predict_command(benchmark: BenchmarkFixture) -> None:
    imports_s: list[float] = []
    benchmark.pedantic(  # type: ignore[no-untyped-call]
        lambda: _process_s(COMMAND), setup=lambda: imports_s.append(_process_s(IMPORTS)), rounds=3, warmup_rounds=1
    )
    command_s = _statistics(benchmark)["data"]
    ratios = [command / imports for command, imports in zip(command_s, imports_s[-3:], strict=True)]
    benchmark.extra_info |= {"command_to_imports": median(ratios), "imports_s": imports_s[-3:]}


@pytest.mark.benchmark(group="predict, from the name")
@pytest.mark.parametrize("scheme", SCHEMES[:2], ids=lambda scheme: str(scheme.name))
def test_predict_from_the_name(benchmark: BenchmarkFixture, scheme: Scheme) -> None:
    whole, by_op, _ = _timed(benchmark, lambda: _counted(_traced(NAME), scheme))
    assert sum(by_op.values(), Traffic.zero(scheme.parties)) == whole


@pytest.mark.benchmark(group="predict, further scheme of a traced network")
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: f"{scheme.name}-{scheme.functions}-{scheme.parties}")
def test_predict_further_scheme(benchmark: BenchmarkFixture, scheme: Scheme) -> None:
    reading_s, trace = _reading_s(), _traced(NAME)
    whole, _, by_module = _timed(benchmark, lambda: _counted(trace, scheme))
    benchmark.extra_info |= {"scheme": scheme.to_json(), "to_reading": _statistics(benchmark)["median"] / reading_s}
    assert sum(by_module.values(), Traffic.zero(scheme.parties)) == whole
