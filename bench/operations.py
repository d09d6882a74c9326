"""The operations workload: each non-linear function alone, on unit-variance values of one length."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.attention import spread, traffic_json
from bench.machine import this_machine
from bench.secure_run import run_module
from mpc.operators import row_normalize
from mpc.parties import Parties

ROW = 64  # entries of a row, for functions that work on rows

# name -> what is computed on x, rows of ROW unit-variance values
OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "multiply": lambda x: x * x,
    "square": torch.square,
    "relu": F.relu,
    "maximum": lambda x: x.amax(-1),
    "exp": lambda x: torch.exp(x - 4),
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


def measure_operations(parties: Parties, elements: int, repeats: int = 5, seed: int = 0) -> list[dict[str, Any]]:
    """A record for every operation on `elements` values, a multiple of 64. Raises ValueError for another number."""
    demand_rows(elements)
    x = torch.randn(elements // ROW, ROW, generator=torch.Generator().manual_seed(seed))
    return [_measure(parties, name, x, repeats) for name in OPERATIONS]


def _measure(parties: Parties, name: str, x: Tensor, repeats: int) -> dict[str, Any]:
    module = Operation(name).eval()
    run = run_module(parties, module, x, repeats=repeats, warm_up=1)
    return {
        "record": "operation",
        "workload": "ops",
        "op": name,
        "elements": x.numel(),
        "scheme": run.scheme.to_json(),
        "network": "loopback",
        "mode": "measured",
        **traffic_json(run),
        "seconds": {"online": spread(run.online_s), "dealer": spread(run.dealer_s), "total": spread(run.total_s)},
        "peak_bytes": run.peak_bytes,
        "max_abs_error": float((run.output - module(x)).abs().max()),
        "machine": this_machine(),
    }
