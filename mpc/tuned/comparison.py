"""Signs of masked values: bit-sliced, two rounds for up to 33 bits.

x is opened as c = x + r. Its sign is the top bit of c - r: c_top ^ r_top ^ borrow, where the borrow says whether the
lower bits of c are less than those of r. They are cut into k chunks of 4 bits. The dealer shares each chunk of r as a
one-hot table of 16 bits, so with c public every party looks up its share of [c = r] and [c < r] per chunk by itself.
One conjunction of up to 2 (k - 1) open bits with dealer-shared products of their masks then joins the chunks:

    borrow = lt_k-1 ^ eq_k-1 lt_k-2 ^ eq_k-1 eq_k-2 lt_k-3 ^ ...

Masked opening with dealer-shared bits: Damgard et al. (TCC 2006); tables: Ishai et al. (TCC 2013); conjunctions of many
bits in one round: ABY2.0 (USENIX Security 2021). W words hold one bit of each of n values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mpc.traffic import Message
from mpc.tuned.bits import planes, words_for
from mpc.tuned.engine import opening
from mpc.tuned.prg import Ring, Words
from mpc.tuned.sources import Drawn, Source

CHUNK_BITS = 4
MIN_CHUNKS, MAX_CHUNKS = 4, 8
_ALL_ONES = np.uint64(2**64 - 1)


def chunks_for(bound: float, fraction_bits: int) -> int:
    """Chunks that hold the sign of every |x| <= bound exactly; ValueError where bound is beyond the widest comparison.

    k chunks tell signs for |x| < 2^(4 k - f).
    """
    bits = int(bound * 2**fraction_bits).bit_length()  # x = bound itself needs a bit more where that is a power of two
    chunks = max(MIN_CHUNKS, -(-bits // CHUNK_BITS))
    if chunks > MAX_CHUNKS:
        widest = 2.0 ** (CHUNK_BITS * MAX_CHUNKS - fraction_bits)
        raise ValueError(
            f"values up to {bound:g} are beyond the widest comparison, |x| < {widest:g} with {fraction_bits} fraction "
            "bits: declare narrower ranges, or take fewer fraction bits"
        )
    return chunks


@dataclass(slots=True)
class Tables:
    """Shares of the one-hot chunks (k, 16, ..., W) of masks r, and of the bit above them (..., W)."""

    one_hot: Words
    top: Words


@dataclass(slots=True)
class Conjunction:
    """Shares of the masks of open bits, and of products of those masks.

    `equal` (k-1, ..., W) and `less` (k-1, ..., W), top chunk first, belong to the chunks that are opened. `products`
    (2^(k-1), ..., W) holds the product of every subset of the masks of `equal`; `with_less[i - 1]` (2^i, ..., W) those
    of the first i masks with the mask of `less` of the chunk below them. A subset's first mask is the leading bit of
    its index.
    """

    equal: Words
    less: Words
    products: Words
    with_less: list[Words]


def table_words(n: int, chunks: int) -> int:
    """Words that the dealer sends for `deal_tables` of n masks."""
    return (16 * chunks + 1) * words_for(n)


def conjunction_planes(chunks: int) -> int:
    """Planes that `borrow` opens."""
    return 2 * (chunks - 1)


def conjunction_dealt_planes(chunks: int) -> int:
    """Planes of mask products that the dealer sends: subsets of `equal` of two or more, and any with one of `less`."""
    return (1 << (chunks - 1)) - chunks + sum((1 << above) - 1 for above in range(1, chunks))


def deal_tables(source: Source, masks: Callable[[], Ring], n: int, leading: tuple[int, ...], chunks: int) -> Tables:
    """Tables of the masks of shape (*leading, n) that the dealer computes."""
    dealt: list[Words] = []

    def bits() -> Words:
        if not dealt:
            dealt.append(planes(masks(), CHUNK_BITS * chunks + 1))
        return dealt[0]

    def one_hot() -> Words:
        by_chunk = bits()[:-1].reshape(chunks, CHUNK_BITS, *bits().shape[1:])
        tables = np.full((chunks, 1, *bits().shape[1:]), _ALL_ONES)
        for bit in reversed(range(CHUNK_BITS)):
            plane = by_chunk[:, bit, None]
            tables = np.stack([tables & ~plane, tables & plane], axis=2).reshape(chunks, -1, *bits().shape[1:])
        return tables

    shape = (*leading, words_for(n))
    return Tables(source.share_words((chunks, 16, *shape), one_hot), source.share_words(shape, lambda: bits()[-1]))


def deal_conjunction(source: Source, shape: tuple[int, ...], chunks: int) -> Conjunction:
    """Masks and mask products for bits of shape (..., W)."""
    equal, less = source.words((chunks - 1, *shape)), source.words((chunks - 1, *shape))
    subsets = 2 ** (chunks - 1)
    singles = [1 << (chunks - 2 - i) for i in range(chunks - 1)]
    derived = [s for s in range(1, subsets) if s not in singles]
    plain = None if equal.value is None else _subset_products(equal.value)
    products = np.zeros((subsets, *shape), np.uint64)
    products[0] = _ALL_ONES if source.first else 0
    products[singles] = equal.share
    products[derived] = source.share_words((len(derived), *shape), lambda: plain[derived])  # type: ignore[index]
    with_less = [_deal_with_less(source, plain, less, above, chunks, shape) for above in range(1, chunks)]
    return Conjunction(equal.share, less.share, products, with_less)


def _deal_with_less(
    source: Source, plain: Words | None, less: Drawn[Words], above: int, chunks: int, shape: tuple[int, ...]
) -> Words:
    """Products of subsets of the first `above` masks of `equal` with the mask of the chunk below them."""
    stride = 1 << (chunks - 1 - above)  # subsets of the first masks only

    def compute() -> Words:
        assert plain is not None
        joined: Words = plain[stride::stride] & less.value[above - 1]
        return joined

    shared = source.share_words((2**above - 1, *shape), compute)
    return np.concatenate([less.share[None, above - 1], shared])


def _subset_products(bits: Words) -> Words:
    """Product of every subset of `bits`, the first bit leading in a subset's index."""
    products = np.full((1, *bits.shape[1:]), _ALL_ONES)
    for bit in bits:
        products = np.stack([products, products & bit], axis=1).reshape(-1, *bits.shape[1:])
    return products


def look_up(masked: Ring, tables: Tables, chunks: int, first: bool) -> tuple[Words, Words, Words]:
    """Shares of [c = r] and [c < r] by chunk, top chunk first, and of c_top ^ r_top, for public masked values c."""
    bits = planes(masked, CHUNK_BITS * chunks + 1)
    by_chunk = bits[:-1].reshape(chunks, CHUNK_BITS, *bits.shape[1:])
    one_hot = tables.one_hot
    if one_hot.ndim < by_chunk.ndim:  # one mask under several thresholds
        one_hot = one_hot[:, :, None]
    above = np.bitwise_xor.accumulate(one_hot[:, :0:-1], axis=1)[:, ::-1]  # [r > v] for v = 0..14
    less = np.concatenate([above, np.zeros_like(one_hot[:, :1])], axis=1)
    both = np.stack([one_hot, less])
    for bit in reversed(range(CHUNK_BITS)):
        half = both.shape[2] // 2
        low, high = both[:, :, :half], both[:, :, half:]
        both = low ^ (by_chunk[:, bit, None] & (low ^ high))
    equal, less = both[0, ::-1, 0], both[1, ::-1, 0]
    top = tables.top ^ bits[-1] if first else np.broadcast_to(tables.top, bits[-1].shape)
    return equal, less, top


def to_open(equal: Words, less: Words, masks: Conjunction) -> Words:
    """What the parties open so that the chunks can be joined: (2 (k - 1), ..., W)."""
    return np.concatenate([equal[:-1] ^ masks.equal, less[1:] ^ masks.less])


def borrow(opened: Words, less: Words, masks: Conjunction) -> Words:
    """Share of [c < r] over all chunks, from the opened bits and this party's share of the top chunk's `less`."""
    chunks = len(less)
    open_equal, open_less = opened[: chunks - 1], opened[chunks - 1 :]
    result: Words = less[0].copy()
    products = masks.products
    for above in range(1, chunks):
        products = _folded(products, open_equal[above - 1])
        joined = masks.with_less[above - 1]
        for bit in open_equal[:above]:
            joined = _folded(joined, bit)
        result ^= joined[0] ^ (open_less[above - 1] & products[0])
    return result


def _folded(products: Words, bit: Words) -> Words:
    """Replace the leading mask of every subset by the bit that it masks: bit = open ^ mask."""
    half = len(products) // 2
    return products[half:] ^ (products[:half] & bit)


def compare_correlation_bytes(n: int, leading: int, chunks: int, tables: int | None = None) -> int:
    """Bytes that the dealer sends for signs of `leading` rows of n values, with tables for `tables` rows of masks."""
    tables = leading if tables is None else tables
    planes_dealt = conjunction_dealt_planes(chunks) * leading * words_for(n)
    return 8 * (tables * table_words(n, chunks) + planes_dealt)


def conjunction_opening(n: int, leading: int, chunks: int) -> Message:
    """The message of the conjunction."""
    return opening(conjunction_planes(chunks) * leading * words_for(n), bits=True)
