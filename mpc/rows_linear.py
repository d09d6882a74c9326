"""Rows of linear operations: sums, products, matrix products and convolutions.

A secure function is called as `f(scheme, *args)` with shares (CrypTen's MPCTensor) in place of secret tensors; public
tensors and numbers stay as they are. `sends` receives the recorded operation: operand shapes and visibility.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor

from mpc import primitives as p
from mpc.fixed_point import encode, encode_factor
from mpc.scheme import Scheme
from mpc.table import row
from mpc.trace import Operand, Operation

aten = torch.ops.aten
Shares = Any
Events = p.Events


def _is_public(value: object) -> bool:
    return isinstance(value, Tensor | float | int)


def _tensor(value: Any) -> Tensor:
    return value.float() if isinstance(value, Tensor) else torch.tensor(float(value))


def _plus_public(scheme: Scheme, x: Shares, value: Any) -> Shares:
    """x + a public number or tensor: the first party adds it."""
    encoded = encode(_tensor(value), scheme, "a public operand")
    result = x.clone()
    result.share = x.share + (encoded if x._tensor.rank == 0 else torch.zeros_like(encoded))
    return result


def _times_public(scheme: Scheme, x: Shares, value: Any) -> Shares:
    """x times a public number or tensor with a fraction, truncated once."""
    result = x.clone()
    result.share = x.share * encode_factor(_tensor(value), scheme, "a public factor")
    return result.div(x.encoder.scale)


def is_secret(operand: Operand) -> bool:
    """Whether no party may see the operand."""
    return operand.visibility != "public"


def _free(scheme: Scheme, operation: Operation) -> Events:
    return []


def _truncates_output(scheme: Scheme, operation: Operation) -> Events:
    return p.truncation(operation.elements, scheme.parties)


@row("add", aten.add.Tensor, sends=_free)
def add(scheme: Scheme, x: Shares, y: Shares) -> Shares:
    """x + y, one of them shares; nothing is sent."""
    if _is_public(x):
        x, y = y, x
    return _plus_public(scheme, x, y) if _is_public(y) else x + y


@row("subtract", aten.sub.Tensor, sends=_free)
def _subtract(scheme: Scheme, x: Shares, y: Shares) -> Shares:
    if _is_public(x):
        return _plus_public(scheme, -y, x)
    return _plus_public(scheme, x, -y) if _is_public(y) else x - y


@row("subtract_from", aten.rsub.Scalar, aten.rsub.Tensor, sends=_free)
def _subtract_from(scheme: Scheme, x: Shares, y: Shares) -> Shares:
    return _plus_public(scheme, -x, y) if _is_public(y) else y - x


@row("negate", aten.neg.default, sends=_free)
def _negate(scheme: Scheme, x: Shares) -> Shares:
    return -x


def dimensions(shape: tuple[int, ...], dim: Any) -> list[int]:
    """What `dim` means (None or an empty list: every dimension), each counted from the front."""
    dims = list(range(len(shape))) if dim is None or dim == [] else [dim] if isinstance(dim, int) else list(dim)
    return [d % len(shape) for d in dims]


def _sum(x: Shares, dim: Any, keepdim: bool) -> Shares:
    result = x.shallow_copy()
    result._tensor = x._tensor.shallow_copy()
    result.share = x.share.sum(dimensions(tuple(x.share.shape), dim), keepdim=keepdim)
    return result


@row("sum", aten.sum.default, aten.sum.dim_IntList, sends=_free)
def _sum_row(scheme: Scheme, x: Shares, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Shares:
    return _sum(x, dim, keepdim)


@row("mean", aten.mean.default, aten.mean.dim, sends=_truncates_output)
def _mean(scheme: Scheme, x: Shares, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Shares:
    shape = tuple(x.share.shape)
    return _sum(x, dim, keepdim).div(prod(shape[d] for d in dimensions(shape, dim)))


def _integral(value: object) -> bool:
    if isinstance(value, Tensor):
        return not value.is_floating_point()
    return isinstance(value, int) or (isinstance(value, float) and value.is_integer())


def _describe_multiply(output: tuple[int, ...], x: object, y: object) -> Mapping[str, Any]:
    return {"integral": _integral(x) or _integral(y)}


def _multiply_sends(scheme: Scheme, operation: Operation) -> Events:
    secrets = [o.elements for o in operation.operands if is_secret(o)]
    if len(secrets) == 2:
        x, y = secrets
        return p.product(x, y, operation.elements, scheme.parties)
    return [] if operation["integral"] else _truncates_output(scheme, operation)


@row("multiply", aten.mul.Tensor, sends=_multiply_sends, describe=_describe_multiply)
def multiply(scheme: Scheme, x: Shares, y: Shares) -> Shares:
    """x y, one of them shares; a Beaver product where both are: 1 round, 8 (x + y) bytes."""
    if _is_public(x):
        x, y = y, x
    if not _is_public(y):
        return x * y
    if not _integral(y):
        return _times_public(scheme, x, y)
    result = x.clone()
    result.share = x.share * (y if isinstance(y, Tensor) else int(y))
    return result


def _describe_divide(output: tuple[int, ...], x: object, y: object) -> Mapping[str, Any]:
    """The divisor where it is a positive integer, which shares can divide by as they are; 0 otherwise."""
    value = y.item() if isinstance(y, Tensor) and y.numel() == 1 else y
    return {"divisor": int(value) if not isinstance(value, Tensor) and _integral(value) and value > 0 else 0}  # type: ignore[operator, call-overload]


@row("divide_by_public", aten.div.Tensor, sends=_truncates_output, describe=_describe_divide)
def _divide(scheme: Scheme, x: Shares, y: Shares) -> Shares:
    if isinstance(y, Tensor) and y.numel() == 1:
        y = y.item()
    if _integral(y) and not isinstance(y, Tensor):
        return x.div(int(y))
    return _times_public(scheme, x, 1 / y if isinstance(y, float) else y.double().reciprocal())


@row("square", aten.square.default, sends=lambda scheme, operation: p.square(operation.elements, scheme.parties))
def _square(scheme: Scheme, x: Shares) -> Shares:
    return x.square()


def _describe_matmul(output: tuple[int, ...], x: Tensor, *_: object, **__: object) -> Mapping[str, Any]:
    return {"macs": prod(output) * x.shape[-1]}


def _matmul_sends(scheme: Scheme, operation: Operation) -> Events:
    x, y = operation.operands[:2]
    if is_secret(x) and is_secret(y):
        return p.product(x.elements, y.elements, operation.elements, scheme.parties)
    return _truncates_output(scheme, operation)


def _product_of_matrices(scheme: Scheme, x: Shares, y: Shares) -> Shares:
    if not _is_public(x) and not _is_public(y):
        return x.matmul(y)
    secret = y if _is_public(x) else x
    left, right = (encode_factor(m, scheme, "a public matrix") if _is_public(m) else m.share for m in (x, y))
    result = secret.clone()
    result.share = torch.matmul(left, right)
    return result.div(secret.encoder.scale)


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
    return _product_of_matrices(scheme, x, y)


@row("linear", aten.linear.default, sends=_matmul_sends, describe=_describe_matmul)
def _linear(scheme: Scheme, x: Shares, weight: Shares, bias: Shares = None) -> Shares:
    """x W^T + b: opens x and W once, 1 round, 8 (x + W) bytes for private weights, nothing for public ones."""
    columns = weight.t()
    if not _is_public(columns):  # int64 products with a transposed operand are several times slower than this copy
        columns.share = columns.share.contiguous()
    result = _product_of_matrices(scheme, x, columns)
    return result if bias is None else add(scheme, result, bias)


def _describe_convolution(
    output: tuple[int, ...],
    x: Tensor,
    weight: Tensor,
    bias: object = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Mapping[str, Any]:
    options = {"stride": _pair(stride), "padding": _pair(padding), "dilation": _pair(dilation), "groups": groups}
    return {"macs": prod(output) * prod(weight.shape[1:]), **options}


def _pair(value: Any) -> tuple[int, int]:
    """Height and width of an option of convolutions."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return (values[0], values[-1])


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
    return result if bias is None else add(scheme, result, bias.view(1, -1, 1, 1))


def _describe_average_pool(output: tuple[int, ...], x: Tensor, kernel_size: Any, *_: object) -> Mapping[str, Any]:
    return {"divisor": prod(_pair(kernel_size))}


@row("average_pool", aten.avg_pool2d.default, sends=_truncates_output, describe=_describe_average_pool)
def _average_pool(scheme: Scheme, x: Shares, kernel_size: Any, stride: Any = None, padding: Any = 0) -> Shares:
    return x.avg_pool2d(list(kernel_size), stride=list(stride) if stride else None, padding=padding)
