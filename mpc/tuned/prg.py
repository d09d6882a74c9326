"""Pseudo-random ring elements from a key: AES-128 in counter mode, from a vetted library."""

from __future__ import annotations

from math import prod

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

Ring = NDArray[np.int64]  # elements of Z_2^64
Words = NDArray[np.uint64]  # 64 bits of as many values in each element

KEY_BYTES = 16
_SPARE_WORDS = 2  # the library demands room for one more block behind what it writes
_ZEROS = memoryview(bytes(1 << 20))


class Prg:
    """The key stream of one key. Two holders of a key who draw the same shapes in the same order draw the same values.

    The counter starts at zero, so a key must serve one stream only.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key has {KEY_BYTES} bytes, got {len(key)}")
        self._stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def ring(self, shape: tuple[int, ...]) -> Ring:
        """Uniform ring elements of `shape`."""
        count = prod(shape)
        drawn = np.empty(count + _SPARE_WORDS, np.int64)
        buffer = memoryview(drawn.data).cast("B")
        for start in range(0, 8 * count, len(_ZEROS)):
            length = min(len(_ZEROS), 8 * count - start)
            self._stream.update_into(_ZEROS[:length], buffer[start:])
        return drawn[:count].reshape(shape)

    def words(self, shape: tuple[int, ...]) -> Words:
        """Uniform words of bits of `shape`."""
        return self.ring(shape).view(np.uint64)
