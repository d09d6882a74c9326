"""Operations that send nothing of their own: those that only move data, and those made of other rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mpc.table import STRUCTURAL, composite

aten = torch.ops.aten

STRUCTURAL.update(
    {
        aten.alias.default,
        aten.cat.default,
        aten.chunk.default,
        aten.clone.default,
        aten.constant_pad_nd.default,
        aten.contiguous.default,
        aten.detach.default,
        aten.expand.default,
        aten.expand_as.default,
        aten.flatten.using_ints,
        aten.flip.default,
        aten.index.Tensor,
        aten.index_select.default,
        aten.movedim.int,
        aten.movedim.intlist,
        aten.narrow.default,
        aten.permute.default,
        aten.repeat.default,
        aten.reshape.default,
        aten.roll.default,
        aten.select.int,
        aten.slice.Tensor,
        aten.split.Tensor,
        aten.split_with_sizes.default,
        aten.squeeze.default,
        aten.squeeze.dim,
        aten.stack.default,
        aten.swapaxes.default,
        aten.t.default,
        aten.transpose.int,
        aten.unbind.int,
        aten.unflatten.int,
        aten.unsqueeze.default,
        aten._unsafe_view.default,
        aten.view.default,
    }
)


@composite(
    aten._to_copy.default,
    aten.to.dtype,
    aten.to.device,
    aten.to.dtype_layout,
    aten.to.other,
    aten.type_as.default,
)
def _same(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Shares have one number format: another float type is a copy, a type without fractions would need a comparison."""
    if not hasattr(x, "visibility"):  # a public tensor that takes the type of a secret
        return x.to(torch.float32)
    for dtype in (value for value in (*args, *kwargs.values()) if isinstance(value, torch.dtype)):
        if not dtype.is_floating_point:
            raise ValueError(f"a secret cannot become {dtype}: rounding it is not in the table of secure operations")
        if dtype != torch.float32:
            return x.clone()
    return x


@composite(aten.add.Tensor)
def _add(x: Any, y: Any, alpha: float = 1) -> Any:
    return NotImplemented if alpha == 1 else x + y * alpha


@composite(aten.sub.Tensor)
def _subtract(x: Any, y: Any, alpha: float = 1) -> Any:
    return NotImplemented if alpha == 1 else x - y * alpha


@composite(aten.rsub.Tensor, aten.rsub.Scalar)
def _subtract_from(x: Any, y: Any, alpha: float = 1) -> Any:
    return NotImplemented if alpha == 1 else y - x * alpha


@composite(aten.constant_pad_nd.default)
def _pad(x: Tensor, pad: list[int], value: float = 0) -> Any:
    """Padding with zeros moves data; another public value is added where the padding is."""
    if value == 0:
        return NotImplemented
    frame = torch.constant_pad_nd(torch.zeros(x.shape), pad, value)
    return torch.constant_pad_nd(x, pad, 0) + frame


@composite(aten.dropout.default, aten.dropout_.default, aten.feature_dropout.default, aten.alpha_dropout.default)
def _dropout(x: Tensor, p: float, train: bool) -> Tensor:
    if train:
        raise ValueError("dropout is active: call model.eval() before a secure reading")
    return x


@composite(aten.addmm.default)
def _addmm(bias: Tensor, x: Tensor, y: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return bias * beta + (x @ y) * alpha if (beta, alpha) != (1, 1) else bias + x @ y


@composite(aten.baddbmm.default)
def _baddbmm(bias: Tensor, x: Tensor, y: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    product = torch.bmm(x, y)
    return bias * beta + product * alpha if (beta, alpha) != (1, 1) else bias + product


@composite(aten.div.Tensor)
def _div(x: Any, y: Any) -> Any:
    """Division by a secret; division by a public value has a row."""
    return x * y.reciprocal() if hasattr(y, "visibility") else NotImplemented


@composite(aten.pow.Tensor_Scalar)
def _pow(x: Tensor, exponent: float) -> Tensor:
    if exponent == 0:
        return torch.ones(x.shape)
    if exponent == 1:
        return x
    if exponent == 2:
        return torch.square(x)
    if exponent in (0.5, -0.5):
        return torch.sqrt(x) if exponent > 0 else torch.rsqrt(x)
    if exponent < 0:
        return torch.pow(torch.reciprocal(x), -exponent)
    if exponent != int(exponent):
        raise ValueError(f"a secret to the power {exponent} is not in the table; integer powers and +-0.5 are")
    half = torch.square(torch.pow(x, exponent // 2)) if exponent > 3 else torch.square(x)
    return half * x if exponent % 2 else half


@composite(aten.sqrt.default)
def _sqrt(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x)


@composite(aten.leaky_relu.default)
def _leaky_relu(x: Tensor, negative_slope: float = 0.01) -> Tensor:
    return torch.relu(x) * (1 - negative_slope) + x * negative_slope


@composite(aten.hardtanh.default)
def _hardtanh(x: Tensor, lower: float = -1, upper: float = 1) -> Tensor:
    return _clamp(x, lower, upper)


@composite(aten.clamp.default)
def _clamp(x: Tensor, min: float | None = None, max: float | None = None) -> Tensor:
    lower, upper = min, max
    if lower is None or upper is None:
        bound = lower if upper is None else upper
        if bound is None:
            raise ValueError("clamp needs a bound")
        return torch.relu(x - bound) + bound if upper is None else bound - torch.relu(bound - x)
    over = torch.relu(torch.stack([x - lower, x - upper]))
    return over[0] - over[1] + lower


@composite(aten.relu6.default)
def _relu6(x: Tensor) -> Tensor:
    return _clamp(x, 0, 6)


@composite(aten.hardsigmoid.default)
def _hardsigmoid(x: Tensor) -> Tensor:
    return _clamp(x + 3, 0, 6) / 6


@composite(aten.hardswish.default)
def _hardswish(x: Tensor) -> Tensor:
    return x * _hardsigmoid(x)


@composite(aten.scaled_dot_product_attention.default)
def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention as its parts: two matrix products, a public scaling and a softmax."""
    if is_causal or enable_gqa or dropout_p:
        raise ValueError("causal, grouped or dropout attention is not in the table; write it with matmul and softmax")
    if attn_mask is not None and not attn_mask.is_floating_point():
        raise ValueError("a boolean attention mask is not in the table; add a float mask of 0 and, say, -50 instead")
    scores = (query @ key.transpose(-2, -1)) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is not None:
        scores = scores + attn_mask
    return torch.softmax(scores, -1) @ value
