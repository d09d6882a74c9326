"""Bit-sliced values: bit b of 64 values in one word, so that one logical operation works on 64 of them.

n values of a row become W = ceil(n / 64) words; bits beyond n are padding and mean nothing.
"""

from __future__ import annotations

import numpy as np

from mpc.tuned.prg import Ring, Words


def words_for(n: int) -> int:
    """Words that hold one bit of each of n values."""
    return -(-n // 64)


def planes(values: Ring, bits: int) -> Words:
    """The lowest `bits` bits of values of shape (..., n), as planes of shape (bits, ..., W)."""
    n = values.shape[-1]
    count = -(-bits // 8)
    low = np.ascontiguousarray(values).view(np.uint8).reshape(*values.shape, 8)[..., :count]
    by_byte = np.zeros((count, *values.shape[:-1], 64 * words_for(n)), np.uint8)
    by_byte[..., :n] = np.moveaxis(low, -1, 0)
    one_hot = (1 << np.arange(8, dtype=np.uint8)).reshape(1, 8, *[1] * values.ndim)
    selected = (by_byte[:, None] & one_hot).reshape(8 * count, *by_byte.shape[1:])[:bits]
    return np.packbits(selected, axis=-1, bitorder="little").view(np.uint64)


def unpacked(words: Words, n: int) -> Ring:
    """The bits of words of shape (..., W) as integers 0 and 1 of shape (..., n)."""
    return np.unpackbits(words.view(np.uint8), axis=-1, count=n, bitorder="little").astype(np.int64)


def packed(bits: Ring) -> Words:
    """Integers 0 and 1 of shape (..., n) as words of shape (..., W)."""
    n = bits.shape[-1]
    padded = np.zeros((*bits.shape[:-1], 64 * words_for(n)), np.uint8)
    padded[..., :n] = bits
    return np.packbits(padded, axis=-1, bitorder="little").view(np.uint64)
