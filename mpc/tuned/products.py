"""Products: of two secrets, of a secret with fixed weights, and squares. One round each; truncation is the caller's.

x y with masks a, b: both parties open e = x - a and d = y - b. Party 0 takes c0 + e (b0 + d) + a0 d, party 1
c1 + e b1 + a1 d (Beaver 1991, two products a party instead of three). Fixed weights are opened once as d = w - b, in
the setup; then the part that does not depend on x, a d + c, is worked out offline, and one product a party is left
online.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import prod
from typing import Any

import torch
import torch.nn.functional as F

from mpc.traffic import Correlation, Message
from mpc.tuned.engine import Engine, Events, dealt, opening
from mpc.tuned.prg import Ring
from mpc.tuned.sources import FixedMask, Source

Shape = tuple[int, ...]
Bilinear = Callable[..., Ring]


def _multiply(x: Ring, y: Ring) -> Ring:
    return x * y


def _matmul(x: Ring, y: Ring) -> Ring:
    left, right = torch.from_numpy(x), torch.from_numpy(y)
    if right.dim() == 2 and left.dim() > 2:  # one product of matrices, not one for each batch entry
        return torch.mm(left.reshape(-1, left.shape[-1]), right).reshape(*left.shape[:-1], right.shape[-1]).numpy()
    return torch.matmul(left, right).numpy()


def _convolution(x: Ring, kernel: Ring, stride: Shape, padding: Shape, dilation: Shape, groups: int) -> Ring:
    """Patches times kernel is one product of matrices: several times faster than torch's int64 convolution."""
    image, weight = torch.from_numpy(x), torch.from_numpy(kernel)
    if groups != 1 or dilation != (1, 1):
        return F.conv2d(image, weight, None, stride, padding, dilation, groups).numpy()
    padded = F.pad(image, (padding[1], padding[1], padding[0], padding[0]))
    height, width = weight.shape[2:]
    patches = padded.unfold(2, height, stride[0]).unfold(3, width, stride[1])  # B C h w kh kw
    rows, columns = patches.shape[2:4]
    flat = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, weight[0].numel())
    product = torch.mm(flat, weight.reshape(weight.shape[0], -1).t().contiguous())
    return product.reshape(len(image), rows, columns, -1).permute(0, 3, 1, 2).contiguous().numpy()


BILINEAR: dict[str, Bilinear] = {"multiply": _multiply, "matmul": _matmul, "convolution": _convolution}


@lru_cache(maxsize=4096)
def output_shape(name: str, x: Shape, y: Shape, options: tuple[Any, ...] = ()) -> Shape:
    """Shape of a bilinear map's result."""
    left, right = (torch.empty(shape, device="meta") for shape in (x, y))
    if name == "convolution":
        stride, padding, dilation, groups = options
        return tuple(F.conv2d(left, right, None, stride, padding, dilation, groups).shape)
    return tuple((left * right if name == "multiply" else torch.matmul(left, right)).shape)


def product(engine: Engine, name: str, x: Ring, y: Ring, options: tuple[Any, ...] = ()) -> Ring:
    """A bilinear map of two secrets, not truncated: 1 round, 8 (x + y) bytes."""
    a, b, c = engine.take("product", name, x.shape, y.shape, options)
    e, d = engine.open(x - a, y - b)
    bilinear = BILINEAR[name]
    result: Ring = c + bilinear(e, b + d if engine.first else b, *options) + bilinear(a, d, *options)
    return result


def product_events(name: str, x: Shape, y: Shape, options: tuple[Any, ...] = ()) -> Events:
    """Traffic of `product`."""
    dealer_bytes = 8 * prod(output_shape(name, x, y, options))
    return [Correlation("product", dealer_bytes, (name, x, y, options)), opening(prod(x), prod(y))]


@dealt("product")
def _deal_product(source: Source, name: str, x: Shape, y: Shape, options: tuple[Any, ...]) -> tuple[Any, Any, Any]:
    a, b = source.ring(x), source.ring(y)
    c = source.share_ring(output_shape(name, x, y, options), lambda: BILINEAR[name](a.value, b.value, *options))
    return a.share, b.share, c


def square(engine: Engine, x: Ring) -> Ring:
    """x^2, not truncated: 1 round, 8 n bytes."""
    a, a_squared = engine.take("square", x.shape)
    (e,) = engine.open(x - a)
    return opened_square(engine, e, a, a_squared)


def opened_square(engine: Engine, e: Ring, a: Ring, a_squared: Ring) -> Ring:
    """(e + a)^2 for public e, from shares of a and a^2."""
    result: Ring = a * e
    result += result
    result += a_squared
    if engine.first:
        result += e * e
    return result


def square_events(shape: Shape) -> Events:
    """Traffic of `square`."""
    return [Correlation("square", 8 * prod(shape), (shape,)), opening(prod(shape))]


@dealt("square")
def deal_square(source: Source, shape: Shape) -> tuple[Any, Any]:
    """A mask and its square."""
    a = source.ring(shape)
    return a.share, source.share_ring(shape, lambda: a.value * a.value)


def fix_weights(engine: Engine, weights: Ring) -> None:
    """Setup of weights that stay: open them masked, once. 1 round, 8 w bytes."""
    fixed = engine.source.fix(weights.shape)
    (fixed.opened,) = engine.exchange([(weights - fixed.mask.share, "ring")], phase="setup")
    fixed.masked = fixed.mask.share + fixed.opened if engine.first else fixed.mask.share


def product_with_fixed(
    engine: Engine, name: str, x: Ring, weights: Shape, options: tuple[Any, ...] = (), weights_first: bool = False
) -> Ring:
    """A bilinear map of a secret and fixed weights, not truncated: 1 round, 8 x bytes."""
    a, known, masked = engine.take("fixed_product", name, x.shape, weights, options, weights_first)
    (e,) = engine.open(x - a)
    pair = (masked, e) if weights_first else (e, masked)
    result = BILINEAR[name](*pair, *options)
    result += known
    return result


def product_with_fixed_events(
    name: str, x: Shape, weights: Shape, options: tuple[Any, ...] = (), weights_first: bool = False
) -> Events:
    """Traffic of `product_with_fixed`, the setup of its weights included."""
    result = output_shape(name, *((weights, x) if weights_first else (x, weights)), options)
    return [
        Message("open", (8 * prod(weights),), phase="setup"),
        Correlation("fixed_product", 8 * prod(result), (name, x, weights, options, weights_first)),
        opening(prod(x)),
    ]


@dealt("fixed_product")
def _deal_fixed_product(
    source: Source, name: str, x: Shape, weights: Shape, options: tuple[Any, ...], weights_first: bool
) -> tuple[Any, Any, Any]:
    fixed: FixedMask = source.next_fixed()
    a = source.ring(x)
    bilinear = BILINEAR[name]

    def of(inputs: Ring, mask: Ring) -> Ring:
        return bilinear(*((mask, inputs) if weights_first else (inputs, mask)), *options)

    shape = output_shape(name, *((weights, x) if weights_first else (x, weights)), options)
    c = source.share_ring(shape, lambda: of(a.value, fixed.mask.value))
    known = None if fixed.opened is None else of(a.share, fixed.opened) + c
    return a.share, known, fixed.masked
