"""What a comparison is for: ReLU, maximum, and functions made of straight pieces. Three rounds each.

One masked opening c = x + r serves the comparison and the product with its outcome. The outcome's bits b are opened as
e = b ^ m, and with dealer-shared m and m r, in the ring, b = e + (1 - 2 e) m and b x = b (c - r) follow without another
message (b: Rotaru and Wood, INDOCRYPT 2019; the product with an opened masked value: ABY2.0, USENIX Security 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from mpc.traffic import Correlation
from mpc.tuned import comparison as c
from mpc.tuned.bits import unpacked, words_for
from mpc.tuned.engine import Engine, Events, dealt, opening
from mpc.tuned.prg import Ring, Words
from mpc.tuned.sources import Drawn, Source

WIDEST_FAN_IN = 5


@dataclass(slots=True)
class Signs:
    """What the bits of one comparison take; `ring_bit` holds their masks as ring elements."""

    tables: c.Tables
    conjunction: c.Conjunction
    bit_mask: Words


def deal_signs(
    source: Source, masks: Callable[[], Ring], n: int, leading: tuple[int, ...], chunks: int, shared_tables: bool
) -> tuple[Signs, Drawn[Words]]:
    """Material for bits of shape (*leading, n); with `shared_tables` the masks have shape (n,) alone."""
    shape = (*leading, words_for(n))
    tables = c.deal_tables(source, masks, n, () if shared_tables else leading, chunks)
    conjunction = c.deal_conjunction(source, shape, chunks)
    bit_mask = source.words(shape)
    return Signs(tables, conjunction, bit_mask.share), bit_mask


def signs(engine: Engine, masked: Ring, material: Signs, chunks: int) -> Words:
    """Shares of the bits [c - r < 0] for public c of shape (..., n), masked with `bit_mask`: 1 round."""
    equal, less, top = c.look_up(masked, material.tables, chunks, engine.first)
    (opened,) = engine.open_bits(c.to_open(equal, less, material.conjunction))
    return c.borrow(opened, less, material.conjunction) ^ top ^ material.bit_mask


def times_masked(bit: Ring, opened: Ring, mask: Ring, ring_bit: Ring, product: Ring, first: bool) -> Ring:
    """Share of b (c - r), where b = bit ^ m: from public `bit` and c, and shares of r, m and m r."""
    result: Ring = (1 - 2 * bit) * (opened * ring_bit - product)
    result += bit * (opened - mask if first else -mask)
    return result


def negative_part(engine: Engine, x: Ring, chunks: int) -> Ring:
    """min(x, 0) for |x| < 2^(4 chunks), x flat: 3 rounds, 8 n bytes and 2 k - 1 bits an element."""
    n = x.size
    mask, material, ring_bit, product = engine.take("negative_part", n, chunks)
    (opened,) = engine.open(x + mask)
    (masked_bits,) = engine.open_bits(signs(engine, opened, material, chunks))
    return times_masked(unpacked(masked_bits, n), opened, mask, ring_bit, product, engine.first)


def negative_part_events(n: int, chunks: int) -> Events:
    """Traffic of `negative_part`."""
    dealer_bytes = c.compare_correlation_bytes(n, 1, chunks) + 16 * n
    return [
        Correlation("negative_part", dealer_bytes, (n, chunks)),
        opening(n),
        c.conjunction_opening(n, 1, chunks),
        opening(words_for(n), bits=True),
    ]


@dealt("negative_part")
def _deal_negative_part(source: Source, n: int, chunks: int) -> Any:
    mask = source.ring((n,))
    material, bit = deal_signs(source, lambda: mask.value, n, (), chunks, shared_tables=False)
    ring_bit = source.share_ring((n,), lambda: unpacked(bit.value, n))
    product = source.share_ring((n,), lambda: unpacked(bit.value, n) * mask.value)
    return mask.share, material, ring_bit, product


def ring_signs(engine: Engine, x: Ring, chunks: int) -> Ring:
    """[x < 0] as ring elements for |x| < 2^(4 chunks), x flat: 3 rounds, 8 n bytes and 2 k - 1 bits an element."""
    n = x.size
    mask, material, ring_bit = engine.take("signs", n, chunks)
    (opened,) = engine.open(x + mask)
    (masked_bits,) = engine.open_bits(signs(engine, opened, material, chunks))
    bit = unpacked(masked_bits, n)
    return engine.plus((1 - 2 * bit) * ring_bit, bit)


def signs_events(n: int, chunks: int) -> Events:
    """Traffic of `ring_signs`."""
    return [
        Correlation("signs", c.compare_correlation_bytes(n, 1, chunks) + 8 * n, (n, chunks)),
        opening(n),
        c.conjunction_opening(n, 1, chunks),
        opening(words_for(n), bits=True),
    ]


@dealt("signs")
def _deal_ring_signs(source: Source, n: int, chunks: int) -> Any:
    mask = source.ring((n,))
    material, bit = deal_signs(source, lambda: mask.value, n, (), chunks, shared_tables=False)
    return mask.share, material, source.share_ring((n,), lambda: unpacked(bit.value, n))


def fan_ins(length: int) -> list[int]:
    """Fan-in of every level of a maximum over `length` entries: 4, at the root up to 5."""
    levels = []
    while length > WIDEST_FAN_IN:
        levels.append(4)
        length = length // 4 + length % 4
    return [*levels, length] if length > 1 else levels


def maximum(engine: Engine, x: Ring, chunks: int, drop: int = 0) -> Ring:
    """Largest entry of every row of x (rows, L): 3 rounds a level.

    Right where entries of a row differ by less than 2^(4 chunks + drop); the lowest `drop` bits are not compared, so
    the result may be less than the largest entry by up to 2^drop units a level.
    """
    rows = len(x)
    for fan_in in fan_ins(x.shape[1]):
        groups = x.shape[1] // fan_in
        taken = x[:, : groups * fan_in].reshape(rows * groups, fan_in).T
        best = _largest_of_each(engine, np.ascontiguousarray(taken), chunks, drop)
        x = np.concatenate([best.reshape(rows, groups), x[:, groups * fan_in :]], axis=1)
    return x


def maximum_events(rows: int, length: int, chunks: int, drop: int = 0) -> Events:
    """Traffic of `maximum`."""
    events: Events = []
    for fan_in in fan_ins(length):
        groups = rows * (length // fan_in)
        pairs = fan_in * (fan_in - 1) // 2
        ring_words = 2 * (fan_in - 1) * (2 ** (fan_in - 1) - 1) * groups
        dealer_bytes = c.compare_correlation_bytes(groups, pairs, chunks) + 8 * ring_words
        events += [
            Correlation("maximum", dealer_bytes, (groups, fan_in, chunks, drop)),
            opening((fan_in - 1) * groups),
            c.conjunction_opening(groups, pairs, chunks),
            opening(pairs * words_for(groups), bits=True),
        ]
        length = length // fan_in + length % fan_in
    return events


def _pairs(fan_in: int) -> list[tuple[int, int]]:
    return list(combinations(range(fan_in), 2))


def _largest_of_each(engine: Engine, x: Ring, chunks: int, drop: int) -> Ring:
    """Largest of each column of x (fan_in, groups): every pair is compared, the winner's bits select."""
    fan_in, groups = x.shape
    masks, material, products = engine.take("maximum", groups, fan_in, chunks, drop)
    (opened,) = engine.open(x[1:] - x[0] + masks)
    rounded = np.concatenate([np.zeros((1, groups), np.int64), opened >> drop])
    first, second = (list(side) for side in zip(*_pairs(fan_in), strict=True))
    (masked_bits,) = engine.open_bits(signs(engine, rounded[first] - rounded[second], material, chunks))
    less = dict(zip(_pairs(fan_in), unpacked(masked_bits, groups), strict=True))
    result: Ring = x[0].copy()
    for winner in range(1, fan_in):
        chosen = products[winner - 1]  # (2, 2^(fan_in - 1), groups): subsets of masks, without and with r
        for other in range(fan_in):
            if other != winner:
                bit = less[other, winner] if other < winner else 1 - less[winner, other]
                half = chosen.shape[1] // 2
                chosen = bit * chosen[:, :half] + (1 - 2 * bit) * chosen[:, half:]
        wins, wins_times_mask = chosen[:, 0]
        result += opened[winner - 1] * wins - wins_times_mask
    return result


@dealt("maximum")
def _deal_maximum(source: Source, groups: int, fan_in: int, chunks: int, drop: int) -> Any:
    masks = source.ring((fan_in - 1, groups))
    pairs = _pairs(fan_in)

    def differences() -> Ring:
        rounded = np.concatenate([np.zeros((1, groups), np.int64), masks.value >> drop])
        first, second = (list(side) for side in zip(*pairs, strict=True))
        return rounded[first] - rounded[second]

    material, bit = deal_signs(source, differences, groups, (len(pairs),), chunks, shared_tables=False)
    bits = None if bit.value is None else dict(zip(pairs, unpacked(bit.value, groups), strict=True))
    products = []
    for winner in range(1, fan_in):
        own = None
        if bits is not None:
            own = [bits[min(winner, o), max(winner, o)] for o in range(fan_in) if o != winner]
        products.append(_deal_subset_products(source, own, masks, winner, fan_in, groups))
    return masks.share, material, products


def _deal_subset_products(
    source: Source, bits: Sequence[Ring] | None, masks: Drawn[Ring], winner: int, fan_in: int, groups: int
) -> Ring:
    """Products of every subset of `bits`, and each of them times the winner's mask: (2, 2^(fan_in - 1), groups)."""
    subsets = 2 ** (fan_in - 1)

    def compute() -> Ring:
        assert bits is not None
        products = np.ones((1, groups), np.int64)
        for bit in bits:
            products = np.stack([products, products * bit], axis=1).reshape(-1, groups)
        return np.stack([products[1:], products[1:] * masks.value[winner - 1]])

    result = np.empty((2, subsets, groups), np.int64)
    result[0, 0] = int(source.first)
    result[1, 0] = masks.share[winner - 1]
    result[:, 1:] = source.share_ring((2, subsets - 1, groups), compute)
    return result
