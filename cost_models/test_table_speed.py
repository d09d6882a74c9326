"""Latency tables as pytest-benchmark cases: architectures a second of a lookup, milliseconds of a relaxed step.

`pytest cost_models`; figures are in `extra_info` of the saved JSON. Everything runs on one thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.machine import this_machine
from cost_models.latency_term import mixture_latency
from cost_models.linear import POOLED, CostModel, Spread
from cost_models.vit_table import vit_branch_table
from models.spec import BlockSpec, ViTSpec
from mpc.network import network
from mpc.scheme import Scheme

SCHEME = Scheme("tuned", transport="direct")
COST_MODEL = CostModel(
    {POOLED: {"rounds": 2e-4, "ring_bytes": 1e-9, "macs": 1e-9}},  # any figures: seconds are not what is measured
    SCHEME,
    this_machine().to_json(),
    Spread(0.05, 0.1, 0.0, (-1.5, -0.7, 0.7, 1.5)),
)
LINK = network("cheetah-wan")
ARCHITECTURES = 1_000_000


def _timed(benchmark: BenchmarkFixture, function: Callable[..., Any], *arguments: Any) -> float:
    """Median seconds of ten calls, after one that is not timed."""
    torch.set_num_threads(1)
    benchmark.pedantic(function, arguments, rounds=10, warmup_rounds=1)  # type: ignore[no-untyped-call]
    return float(benchmark.stats.stats.median) if benchmark.stats else float("nan")


@pytest.mark.benchmark(group="latency table")
def test_look_up_a_million_architectures(benchmark: BenchmarkFixture) -> None:
    """12 blocks: 1 to 6 heads or none, 4 widths of the MLP or none."""
    attention = [*(BlockSpec(("softmax",) * heads, 32, 192) for heads in range(1, 7)), None]
    mlp = [*(BlockSpec(("softmax",), 32, width) for width in (192, 384, 576, 768)), None]
    spec = ViTSpec(32, 4, 192, 10, (BlockSpec(("softmax",), 32, 192),), residual="pre_norm")
    table = vit_branch_table(spec, [attention] * 12, [mlp] * 12, COST_MODEL)
    draw = np.random.default_rng(0)
    choices_AS = draw.integers(0, [len(slot.choices) for slot in table.slots], (ARCHITECTURES, len(table.slots)))
    seconds = _timed(benchmark, table.seconds, choices_AS, LINK)
    benchmark.extra_info |= {"slots": len(table.slots), "architectures_per_s": ARCHITECTURES / seconds}


@pytest.mark.benchmark(group="relaxed latency")
@pytest.mark.parametrize(
    ("layers", "heads", "kinds"),
    [(7, 4, ("relu_softmax", "scaling")), (12, 12, ("softmax", "relu_softmax", "scaling"))],
    ids=["7x4x2", "12x12x3"],
)
def test_expected_seconds_and_their_gradient(
    benchmark: BenchmarkFixture, layers: int, heads: int, kinds: tuple[str, ...]
) -> None:
    """What a step of a differentiable search pays for its latency term."""
    spec = ViTSpec(32, 4, 32 * heads, 10, (BlockSpec(("softmax",) * heads, 32, 32 * heads),) * layers)
    latency = mixture_latency(spec, kinds, COST_MODEL, SCHEME, LINK)
    theta_LHK = torch.zeros(layers, heads, len(kinds), requires_grad=True)

    def step() -> None:
        latency.expected_s(theta_LHK.softmax(-1)).backward()  # type: ignore[no-untyped-call]

    seconds = _timed(benchmark, step)
    benchmark.extra_info |= {"layers": layers, "heads": heads, "kinds": kinds, "step_ms": 1e3 * seconds}
