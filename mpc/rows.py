"""The rows: linear operations, comparisons and functions, each with its secure form and its closed-form traffic.

A secure function is called as `f(scheme, *args)` with shares (CrypTen's MPCTensor) in place of secret tensors; public
tensors and numbers stay as they are. `sends` receives the recorded operation: operand shapes and visibility.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor

from mpc import functions as f
from mpc import primitives as p
from mpc.scheme import Scheme
from mpc.table import row
from mpc.trace import Operand, Operation

aten = torch.ops.aten
Shares = Any
Events = p.Events


def _is_public(value: object) -> bool:
    return isinstance(value, Tensor | float | int)


def _secret(operand: Operand) -> bool:
    return operand.visibility != "public"


def _free(scheme: Scheme, operation: Operation) -> Events:
    return []


def _truncates_output(scheme: Scheme, operation: Operation) -> Events:
    return p.truncation(operation.elements, scheme.parties)


# --- sums and products


@row("add", aten.add.Tensor, sends=_free)
def _add(scheme: Scheme, x: Shares, y: Shares, alpha: float = 1) -> Shares:
    if alpha != 1:
        y = y * alpha
    return y + x if _is_public(x) else x + y


@row("subtract", aten.sub.Tensor, sends=_free)
def _subtract(scheme: Scheme, x: Shares, y: Shares, alpha: float = 1) -> Shares:
    if alpha != 1:
        y = y * alpha
    return -y + x if _is_public(x) else x - y


@row("subtract_from", aten.rsub.Scalar, aten.rsub.Tensor, sends=_free)
def _subtract_from(scheme: Scheme, x: Shares, y: Shares, alpha: float = 1) -> Shares:
    return -(x * alpha) + y if alpha != 1 else -x + y


@row("negate", aten.neg.default, sends=_free)
def _negate(scheme: Scheme, x: Shares) -> Shares:
    return -x


def _sum_dims(shape: tuple[int, ...], dim: Any) -> list[int]:
    dims = list(range(len(shape))) if dim is None or dim == [] else [dim] if isinstance(dim, int) else list(dim)
    return [d % len(shape) for d in dims]


def _sum(x: Shares, dim: Any, keepdim: bool) -> Shares:
    result = x.shallow_copy()
    result._tensor = x._tensor.shallow_copy()
    result.share = x.share.sum(_sum_dims(tuple(x.share.shape), dim), keepdim=keepdim)
    return result


@row("sum", aten.sum.default, aten.sum.dim_IntList, sends=_free)
def _sum_row(scheme: Scheme, x: Shares, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Shares:
    return _sum(x, dim, keepdim)


@row("mean", aten.mean.default, aten.mean.dim, sends=_truncates_output)
def _mean(scheme: Scheme, x: Shares, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Shares:
    shape = tuple(x.share.shape)
    return _sum(x, dim, keepdim).div(prod(shape[d] for d in _sum_dims(shape, dim)))


def _integral(value: object) -> bool:
    if isinstance(value, Tensor):
        return not value.is_floating_point()
    return isinstance(value, int) or (isinstance(value, float) and value.is_integer())


def _describe_multiply(output: tuple[int, ...], x: object, y: object) -> Mapping[str, Any]:
    return {"integral": _integral(x) or _integral(y)}


def _multiply_sends(scheme: Scheme, operation: Operation) -> Events:
    secrets = [o.elements for o in operation.operands if _secret(o)]
    if len(secrets) == 2:
        x, y = secrets
        return p.product(x, y, operation.elements, scheme.parties)
    return [] if operation["integral"] else _truncates_output(scheme, operation)


@row("multiply", aten.mul.Tensor, sends=_multiply_sends, describe=_describe_multiply)
def _multiply(scheme: Scheme, x: Shares, y: Shares) -> Shares:
    if _is_public(x):
        x, y = y, x
    if isinstance(y, int | float):
        return x * int(y) if _integral(y) else f._times(x, y)
    if isinstance(y, Tensor) and _integral(y):
        result = x.clone()
        result.share = x.share * y
        return result
    return x * y


@row("divide_by_public", aten.div.Tensor, sends=_truncates_output)
def _divide(scheme: Scheme, x: Shares, y: Shares) -> Shares:
    if _integral(y) and not isinstance(y, Tensor):
        return x.div(int(y))
    return f._times(x, 1 / y) if isinstance(y, float) else x * y.double().reciprocal().float()


@row("square", aten.square.default, sends=lambda scheme, operation: p.square(operation.elements, scheme.parties))
def _square(scheme: Scheme, x: Shares) -> Shares:
    return x.square()


# --- matrix products and convolutions


def _describe_matmul(output: tuple[int, ...], x: Tensor, *_: object, **__: object) -> Mapping[str, Any]:
    return {"macs": prod(output) * x.shape[-1]}


def _matmul_sends(scheme: Scheme, operation: Operation) -> Events:
    x, y = operation.operands[:2]
    if _secret(x) and _secret(y):
        return p.product(x.elements, y.elements, operation.elements, scheme.parties)
    return _truncates_output(scheme, operation)


def _product_of_matrices(x: Shares, y: Shares) -> Shares:
    if not _is_public(x):
        return x.matmul(y)
    result = y.clone()
    result.share = torch.matmul(y.encoder.encode(x), y.share)
    return result.div(y.encoder.scale)


@row(
    "matmul",
    aten.matmul.default,
    aten.mm.default,
    aten.bmm.default,
    aten.mv.default,
    sends=_matmul_sends,
    describe=_describe_matmul,
)
def _matmul(scheme: Scheme, x: Shares, y: Shares) -> Shares:
    return _product_of_matrices(x, y)


@row("linear", aten.linear.default, sends=_matmul_sends, describe=_describe_matmul)
def _linear(scheme: Scheme, x: Shares, weight: Shares, bias: Shares = None) -> Shares:
    """x W^T + b: opens x and W once, 1 round, 8 (x + W) bytes for private weights, nothing for public ones."""
    result = _product_of_matrices(x, weight.t())
    return result if bias is None else result + bias


def _describe_convolution(output: tuple[int, ...], x: Tensor, weight: Tensor, *_: object) -> Mapping[str, Any]:
    return {"macs": prod(output) * prod(weight.shape[1:])}


@row("convolution", aten.conv2d.default, sends=_matmul_sends, describe=_describe_convolution)
def _convolution(
    scheme: Scheme,
    x: Shares,
    weight: Shares,
    bias: Shares = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Shares:
    """Opens image and kernel: 1 round, 8 (x + W) bytes for private weights."""
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    if _is_public(x):
        raise ValueError("a convolution of a public image with a private kernel is not in the table; share the image")
    result = x.conv2d(weight, **options)
    return result if bias is None else result + bias.view(1, -1, 1, 1)


@row("average_pool", aten.avg_pool2d.default, sends=_truncates_output)
def _average_pool(scheme: Scheme, x: Shares, kernel_size: Any, stride: Any = None, padding: Any = 0) -> Shares:
    return x.avg_pool2d(list(kernel_size), stride=list(stride) if stride else None, padding=padding)


# --- comparisons


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
    dims = _sum_dims(tuple(x.shape), list(dim))
    if len(dims) != 1:
        raise ValueError(f"a secure maximum runs over one dimension, got {dims}")
    return {"length": x.shape[dims[0]]}


def _maximum_sends(scheme: Scheme, operation: Operation) -> Events:
    if operation["length"] == 1:
        return []
    return p.maximum(operation["length"], operation.elements, scheme.parties, with_argmax=True)


@row("maximum", aten.amax.default, sends=_maximum_sends, describe=_describe_maximum)
def _maximum(scheme: Scheme, x: Shares, dim: Any = (), keepdim: bool = False) -> Shares:
    """CrypTen's tree of comparisons, with the argmax that it always computes."""
    axis = _sum_dims(tuple(x.share.shape), list(dim))[0]
    if x.size(axis) == 1:
        return x if keepdim else x.squeeze(axis)
    return x.max(axis, keepdim=keepdim)[0]


# --- functions


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
    return [] if length == 1 else closed_form(operation.elements // length, length, scheme.parties)


@row("softmax", aten.softmax.int, aten._softmax.default, sends=_softmax_sends, describe=_describe_softmax)
def _softmax(scheme: Scheme, x: Shares, dim: int, *_: object) -> Shares:
    """Maximum, exp, sum, reciprocal: 115 rounds over 65 entries as released."""
    moved = x.transpose(dim, -1) if dim not in (-1, x.dim() - 1) else x
    by_crypten = x.size(dim) == 1 or scheme.functions == "released"
    result = moved.softmax(-1) if by_crypten else f.softmax(moved)
    return result.transpose(dim, -1) if moved is not x else result


def _describe_layer_norm(output: tuple[int, ...], x: Tensor, shape: list[int], *_: object) -> Mapping[str, Any]:
    return {"length": prod(shape)}


def _layer_norm_sends(scheme: Scheme, operation: Operation) -> Events:
    n, length = operation.elements, operation["length"]
    closed_form = f.layer_norm_released_events if scheme.functions == "released" else f.layer_norm_events
    events = closed_form(n // length, length, scheme.parties)
    if len(operation.operands) > 1:
        weight = operation.operands[1]
        events += (
            p.product(n, weight.elements, n, scheme.parties) if _secret(weight) else p.truncation(n, scheme.parties)
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
        result = result * weight
    return result if bias is None else result + bias


def _describe_rows(output: tuple[int, ...], x: Tensor, eps: float) -> Mapping[str, Any]:
    return {"length": x.shape[-1]}


def _row_normalize_sends(scheme: Scheme, operation: Operation) -> Events:
    length = operation["length"]
    closed_form = f.row_normalize_released_events if scheme.functions == "released" else f.row_normalize_events
    return closed_form(operation.elements // length, length, scheme.parties)


def register_own_operators() -> None:
    """Rows of the operators that this package registers with torch (mpc/operators.py)."""
    from mpc import operators  # noqa: F401 - importing registers the operator

    overload = torch.ops.mpc_pareto.row_normalize.default
    row("row_normalize", overload, sends=_row_normalize_sends, describe=_describe_rows)(_row_normalize)


def _row_normalize(scheme: Scheme, x: Shares, eps: float) -> Shares:
    """A positive reciprocal for each row and one product: 17 rounds (29 as released)."""
    return (f.row_normalize_released if scheme.functions == "released" else f.row_normalize)(x, eps)


register_own_operators()
