"""Rows of comparisons and of non-linear functions, in the documented and the released form."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor

from mpc import functions as f
from mpc import operators  # noqa: F401 - importing registers our own operators with torch
from mpc import primitives as p
from mpc.rows_linear import add, dimensions, is_secret, multiply
from mpc.scheme import Scheme
from mpc.table import row
from mpc.trace import Operation

aten = torch.ops.aten
Shares = Any
Events = p.Events


def _sign_sends(scheme: Scheme, operation: Operation) -> Events:
    return p.sign_product(operation.elements, scheme.parties)


@row("relu", aten.relu.default, sends=_sign_sends)
def _relu(scheme: Scheme, x: Shares) -> Shares:
    """A comparison and a product with its bit: 9 rounds, 232 n bytes at two parties."""
    return x.relu()


@row("abs", aten.abs.default, sends=_sign_sends)
def _abs(scheme: Scheme, x: Shares) -> Shares:
    """A comparison and a product with its sign: 9 rounds, 232 n bytes at two parties."""
    return x.abs()


def _describe_maximum(output: tuple[int, ...], x: Tensor, dim: Any = (), keepdim: bool = False) -> Mapping[str, Any]:
    dims = dimensions(tuple(x.shape), list(dim))
    if len(dims) != 1:
        raise ValueError(f"a secure maximum runs over one dimension, got {dims}")
    return {"length": x.shape[dims[0]]}


def _maximum_sends(scheme: Scheme, operation: Operation) -> Events:
    if operation["length"] == 1:
        return []
    return p.maximum(operation["length"], operation.elements, scheme.parties, scheme.precision_bits)


@row("maximum", aten.amax.default, sends=_maximum_sends, describe=_describe_maximum)
def _maximum(scheme: Scheme, x: Shares, dim: Any = (), keepdim: bool = False) -> Shares:
    """CrypTen's tree of comparisons, with the argmax that it always computes."""
    axis = dimensions(tuple(x.share.shape), list(dim))[0]
    if x.size(axis) == 1:
        return x if keepdim else x.squeeze(axis)
    return x.max(axis, keepdim=keepdim)[0]


def _both(name: str, *overloads: Any, secure: Any, released: Any, sends: Any, released_sends: Any) -> None:
    """A function of one tensor, element by element, in the documented and the released form."""

    def run(scheme: Scheme, x: Shares, *_: object, **__: object) -> Shares:
        return released(x) if scheme.functions == "released" else secure(x)

    def cost(scheme: Scheme, operation: Operation) -> Events:
        closed_form = released_sends if scheme.functions == "released" else sends
        events: Events = closed_form(operation.elements, scheme.parties)
        return events

    row(name, *overloads, sends=cost)(run)


_both(
    "exp", aten.exp.default, secure=f.exp, released=lambda x: x.exp(), sends=f.exp_events, released_sends=p.exponential
)
_both(
    "reciprocal",
    aten.reciprocal.default,
    secure=f.reciprocal,
    released=lambda x: x.reciprocal(),
    sends=f.reciprocal_events,
    released_sends=p.reciprocal_signed,
)
_both(
    "inverse_square_root",
    aten.rsqrt.default,
    secure=f.inverse_square_root,
    released=lambda x: x.inv_sqrt(),
    sends=f.inverse_square_root_events,
    released_sends=p.inverse_square_root,
)
_both(
    "gelu",
    aten.gelu.default,
    secure=f.gelu,
    released=f.gelu_released,
    sends=f.gelu_events,
    released_sends=f.gelu_released_events,
)
_both(
    "sigmoid",
    aten.sigmoid.default,
    secure=lambda x: x.sigmoid(),
    released=lambda x: x.sigmoid(),
    sends=p.sigmoid,
    released_sends=p.sigmoid,
)
_both(
    "silu",
    aten.silu.default,
    secure=lambda x: x * x.sigmoid(),
    released=lambda x: x * x.sigmoid(),
    sends=lambda n, parties: p.sigmoid(n, parties) + p.product(n, n, n, parties),
    released_sends=lambda n, parties: p.sigmoid(n, parties) + p.product(n, n, n, parties),
)
_both(
    "tanh",
    aten.tanh.default,
    secure=lambda x: x.tanh(),
    released=lambda x: x.tanh(),
    sends=p.sigmoid,
    released_sends=p.sigmoid,
)


def _describe_softmax(output: tuple[int, ...], x: Tensor, dim: int, *_: object) -> Mapping[str, Any]:
    return {"length": x.shape[dim]}


def _softmax_sends(scheme: Scheme, operation: Operation) -> Events:
    length = operation["length"]
    closed_form = f.softmax_released_events if scheme.functions == "released" else f.softmax_events
    if length == 1:
        return []
    return closed_form(operation.elements // length, length, scheme.parties, scheme.precision_bits)


@row("softmax", aten.softmax.int, aten._softmax.default, sends=_softmax_sends, describe=_describe_softmax)
def _softmax(scheme: Scheme, x: Shares, dim: int, *_: object) -> Shares:
    """Maximum, exp, sum, reciprocal: 115 rounds over 65 entries as released."""
    moved = x.transpose(dim, -1) if dim not in (-1, x.dim() - 1) else x
    by_crypten = x.size(dim) == 1 or scheme.functions == "released"
    result = moved.softmax(-1) if by_crypten else f.softmax(moved)
    return result.transpose(dim, -1) if moved is not x else result


def _describe_layer_norm(
    output: tuple[int, ...], x: Tensor, shape: list[int], weight: object = None, *_: object, **__: object
) -> Mapping[str, Any]:
    return {"length": prod(shape), "weighted": weight is not None}


def _layer_norm_sends(scheme: Scheme, operation: Operation) -> Events:
    n, length = operation.elements, operation["length"]
    closed_form = f.layer_norm_released_events if scheme.functions == "released" else f.layer_norm_events
    events = closed_form(n // length, length, scheme.parties)
    if operation["weighted"]:
        weight = operation.operands[1]
        events += (
            p.product(n, weight.elements, n, scheme.parties) if is_secret(weight) else p.truncation(n, scheme.parties)
        )
    return events


@row("layer_norm", aten.layer_norm.default, sends=_layer_norm_sends, describe=_describe_layer_norm)
def _layer_norm(
    scheme: Scheme,
    x: Shares,
    shape: list[int],
    weight: Shares = None,
    bias: Shares = None,
    eps: float = 1e-5,
    *_: object,
) -> Shares:
    """Mean, square, inverse square root, product: 18 rounds (19 as released), one more for a private weight."""
    length = prod(shape)
    flat = x if len(shape) == 1 else x.reshape(*x.share.shape[: -len(shape)], length)
    normalised = (f.layer_norm_released if scheme.functions == "released" else f.layer_norm)(flat, length, eps)
    result = normalised if len(shape) == 1 else normalised.reshape(*x.share.shape)
    if weight is not None:
        result = multiply(scheme, result, weight)
    return result if bias is None else add(scheme, result, bias)


def _describe_rows(output: tuple[int, ...], x: Tensor, eps: float) -> Mapping[str, Any]:
    return {"length": x.shape[-1]}


def _row_normalize_sends(scheme: Scheme, operation: Operation) -> Events:
    length = operation["length"]
    closed_form = f.row_normalize_released_events if scheme.functions == "released" else f.row_normalize_events
    return closed_form(operation.elements // length, length, scheme.parties)


@row("row_normalize", torch.ops.mpc_pareto.row_normalize.default, sends=_row_normalize_sends, describe=_describe_rows)
def _row_normalize(scheme: Scheme, x: Shares, eps: float) -> Shares:
    """A positive reciprocal for each row and one product: 17 rounds (29 as released)."""
    return (f.row_normalize_released if scheme.functions == "released" else f.row_normalize)(x, eps)
