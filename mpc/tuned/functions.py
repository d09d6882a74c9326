"""Non-linear functions on shares under the tuned scheme: each with its cost, and its closed form beside it.

Shapes: n elements; rows B and row length L for functions along the last dimension. f is the number of fraction bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mpc.scheme import Scheme
from mpc.traffic import Correlation
from mpc.tuned import comparison as c
from mpc.tuned import selection
from mpc.tuned.approximations import EvenChain, ExpChain, exp_chain, exp_relative
from mpc.tuned.bits import unpacked, words_for
from mpc.tuned.checking import check_range, check_range_events
from mpc.tuned.engine import Engine, Events, dealt, division_events, opening, truncation_events
from mpc.tuned.pieces import (
    inverse_square_root,
    inverse_square_root_events,
    reciprocal_positive,
    reciprocal_positive_events,
)
from mpc.tuned.prg import Ring
from mpc.tuned.products import deal_square, opened_square, product, product_events, square, square_events
from mpc.tuned.selection import Signs, deal_signs, times_masked
from mpc.tuned.sources import FixedMask, Source

_MAXIMUM_CHUNKS = 4  # 16 bits tell scores apart to 2^-16 of their range, which softmax does not notice


def combination(engine: Engine, terms: list[Ring], factors: list[float], constant: float = 0.0) -> Ring:
    """Sum of terms times public factors, plus a public constant; truncated once."""
    total: Ring = terms[0] * engine.encode(factors[0])
    for term, factor in zip(terms[1:], factors[1:], strict=True):
        total += term * engine.encode(factor)
    return engine.truncate(engine.plus(total, engine.encode(constant, 2 * engine.fraction_bits)))


def squared(engine: Engine, x: Ring) -> Ring:
    """x^2: 1 round, 8 n bytes."""
    return engine.truncate(square(engine, x))


def squared_events(scheme: Scheme, shape: tuple[int, ...]) -> Events:
    """Traffic of `squared`."""
    return square_events(shape) + truncation_events(scheme, shape)


def exp(engine: Engine, x: Ring, chain: ExpChain) -> Ring:
    """e^x on the chain's domain: a line, then a square and a constant at a time; 1 round, 8 n bytes a squaring."""
    y = combination(engine, [x], [chain.slope], chain.start)
    for constant in chain.constants:
        y = engine.plus(squared(engine, y), engine.encode(constant))
    return y


def exp_events(scheme: Scheme, shape: tuple[int, ...], chain: ExpChain) -> Events:
    """Traffic of `exp`."""
    return truncation_events(scheme, shape) + squared_events(scheme, shape) * len(chain.constants)


def _drop(gap: float, fraction_bits: int) -> int:
    """Bits that the maximum inside softmax leaves out so that 16 bits tell all differences up to `gap`."""
    room = 1 + 2.0**-12  # for rounding, and so that a gap of a power of two gets the bit that it needs
    return max(0, fraction_bits + math.ceil(math.log2(gap * room)) - c.CHUNK_BITS * _MAXIMUM_CHUNKS)


def softmax(engine: Engine, x: Ring, gap: float) -> Ring:
    """Softmax of rows (B, L) whose entries lie within `gap` of the row's largest.

    Maximum, exp, the reciprocal of a sum that lies in [1, L] by construction, a product.
    """
    largest = selection.maximum(engine, x, _MAXIMUM_CHUNKS, _drop(gap, engine.fraction_bits))
    below = x - largest
    check_range(engine, below, -gap, 0.1)  # a maximum without its lowest bits may lie a little low
    numerator = exp(engine, below, exp_chain(-gap))
    inverse = reciprocal_positive(engine, numerator.sum(1), *_sum_range(x.shape[1]))
    return engine.truncate(product(engine, "multiply", numerator, inverse.reshape(-1, 1)))


def softmax_events(scheme: Scheme, rows: int, length: int, gap: float) -> Events:
    """Traffic of `softmax`."""
    shape = (rows, length)
    return [
        *selection.maximum_events(rows, length, _MAXIMUM_CHUNKS, _drop(gap, scheme.precision_bits)),
        *check_range_events(scheme, rows * length),
        *exp_events(scheme, shape, exp_chain(-gap)),
        *reciprocal_positive_events(scheme, rows, *_sum_range(length)),
        *product_events("multiply", shape, (rows, 1)),
        *truncation_events(scheme, shape),
    ]


def _sum_range(length: int) -> tuple[float, float]:
    """Sums of e^(x - max) over a row, with room for the errors of maximum and exp."""
    return 0.9, 1.05 * length + 0.1


def softmax_without_maximum(engine: Engine, x: Ring, bound: float) -> Ring:
    """Softmax of rows (B, L) of scores in [-bound, bound], taking e^x as it is: no maximum, no comparison of scores."""
    length = x.shape[1]
    check_range(engine, x, -bound, bound)
    numerator = exp(engine, x, exp_relative(bound))
    mean = engine.divide(numerator.sum(1), length)
    inverse = reciprocal_positive(engine, mean, *_mean_range(bound))
    return engine.divide(product(engine, "multiply", numerator, inverse.reshape(-1, 1)), length * engine.one)


def softmax_without_maximum_events(scheme: Scheme, rows: int, length: int, bound: float) -> Events:
    """Traffic of `softmax_without_maximum`."""
    shape = (rows, length)
    return [
        *check_range_events(scheme, rows * length),
        *exp_events(scheme, shape, exp_relative(bound)),
        *division_events(scheme, (rows,), length),
        *reciprocal_positive_events(scheme, rows, *_mean_range(bound)),
        *product_events("multiply", shape, (rows, 1)),
        *division_events(scheme, shape, length << scheme.precision_bits),
    ]


def _mean_range(bound: float) -> tuple[float, float]:
    """Means of e^x for scores in [-bound, bound]: what rows of scores in the upper half of it reach."""
    return math.exp(-bound / 2), 1.05 * math.exp(bound)


def _mean_gain_bits(low: float, high: float) -> int:
    """Bits by which row means are scaled, up or down, so that they and their reciprocals keep as many digits each."""
    return max(-12, min(12, round(-math.log2(low * high) / 2), math.floor(math.log2(2.0**15 / high))))


def row_normalize(engine: Engine, x: Ring, eps: float, low: float, high: float) -> Ring:
    """x / (sum x + eps) of rows (B, L), x >= 0, for means in [low, high] (or all 0): 6 rounds.

    Computed as (x / (g mean)) g / L, with a power of two g that brings the range of means around 1.
    """
    length, gain_bits = x.shape[1], _mean_gain_bits(low, high)
    gain = 2.0**gain_bits
    total = engine.plus(x.sum(1), engine.encode(eps))
    mean = engine.divide(total << max(gain_bits, 0), length << max(-gain_bits, 0))
    check_range(engine, mean, -1.0, gain * high)  # rows of zeros may lie below `low`
    inverse = reciprocal_positive(engine, mean, gain * low, gain * high)
    scaled = product(engine, "multiply", x, inverse.reshape(-1, 1))
    return engine.divide(scaled, _row_divisor(length, gain_bits, engine.fraction_bits))


def _row_divisor(length: int, gain_bits: int, fraction_bits: int) -> int:
    """L 2^f / g: from the product's scale, less the gain, to the share of one entry."""
    return length << (fraction_bits - gain_bits)


def row_normalize_events(scheme: Scheme, rows: int, length: int, low: float, high: float) -> Events:
    """Traffic of `row_normalize`."""
    gain_bits = _mean_gain_bits(low, high)
    gain = 2.0**gain_bits
    return [
        *division_events(scheme, (rows,), length << max(-gain_bits, 0)),
        *check_range_events(scheme, rows),
        *reciprocal_positive_events(scheme, rows, gain * low, gain * high),
        *product_events("multiply", (rows, length), (rows, 1)),
        *division_events(scheme, (rows, length), _row_divisor(length, gain_bits, scheme.precision_bits)),
    ]


def _variance_gain_bits(low: float, high: float) -> int:
    """An even number of bits by which layer norm scales variances up, so that both ends of their range keep digits.

    A small variance loses digits as it is, a large one as its inverse root; the scale balances the two.
    """
    balanced = -2 / 3 * math.log2(2 * low * math.sqrt(high))
    largest = math.log2(2.0**15 / high)
    return max(0, 2 * math.floor(min(balanced, largest, 14) / 2))


def layer_norm(engine: Engine, x: Ring, eps: float, low: float, high: float, fixed: bool) -> Ring:
    """(x - mean) / sqrt(variance + eps) of rows (B, L), variance in [low, high], times fixed weights where there are.

    The centred rows are opened once, for their squares and for the product with the weights: 8 rounds, 16 B L bytes.
    """
    rows, length = x.shape
    centred = x - engine.divide(x.sum(1), length).reshape(-1, 1)
    a, a_squared, known, masked = engine.take("layer_norm", rows, length, fixed)
    (e,) = engine.open(centred - a)
    squares = 2 * (e * a).sum(1) + a_squared
    variance = engine.divide(engine.plus(squares, (e * e).sum(1)), length)
    gain_bits = _variance_gain_bits(low, high)
    gain = 1 << gain_bits
    variance = engine.truncate(variance, engine.fraction_bits - gain_bits)
    check_range(engine, variance, gain * low, gain * high)
    root = inverse_square_root(engine, engine.plus(variance, engine.encode(gain * eps)), gain * low, gain * high)
    weighted = engine.truncate(e * masked + known) if fixed else centred
    return engine.truncate(product(engine, "multiply", weighted, math.isqrt(gain) * root.reshape(-1, 1)))


def layer_norm_events(scheme: Scheme, rows: int, length: int, low: float, high: float, fixed: bool) -> Events:
    """Traffic of `layer_norm`; the setup of its weights is the caller's."""
    n, gain_bits = rows * length, _variance_gain_bits(low, high)
    gain = 1 << gain_bits
    dealer_bytes = 8 * (rows + n * fixed)
    return [
        *division_events(scheme, (rows,), length),
        Correlation("layer_norm", dealer_bytes, (rows, length, fixed)),
        opening(n),
        *division_events(scheme, (rows,), length),
        *truncation_events(scheme, (rows,), scheme.precision_bits - gain_bits),
        *check_range_events(scheme, rows),
        *inverse_square_root_events(scheme, rows, gain * low, gain * high),
        *(truncation_events(scheme, (rows, length)) if fixed else []),
        *product_events("multiply", (rows, length), (rows, 1)),
        *truncation_events(scheme, (rows, length)),
    ]


@dealt("layer_norm")
def _deal_layer_norm(source: Source, rows: int, length: int, fixed: bool) -> tuple[Any, ...]:
    a = source.ring((rows, length))
    a_squared = source.share_ring((rows,), lambda: (a.value * a.value).sum(1))
    if not fixed:
        return a.share, a_squared, None, None
    weights: FixedMask = source.next_fixed()
    weighted = source.share_ring((rows, length), lambda: a.value * weights.mask.value)
    known = None if weights.opened is None else a.share * weights.opened + weighted
    return a.share, a_squared, known, weights.masked


@dataclass(slots=True)
class BentMaterial:
    """What `bent` takes: masks r of x, a of the middle, one for each square; products of masks; bits of two signs."""

    mask: Ring
    mask_squared: Ring
    signs: Signs
    ring_bit: Ring
    bit_times_mask: Ring
    squares: list[tuple[Ring, Ring]]
    middle: Ring
    bit_times_middle: Ring


def bent(engine: Engine, x: Ring, chain: EvenChain, bound: float) -> Ring:
    """x / 2 + an even function of x inside +-cut, 0 below and x above, for flat |x| < bound: GELU and SiLU.

    The even part is a chain of squarings that starts from x^2; the bits [x < -cut] and [x < cut] are found beside it.
    With s squarings s + 1 rounds, 8 (s + 1) n bytes and 2 (2 k - 1) bits an element.
    """
    n = x.size
    chunks = c.chunks_for(bound + chain.cut, engine.fraction_bits)
    take: BentMaterial = engine.take("bent", n, chunks, len(chain.squares))
    (opened,) = engine.open(x + take.mask)
    w = take.mask_squared - 2 * opened * take.mask
    terms = [engine.truncate(engine.plus(w, opened * opened))]
    edges = np.array([[engine.encode(-chain.cut)], [engine.encode(chain.cut)]])
    equal, less, top = c.look_up(opened - edges, take.signs.tables, chunks, engine.first)
    beside = c.to_open(equal, less, take.signs.conjunction)  # what is opened beside the next square
    for number, row in enumerate(chain.squares):
        mask, mask_squared = take.squares[number]
        y = combination(engine, terms, list(row[1:]), row[0])
        parts: list[tuple[Any, Literal["ring", "bits"]]] = [(y - mask, "ring")]
        e, *bits = engine.exchange([*parts, (beside, "bits")] if number < 2 else parts)
        if number == 0:
            beside = c.borrow(bits[0], less, take.signs.conjunction) ^ top ^ take.signs.bit_mask
        elif number == 1:
            masked_bits = bits[0]
        terms.append(engine.truncate(opened_square(engine, e, mask, mask_squared)))
    middle = combination(engine, [x, *terms], [0.5, *chain.combination[1:]], chain.combination[0] + chain.outside)
    (e,) = engine.open(middle - take.middle)
    bit = unpacked(masked_bits, n)  # [x < -cut] and [x < cut], masked
    below = times_masked(bit[1], opened, take.mask, take.ring_bit[1], take.bit_times_mask, engine.first)
    chosen = _times_bit(engine, bit, take.ring_bit, e, take.middle, take.bit_times_middle)
    return engine.plus(x - below + chosen[1] - chosen[0], -engine.encode(chain.outside))


def _times_bit(engine: Engine, bit: Ring, ring_bit: Ring, e: Ring, a: Ring, product: Ring) -> Ring:
    """b (e + a) for b = bit ^ m: from public `bit` and e, and shares of m, a and m a."""
    result = bit * a + (1 - 2 * bit) * (e * ring_bit + product)
    return result + bit * e if engine.first else result


def bent_events(scheme: Scheme, n: int, chain: EvenChain, bound: float) -> Events:
    """Traffic of `bent`."""
    chunks = c.chunks_for(bound + chain.cut, scheme.precision_bits)
    squares, words = len(chain.squares), words_for(n)
    dealer_bytes = c.compare_correlation_bytes(n, 2, chunks, tables=1) + 8 * (6 + squares) * n
    beside = [2 * c.conjunction_planes(chunks) * words, 2 * words] + [0] * (squares - 2)
    cut = truncation_events(scheme, (n,))
    events: Events = [Correlation("bent", dealer_bytes, (n, chunks, squares)), opening(n), *cut]
    for bits in beside:
        events += [*cut, opening(n, bits), *cut]
    return [*events, *cut, opening(n)]


@dealt("bent")
def _deal_bent(source: Source, n: int, chunks: int, squares: int) -> BentMaterial:
    mask = source.ring((n,))
    mask_squared = source.share_ring((n,), lambda: mask.value * mask.value)
    material, bit = deal_signs(source, lambda: mask.value, n, (2,), chunks, shared_tables=True)
    ring_bit = source.share_ring((2, n), lambda: unpacked(bit.value, n))
    bit_times_mask = source.share_ring((n,), lambda: unpacked(bit.value[1], n) * mask.value)
    pairs = [deal_square(source, (n,)) for _ in range(squares)]
    middle = source.ring((n,))
    bit_times_middle = source.share_ring((2, n), lambda: unpacked(bit.value, n) * middle.value)
    return BentMaterial(
        mask.share, mask_squared, material, ring_bit, bit_times_mask, pairs, middle.share, bit_times_middle
    )
