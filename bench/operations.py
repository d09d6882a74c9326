"""The operations workload: each non-linear function alone, on unit-variance values of one length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.attention import seconds_json, traffic_json, where
from bench.health import health_of
from bench.machine import this_machine
from bench.running import Running, ranges_for, run_in_turn, schemes_of
from bench.secure_run import SecureRun
from mpc.operators import row_normalize
from mpc.ranges import Ranges
from mpc.scheme import Scheme

ROW = 64  # entries of a row, for functions that work on rows

# name -> what is computed on x, rows of ROW unit-variance values
OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "multiply": lambda x: x * x,
    "square": torch.square,
    "relu": F.relu,
    "maximum": lambda x: x.amax(-1),
    "exp": lambda x: torch.exp(x / 2 - 2),
    "reciprocal": lambda x: torch.reciprocal(x.abs() + 1),
    "inverse_square_root": lambda x: torch.rsqrt(x.square() + 0.5),
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "softmax": lambda x: x.softmax(-1),
    "row_normalize": lambda x: row_normalize(x.abs(), 2.0**-16),
    "layer_norm": lambda x: F.layer_norm(x, (ROW,)),
}


class Operation(nn.Module):
    """One of OPERATIONS as a module."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        """The operation, on rows of values."""
        return OPERATIONS[self.name](x)


def demand_rows(elements: int) -> None:
    """Raises ValueError unless `elements` values fill whole rows."""
    if elements % ROW:
        raise ValueError(f"elements must be a multiple of {ROW}, got {elements}; take {elements // ROW * ROW or ROW}")


def measure_operations(
    running: Running,
    elements: int,
    repeats: int = 5,
    seed: int = 0,
    schemes: Sequence[Scheme] = (),
    declared: Ranges | None = None,
) -> list[dict[str, Any]]:
    """A record for every operation on `elements` values, a multiple of 64, under every scheme, runs interleaved.

    Without `schemes` they are those that `running` was started for. Ranges of the tuned scheme come from other values
    of the same distribution where none are `declared`. Raises ValueError for another number of elements.
    """
    demand_rows(elements)
    schemes = schemes or schemes_of(running)
    x, others = (
        torch.randn(elements // ROW, ROW, generator=torch.Generator().manual_seed(s)) for s in (seed, seed + 1000)
    )
    records = []
    for name in OPERATIONS:
        module = Operation(name).eval()
        ranges = ranges_for(schemes, module, others, declared)
        for run in run_in_turn(running, module, x, schemes, None, repeats, ranges).values():
            records.append({**_record(run, name, module, x), **where(running)})
    return records


def _record(run: SecureRun, name: str, module: nn.Module, x: Tensor) -> dict[str, Any]:
    return {
        "record": "operation",
        "workload": "ops",
        "op": name,
        "elements": x.numel(),
        "scheme": run.scheme.to_json(),
        **traffic_json(run),
        "seconds": seconds_json(run),
        "peak_bytes": run.peak_bytes,
        "max_abs_error": float((run.output - module(x)).abs().max()),
        "health": health_of(module, x, run),
        "machine": this_machine(),
    }
