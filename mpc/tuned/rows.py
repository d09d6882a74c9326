"""The table's rows under the tuned scheme.

A secure form is called as `f(engine, operation, *args)` with ring tensors (int64) in place of secret tensors; public
tensors and numbers stay as they are. Its `sends` is the closed form, a function of scheme and recorded operation.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpc import rows_functions, rows_linear  # noqa: F401 - the rows whose tuned form is stated here
from mpc.fixed_point import encode, encode_factor
from mpc.ranges import DEFAULT, Range
from mpc.rows_linear import dimensions, is_secret
from mpc.scheme import Scheme
from mpc.table import tuned
from mpc.trace import Operation
from mpc.traffic import Message
from mpc.tuned import functions as f
from mpc.tuned import products as p
from mpc.tuned import selection
from mpc.tuned.approximations import GELU, SILU, ExpChain, exp_chain, exp_relative, sigmoid_pieces, tanh_pieces
from mpc.tuned.checking import check_range, check_range_events
from mpc.tuned.comparison import chunks_for
from mpc.tuned.engine import Engine, Events, division_events, truncation_events
from mpc.tuned.pieces import (
    inverse_square_root,
    inverse_square_root_events,
    piecewise,
    piecewise_events,
    reciprocal_positive,
    reciprocal_positive_events,
)
from mpc.tuned.prg import Ring

Sends = Callable[[Scheme, Operation], Events]


def _is_public(value: object) -> bool:
    return not (isinstance(value, Tensor) and value.dtype == torch.int64)


def _public(value: Any) -> Tensor:
    return value.float() if isinstance(value, Tensor) else torch.tensor(float(value))


def range_of(operation: Operation, name: str = "") -> Range:
    """The declared range of the operation's argument, or the default of row `name`."""
    declared: Range = operation.get("range") or DEFAULT[name or operation.op]
    return declared


def _bound(operation: Operation) -> float:
    return max(abs(end) for end in range_of(operation))


def fixed_operand(operation: Operation) -> int | None:
    """Which of the first two operands is a weight that the setup opens, where the other is a secret; else None."""
    if operation.op == "layer_norm":
        return 1 if operation["weighted"] and operation.operands[1].visibility == "weight" else None
    if operation.op not in ("linear", "matmul", "convolution", "multiply"):
        return None
    kinds = [operand.visibility for operand in operation.operands[:2]]
    if sorted(kinds) != ["secret", "weight"]:
        return None
    return kinds.index("weight")


def fixed_form(operation: Operation, weights: Tensor) -> Tensor:
    """The weights as the product takes them: a linear layer's columns, a layer norm's in one row."""
    if operation.op == "layer_norm":
        return weights.reshape(-1)
    return weights.t() if operation.op == "linear" else weights


def _tensor(values: Any) -> Tensor:
    """A ring array as a tensor; numpy makes scalars of arrays without dimensions."""
    return torch.from_numpy(np.asarray(values))


def _free(scheme: Scheme, operation: Operation) -> Events:
    return []


def _truncates(scheme: Scheme, operation: Operation) -> Events:
    return truncation_events(scheme, operation.output)


def _truncated(engine: Engine, x: Tensor) -> Tensor:
    return _tensor(engine.truncate(x.numpy()))


def _plus_public(engine: Engine, x: Tensor, value: Any) -> Tensor:
    encoded = encode(_public(value), engine.scheme, "a public operand")
    return x + (encoded if engine.first else torch.zeros_like(encoded))


@tuned("add", sends=_free)
def _add(engine: Engine, operation: Operation, x: Any, y: Any) -> Tensor:
    if _is_public(x):
        x, y = y, x
    return _plus_public(engine, x, y) if _is_public(y) else x + y


@tuned("subtract", sends=_free)
def _subtract(engine: Engine, operation: Operation, x: Any, y: Any) -> Tensor:
    if _is_public(x):
        return _plus_public(engine, -y, x)
    return _plus_public(engine, x, -y) if _is_public(y) else x - y


@tuned("subtract_from", sends=_free)
def _subtract_from(engine: Engine, operation: Operation, x: Any, y: Any) -> Tensor:
    if _is_public(y):
        return _plus_public(engine, -x, y)
    result: Tensor = y - x
    return result


@tuned("negate", sends=_free)
def _negate(engine: Engine, operation: Operation, x: Tensor) -> Tensor:
    return -x


@tuned("sum", sends=_free)
def _sum(engine: Engine, operation: Operation, x: Tensor, dim: Any = None, keepdim: bool = False, **_: Any) -> Tensor:
    return x.sum(dimensions(tuple(x.shape), dim), keepdim=keepdim)


def _mean_sends(scheme: Scheme, operation: Operation) -> Events:
    return division_events(scheme, operation.output, operation.operands[0].elements // operation.elements)


@tuned("mean", sends=_mean_sends)
def _mean(engine: Engine, operation: Operation, x: Tensor, dim: Any = None, keepdim: bool = False, **_: Any) -> Tensor:
    total = x.sum(dimensions(tuple(x.shape), dim), keepdim=keepdim)
    return _tensor(engine.divide(total.numpy(), x.numel() // total.numel()))


def _product_events(scheme: Scheme, operation: Operation, name: str, options: tuple[Any, ...] = ()) -> Events:
    """A bilinear map of the first two operands: of two secrets, with fixed weights, or with a public operand."""
    cut = truncation_events(scheme, operation.output)
    factors = operation.operands[:2]
    if len(factors) < 2 or not all(is_secret(operand) for operand in factors):
        return cut
    x, y = (operand.shape for operand in factors)
    if operation.op == "linear":
        y = y[::-1]
    weights_at = fixed_operand(operation)
    if weights_at is None:
        return p.product_events(name, x, y, options) + cut
    pair = (y, x) if weights_at == 0 else (x, y)
    return p.product_with_fixed_events(name, *pair, options, weights_at == 0) + cut


def _product(engine: Engine, operation: Operation, name: str, x: Any, y: Any, options: tuple[Any, ...] = ()) -> Tensor:
    if _is_public(x) or _is_public(y):
        left, right = (encode_factor(v, engine.scheme, "a public factor") if _is_public(v) else v for v in (x, y))
        result = p.BILINEAR[name](left.numpy(), right.numpy(), *options)
    else:
        weights_at = fixed_operand(operation)
        if weights_at is None:
            result = p.product(engine, name, x.numpy(), y.numpy(), options)
        else:
            secret, weights = (y, x) if weights_at == 0 else (x, y)
            shape = tuple(weights.shape)
            result = p.product_with_fixed(engine, name, secret.numpy(), shape, options, weights_at == 0)
    return _tensor(engine.truncate(result))


def _multiply_sends(scheme: Scheme, operation: Operation) -> Events:
    return [] if operation["integral"] else _product_events(scheme, operation, "multiply")


@lru_cache(maxsize=1024)
def _factor(value: float, scheme: Scheme) -> int:
    """A public factor as an encoded integer."""
    return int(encode_factor(_public(value), scheme, "a public factor"))


@tuned("multiply", sends=_multiply_sends)
def _multiply(engine: Engine, operation: Operation, x: Any, y: Any) -> Tensor:
    if _is_public(x):
        x, y = y, x
    if operation["integral"]:
        result: Tensor = x * (y if isinstance(y, Tensor) else int(y))
        return result
    if isinstance(y, float):
        return _truncated(engine, x * _factor(y, engine.scheme))
    return _product(engine, operation, "multiply", x, y)


def _divide_sends(scheme: Scheme, operation: Operation) -> Events:
    divisor = operation["divisor"]
    return division_events(scheme, operation.output, divisor) if divisor else _truncates(scheme, operation)


@tuned("divide_by_public", sends=_divide_sends)
def _divide(engine: Engine, operation: Operation, x: Tensor, y: Any) -> Tensor:
    if operation["divisor"]:
        return _tensor(engine.divide(x.numpy(), operation["divisor"]))
    factor = torch.as_tensor(y, dtype=torch.float64).reciprocal()
    return _truncated(engine, x * encode_factor(factor, engine.scheme, "a public factor"))


@tuned("square", sends=lambda scheme, op: f.squared_events(scheme, op.output))
def _square(engine: Engine, operation: Operation, x: Tensor) -> Tensor:
    return _tensor(f.squared(engine, x.numpy()))


@tuned("matmul", sends=lambda scheme, op: _product_events(scheme, op, "matmul"))
def _matmul(engine: Engine, operation: Operation, x: Any, y: Any) -> Tensor:
    return _product(engine, operation, "matmul", x, y)


@tuned("linear", sends=lambda scheme, op: _product_events(scheme, op, "matmul"))
def _linear(engine: Engine, operation: Operation, x: Any, weight: Any, bias: Any = None) -> Tensor:
    result = _product(engine, operation, "matmul", x, weight.t())
    return result if bias is None else _add(engine, operation, result, bias)


def _convolution_options(operation: Operation) -> tuple[Any, ...]:
    return tuple(operation[name] for name in ("stride", "padding", "dilation", "groups"))


@tuned("convolution", sends=lambda scheme, op: _product_events(scheme, op, "convolution", _convolution_options(op)))
def _convolution(engine: Engine, operation: Operation, x: Any, weight: Any, bias: Any = None, *_: Any) -> Tensor:
    result = _product(engine, operation, "convolution", x, weight, _convolution_options(operation))
    return result if bias is None else _add(engine, operation, result, bias.view(1, -1, 1, 1))


@tuned("average_pool", sends=lambda scheme, op: division_events(scheme, op.output, op["divisor"]))
def _average_pool(
    engine: Engine, operation: Operation, x: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0
) -> Tensor:
    height, width = kernel_size
    rows, columns = stride or kernel_size
    pads = [padding] * 2 if isinstance(padding, int) else padding or [0, 0]
    padded = torch.nn.functional.pad(x, (pads[-1], pads[-1], pads[0], pads[0]))
    windows = padded.unfold(2, height, rows).unfold(3, width, columns)
    return _tensor(engine.divide(windows.sum((-1, -2)).numpy(), height * width))


def _flat(
    name: str, sends: Sends, checks: bool = True
) -> Callable[[Callable[[Engine, Operation, Ring], Ring]], Callable[..., Tensor]]:
    """Register a form that works on flat arrays, element by element, on arguments within the operation's range."""

    def cost(scheme: Scheme, operation: Operation) -> Events:
        return (check_range_events(scheme, operation.elements) if checks else []) + sends(scheme, operation)

    def register(function: Callable[[Engine, Operation, Ring], Ring]) -> Callable[..., Tensor]:
        @tuned(name, sends=cost)
        def run(engine: Engine, operation: Operation, x: Tensor, *_: Any, **__: Any) -> Tensor:
            flat = x.numpy().reshape(-1)
            if checks:
                check_range(engine, flat, *range_of(operation))
            return _tensor(function(engine, operation, flat)).reshape(x.shape)

        return run

    return register


def _sign_chunks(scheme: Scheme, operation: Operation) -> int:
    return chunks_for(_bound(operation), scheme.precision_bits)


def _sign_sends(scheme: Scheme, operation: Operation) -> Events:
    return selection.negative_part_events(operation.elements, _sign_chunks(scheme, operation))


@_flat("relu", _sign_sends)
def _relu(engine: Engine, operation: Operation, x: Ring) -> Ring:
    return x - selection.negative_part(engine, x, _sign_chunks(engine.scheme, operation))


@_flat("abs", _sign_sends)
def _abs(engine: Engine, operation: Operation, x: Ring) -> Ring:
    return x - 2 * selection.negative_part(engine, x, _sign_chunks(engine.scheme, operation))


def _maximum_sends(scheme: Scheme, operation: Operation) -> Events:
    chunks = chunks_for(2 * _bound(operation) if operation.get("range") else _bound(operation), scheme.precision_bits)
    checks = check_range_events(scheme, operation.operands[0].elements)
    return checks + selection.maximum_events(operation.elements, operation["length"], chunks)


@tuned("maximum", sends=_maximum_sends)
def _maximum(engine: Engine, operation: Operation, x: Tensor, dim: Any = (), keepdim: bool = False) -> Tensor:
    axis = dimensions(tuple(x.shape), list(dim))[0]
    moved = x.movedim(axis, -1)
    bound = 2 * _bound(operation) if operation.get("range") else _bound(operation)
    rows = moved.reshape(-1, x.shape[axis]).numpy()
    check_range(engine, rows, *range_of(operation))
    best = selection.maximum(engine, rows, chunks_for(bound, engine.fraction_bits))
    result = _tensor(best).reshape(*moved.shape[:-1], 1).movedim(-1, axis)
    return result if keepdim else result.squeeze(axis)


def _exp_chain(operation: Operation) -> ExpChain:
    """The chain for the operation's range: small absolute errors below 0, small relative ones around it."""
    low, high = range_of(operation)
    return exp_chain(low) if high <= 0 else exp_relative(max(-low, high))


@_flat("exp", lambda scheme, op: f.exp_events(scheme, (op.elements,), _exp_chain(op)))
def _exp(engine: Engine, operation: Operation, x: Ring) -> Ring:
    return f.exp(engine, x, _exp_chain(operation))


def _reciprocal_sends(scheme: Scheme, operation: Operation) -> Events:
    n, (low, high) = operation.elements, range_of(operation)
    positive = reciprocal_positive_events(scheme, n, low, high)
    chunks = chunks_for(high, scheme.precision_bits)
    return [
        *selection.signs_events(n, chunks),
        *p.product_events("multiply", (n,), (n,)),
        *check_range_events(scheme, n),
        *positive,
        *p.product_events("multiply", (n,), (n,)),
    ]


@_flat("reciprocal", _reciprocal_sends, checks=False)
def _reciprocal(engine: Engine, operation: Operation, x: Ring) -> Ring:
    """1 / x for low <= |x| <= high: the sign, x times it, the positive reciprocal, its sign again."""
    low, high = range_of(operation)
    negative = selection.ring_signs(engine, x, chunks_for(high, engine.fraction_bits))
    sign = engine.plus(-2 * negative, 1)
    magnitude = p.product(engine, "multiply", x, sign)
    check_range(engine, magnitude, low, high)
    return p.product(engine, "multiply", reciprocal_positive(engine, magnitude, low, high), sign)


@_flat("inverse_square_root", lambda scheme, op: inverse_square_root_events(scheme, op.elements, *range_of(op)))
def _inverse_square_root(engine: Engine, operation: Operation, x: Ring) -> Ring:
    return inverse_square_root(engine, x, *range_of(operation))


@_flat("gelu", lambda scheme, op: f.bent_events(scheme, op.elements, GELU, _bound(op)))
def _gelu(engine: Engine, operation: Operation, x: Ring) -> Ring:
    return f.bent(engine, x, GELU, _bound(operation))


@_flat("silu", lambda scheme, op: f.bent_events(scheme, op.elements, SILU, _bound(op)))
def _silu(engine: Engine, operation: Operation, x: Ring) -> Ring:
    return f.bent(engine, x, SILU, _bound(operation))


@_flat("sigmoid", lambda scheme, op: piecewise_events(scheme, op.elements, sigmoid_pieces(), *range_of(op)))
def _sigmoid(engine: Engine, operation: Operation, x: Ring) -> Ring:
    return piecewise(engine, x, sigmoid_pieces(), *range_of(operation))


@_flat("tanh", lambda scheme, op: piecewise_events(scheme, op.elements, tanh_pieces(), *range_of(op)))
def _tanh(engine: Engine, operation: Operation, x: Ring) -> Ring:
    return piecewise(engine, x, tanh_pieces(), *range_of(operation))


def _softmax_range(scheme: Scheme, operation: Operation) -> float:
    """How far an entry may lie below its row's largest; without a maximum, how large scores may be."""
    declared = range_of(operation, "softmax_max_free" if scheme.functions == "max_free" else "softmax")
    return max(abs(end) for end in declared)


def _softmax_sends(scheme: Scheme, operation: Operation) -> Events:
    length = operation["length"]
    closed_form = f.softmax_without_maximum_events if scheme.functions == "max_free" else f.softmax_events
    return closed_form(scheme, operation.elements // length, length, _softmax_range(scheme, operation))


@tuned("softmax", sends=_softmax_sends)
def _softmax(engine: Engine, operation: Operation, x: Tensor, dim: int, *_: Any) -> Tensor:
    moved = x.movedim(dim, -1)
    rows = moved.reshape(-1, moved.shape[-1]).numpy()
    function = f.softmax_without_maximum if engine.scheme.functions == "max_free" else f.softmax
    result = function(engine, rows, _softmax_range(engine.scheme, operation))
    return _tensor(result).reshape(moved.shape).movedim(-1, dim)


def _layer_norm_sends(scheme: Scheme, operation: Operation) -> Events:
    length = operation["length"]
    fixed = fixed_operand(operation) is not None
    events = f.layer_norm_events(scheme, operation.elements // length, length, *range_of(operation), fixed)
    if fixed:
        return [Message("open", (8 * length,), phase="setup"), *events]
    if operation["weighted"]:
        weight = operation.operands[1]
        if is_secret(weight):
            events += p.product_events("multiply", operation.output, weight.shape)
        events += truncation_events(scheme, operation.output)
    return events


@tuned("layer_norm", sends=_layer_norm_sends)
def _layer_norm(
    engine: Engine,
    operation: Operation,
    x: Tensor,
    shape: list[int],
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor:
    fixed = fixed_operand(operation) is not None
    rows = x.reshape(-1, prod(shape)).numpy()
    result = _tensor(f.layer_norm(engine, rows, eps, *range_of(operation), fixed)).reshape(x.shape)
    if weight is not None and not fixed:
        result = _product(engine, operation, "multiply", result, weight)
    return result if bias is None else _add(engine, operation, result, bias)


def _row_normalize_sends(scheme: Scheme, operation: Operation) -> Events:
    length = operation["length"]
    return f.row_normalize_events(scheme, operation.elements // length, length, *range_of(operation))


@tuned("row_normalize", sends=_row_normalize_sends)
def _row_normalize(engine: Engine, operation: Operation, x: Tensor, eps: float) -> Tensor:
    rows = x.reshape(-1, x.shape[-1]).numpy()
    return _tensor(f.row_normalize(engine, rows, eps, *range_of(operation))).reshape(x.shape)
