"""Operators that aten is too coarse for: the plain reading runs them as usual, the secure reading sees them whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("mpc_pareto::row_normalize", mutates_args=())
def row_normalize(x: Tensor, eps: float) -> Tensor:
    """x / (sum of x over the last dimension + eps), for x >= 0.

    The sum is known to be non-negative, which saves the secure reading a comparison: `x / x.sum()` in aten would be
    billed as a division by a value of unknown sign.
    """
    return x / (x.sum(-1, keepdim=True) + eps)


@row_normalize.register_fake
def _(x: Tensor, eps: float) -> Tensor:
    return torch.empty_like(x)


def _setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
    x, eps = inputs
    ctx.save_for_backward(x, output)
    ctx.eps = eps


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    x, output = ctx.saved_tensors
    total = x.sum(-1, keepdim=True) + ctx.eps
    return (grad - (grad * output).sum(-1, keepdim=True)) / total, None


row_normalize.register_autograd(_backward, setup_context=_setup_context)
