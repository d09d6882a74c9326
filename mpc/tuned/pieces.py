"""Functions made of straight pieces, and the reciprocal and inverse square root that start from them.

Which piece x lies in is found by comparing it with every threshold at once: one masked opening, the same tables, one
conjunction, one opening of bits. A Newton (Goldschmidt) step then squares the relative error of the start; it reuses
the masked opening of x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from mpc.scheme import Scheme
from mpc.traffic import Correlation
from mpc.tuned import comparison as c
from mpc.tuned.approximations import Pieces, inverse_root_pieces, reciprocal_pieces
from mpc.tuned.bits import unpacked, words_for
from mpc.tuned.engine import Engine, Events, dealt, opening, truncate_locally, truncation_events
from mpc.tuned.prg import Ring
from mpc.tuned.selection import Signs, deal_signs, signs, times_masked
from mpc.tuned.sources import Source

Step = Literal["none", "reciprocal", "inverse_root"]
# Masks, and products of masks, that the step takes for each element.
_STEP_PRODUCTS = {"none": 0, "reciprocal": 2, "inverse_root": 3}


@dataclass(slots=True)
class PiecesMaterial:
    """What `piecewise` takes; `step` holds the masks and mask products of the Newton step."""

    mask: Ring
    signs: Signs
    ring_bit: Ring
    product: Ring
    step: tuple[Ring, ...]


def _chunks(pieces: Pieces, low: float, high: float, fraction_bits: int) -> int:
    """Chunks that compare x in [low, high] with every threshold."""
    return c.chunks_for(max(high - pieces.thresholds[0], pieces.thresholds[-1] - low), fraction_bits)


def piecewise(engine: Engine, x: Ring, pieces: Pieces, low: float, high: float) -> Ring:
    """The piecewise linear function of flat x in [low, high]: 3 rounds, 8 n bytes and J (2 k - 1) bits an element."""
    value, _, _ = _evaluate(engine, x, pieces, low, high, "none")
    return value


def piecewise_events(scheme: Scheme, n: int, pieces: Pieces, low: float, high: float, step: Step = "none") -> Events:
    """Traffic of `piecewise`, or of the start of a function with `step`."""
    thresholds, chunks = len(pieces.thresholds), _chunks(pieces, low, high, scheme.precision_bits)
    ring_words = 2 * thresholds * n + _STEP_PRODUCTS[step] * n
    dealer_bytes = c.compare_correlation_bytes(n, thresholds, chunks, tables=1) + 8 * ring_words
    return [
        Correlation("pieces", dealer_bytes, (n, thresholds, chunks, step)),
        opening(n),
        c.conjunction_opening(n, thresholds, chunks),
        opening(thresholds * words_for(n), bits=True),
        *truncation_events(scheme, (n,), _slope_bits(scheme, pieces)),
    ]


def _slope_bits(scheme: Scheme, pieces: Pieces) -> int:
    """Fraction bits of slopes where the dealer truncates.

    Local truncation ruins a value v at f + s bits with probability |v| 2^(f + s - 64), so that s stays at f there, and
    x gives up bits instead where it is large (`_shifts`).
    """
    if scheme.truncation == "local":
        return scheme.precision_bits
    room = 61 - scheme.precision_bits - math.ceil(math.log2(max(map(abs, pieces.intercepts))))
    return min(pieces.slope_bits, room)


def _shifts(scheme: Scheme, pieces: Pieces) -> list[int]:
    """Bits of x that each piece's slope gains and x loses: as many as x has before its binary point there."""
    if scheme.truncation == "dealer":
        return [0] * len(pieces.slopes)
    edges = [abs(t) for t in (*pieces.thresholds, pieces.thresholds[-1])]
    return [max(0, min(math.floor(math.log2(max(edge, 1.0))), scheme.precision_bits)) for edge in edges]


def _evaluate(
    engine: Engine, x: Ring, pieces: Pieces, low: float, high: float, step: Step
) -> tuple[Ring, Ring, PiecesMaterial]:
    """The value, x as it was opened, and the material."""
    n, thresholds = x.size, len(pieces.thresholds)
    chunks = _chunks(pieces, low, high, engine.fraction_bits)
    material: PiecesMaterial = engine.take("pieces", n, thresholds, chunks, step)
    (opened,) = engine.open(x + material.mask)
    edges = np.array([engine.encode(t) for t in pieces.thresholds]).reshape(-1, 1)
    (masked_bits,) = engine.open_bits(signs(engine, opened - edges, material.signs, chunks))
    bit = unpacked(masked_bits, n)
    below = (1 - 2 * bit) * material.ring_bit  # shares of [x < t_j]
    if engine.first:
        below += bit
    below_times_x = times_masked(bit, opened, material.mask, material.ring_bit, material.product, engine.first)
    bits, shifts = _slope_bits(engine.scheme, pieces), _shifts(engine.scheme, pieces)
    # Of the piece x lies in and all above it, thresholds count: each adds the step from the piece above to its own.
    steps = [engine.encode(a - b, bits + t) for (a, b), t in zip(pairwise(pieces.slopes), shifts, strict=False)]
    rises = [engine.encode(a - b, engine.fraction_bits + bits) for a, b in pairwise(pieces.intercepts)]
    shifted = _shifted(engine, below_times_x, np.array(shifts[:-1]).reshape(-1, 1))
    result = np.array(rises) @ below + np.array(steps) @ shifted
    result += engine.encode(pieces.slopes[-1], bits + shifts[-1]) * _shifted(engine, x, shifts[-1])
    result = engine.plus(result, engine.encode(pieces.intercepts[-1], engine.fraction_bits + bits))
    return engine.truncate(result, bits), opened, material


def _shifted(engine: Engine, share: Ring, bits: Any) -> Ring:
    """share / 2^bits, truncated locally."""
    return share if not np.any(bits) else truncate_locally(engine, share, bits)


@dealt("pieces")
def _deal_pieces(source: Source, n: int, thresholds: int, chunks: int, step: Step) -> PiecesMaterial:
    mask = source.ring((n,))
    material, bit = deal_signs(source, lambda: mask.value, n, (thresholds,), chunks, shared_tables=True)
    ring_bit = source.share_ring((thresholds, n), lambda: unpacked(bit.value, n))
    product = source.share_ring((thresholds, n), lambda: unpacked(bit.value, n) * mask.value)
    if step == "none":
        return PiecesMaterial(mask.share, material, ring_bit, product, ())
    start, update = source.ring((n,)), source.ring((n,))
    masks = [start.share, update.share]
    products = [
        source.share_ring((n,), lambda: mask.value * start.value),
        source.share_ring((n,), lambda: start.value * update.value),
    ]
    if step == "inverse_root":
        last = source.ring((n,))
        masks.append(last.share)
        products.append(source.share_ring((n,), lambda: start.value * last.value))
    return PiecesMaterial(mask.share, material, ring_bit, product, (*masks, *products))


def _masked_times(engine: Engine, opened: Ring, mask: Ring, e: Ring, a: Ring, product: Ring) -> Ring:
    """(c - r) (e + a) for public c and e, shares of r, a and r a."""
    result = opened * a - e * mask - product
    return result + opened * e if engine.first else result


def _times(engine: Engine, e: Ring, a: Ring, h: Ring, b: Ring, product: Ring) -> Ring:
    """(e + a) (h + b) for public e and h, shares of a, b and a b."""
    result = e * b + a * h + product
    return result + e * h if engine.first else result


def reciprocal_positive(engine: Engine, x: Ring, low: float, high: float) -> Ring:
    """1 / x for flat x in [low, high]: 5 rounds. Below `low` the result stays finite."""
    start, opened, material = _evaluate(engine, x, reciprocal_pieces(low, high), 0.0, high, "reciprocal")
    a, b, mask_a, a_b = material.step
    (e,) = engine.open(start - a)
    near_one = engine.truncate(_masked_times(engine, opened, material.mask, e, a, mask_a))
    update = engine.plus(-near_one, 2 * engine.one)
    (h,) = engine.open(update - b)
    return engine.truncate(_times(engine, e, a, h, b, a_b))


def reciprocal_positive_events(scheme: Scheme, n: int, low: float, high: float) -> Events:
    """Traffic of `reciprocal_positive`."""
    step: Events = [opening(n), *truncation_events(scheme, (n,))]
    return piecewise_events(scheme, n, reciprocal_pieces(low, high), 0.0, high, "reciprocal") + step * 2


def inverse_square_root(engine: Engine, x: Ring, low: float, high: float) -> Ring:
    """x^(-1/2) for flat x in [low, high]: 6 rounds. Below `low` the result stays finite."""
    start, opened, material = _evaluate(engine, x, inverse_root_pieces(low, high), 0.0, high, "inverse_root")
    a, b, d, mask_a, a_b, a_d = material.step
    (e,) = engine.open(start - a)
    root = engine.truncate(_masked_times(engine, opened, material.mask, e, a, mask_a))  # x w, about sqrt x
    (h,) = engine.open(root - b)
    near_one = engine.truncate(_times(engine, e, a, h, b, a_b))  # x w^2
    update = engine.plus(-near_one, 3 * engine.one)
    (g,) = engine.open(update - d)
    return engine.truncate(_times(engine, e, a, g, d, a_d), engine.fraction_bits + 1)


def inverse_square_root_events(scheme: Scheme, n: int, low: float, high: float) -> Events:
    """Traffic of `inverse_square_root`."""
    step: Events = [opening(n), *truncation_events(scheme, (n,))]
    last: Events = [opening(n), *truncation_events(scheme, (n,), scheme.precision_bits + 1)]
    return piecewise_events(scheme, n, inverse_root_pieces(low, high), 0.0, high, "inverse_root") + step * 2 + last
