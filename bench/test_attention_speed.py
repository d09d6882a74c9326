"""Attention kinds as pytest-benchmark cases: `pytest bench` predicts, `pytest bench -m parties` measures.

Traffic and online seconds are in `extra_info` of the saved JSON (`--benchmark-json`, `--benchmark-autosave`). What is
timed is a whole call: for a measured case with sharing of weights and input, and the reveal; rows compare on that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.attention import AttentionShape, attention_layer, traffic_json, unit_input
from bench.secure_run import SecureRun, run_module
from models.kinds import KINDS
from mpc.parties import Parties
from mpc.reading import shape_reading
from mpc.scheme import Scheme
from mpc.trace import Trace

SHAPE = AttentionShape(tokens=65, dim=256, heads=4)
INPUT_SHAPE = (SHAPE.batch, SHAPE.tokens, SHAPE.dim)


SCHEMES = [Scheme(), Scheme("tuned", transport="direct")]


@pytest.fixture(scope="module", params=SCHEMES, ids=lambda scheme: str(scheme.name))
def parties(request: pytest.FixtureRequest) -> Iterator[Parties]:
    """Two parties of each scheme for all measured cases."""
    with Parties(request.param, deadline_s=250) as started:
        yield started


def _phases(traffic: dict[str, Any]) -> dict[str, Any]:
    """Rounds, bytes and hops of every phase, the largest over parties."""
    names = ("setup", "offline", "online")
    return {name: {count: traffic[name][count] for count in ("rounds", "bytes", "hops")} for name in names}


def _timed(benchmark: BenchmarkFixture, function: Callable[..., Any], *arguments: Any) -> Any:
    """What the last of three timed calls gave, after one that is not timed."""
    return benchmark.pedantic(function, arguments, rounds=3, warmup_rounds=1)  # type: ignore[no-untyped-call]


@pytest.mark.benchmark(group="attention, predicted")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: str(scheme.name))
def test_predict_attention(benchmark: BenchmarkFixture, kind: str, scheme: Scheme) -> None:
    layer = attention_layer(kind, SHAPE)
    trace: Trace = _timed(benchmark, shape_reading, layer, INPUT_SHAPE)
    benchmark.extra_info |= {"kind": kind, "mode": "predicted", "scheme": scheme.to_json()}
    benchmark.extra_info |= {**_phases(trace.traffic(scheme).to_json())}


@pytest.mark.parties
@pytest.mark.benchmark(group="attention, measured")
@pytest.mark.parametrize("kind", KINDS)
def test_measure_attention(benchmark: BenchmarkFixture, parties: Parties, kind: str) -> None:
    layer, x = attention_layer(kind, SHAPE), unit_input(SHAPE)
    run: SecureRun = _timed(benchmark, run_module, parties, layer, x)
    benchmark.extra_info |= {"kind": kind, "mode": "measured", "scheme": run.scheme.to_json()}
    benchmark.extra_info |= {**_phases(traffic_json(run)), "online_s": run.online_s}
    assert run.traffic == shape_reading(layer, INPUT_SHAPE).traffic(run.scheme)
