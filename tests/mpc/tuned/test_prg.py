"""The key stream is AES-128 in counter mode from zero, in one piece whatever shapes it is drawn in."""

from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from mpc.tuned.prg import KEY_BYTES, Prg

KEY = bytes(range(KEY_BYTES))
SHAPES = st.lists(st.lists(st.integers(0, 5), max_size=3).map(tuple), min_size=1, max_size=8)


def test_the_stream_of_key_zero_is_that_of_the_gcm_specification() -> None:
    """AES under key zero of counters 0, 1 and 2: H and tag of test case 1, ciphertext of test case 2."""
    known = "66e94bd4ef8a2c3b884cfa59ca342b2e58e2fccefa7e3061367f1d57a4e7455a0388dace60b6a392f328c2b971b2fe78"
    assert Prg(bytes(KEY_BYTES)).ring((6,)).tobytes().hex() == known


def test_the_librarys_counter_mode_is_that_of_nist() -> None:
    """NIST SP 800-38A, F.5.1, first two blocks."""
    key, counter = "2b7e151628aed2a6abf7158809cf4f3c", "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff"
    plain = "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
    stream = Cipher(algorithms.AES(bytes.fromhex(key)), modes.CTR(bytes.fromhex(counter))).encryptor()
    assert stream.update(bytes.fromhex(plain)).hex() == (
        "874d6191b620e3261bef6864990db6ce9806f66b7970fdff8617187bb9fffdff"
    )


@pytest.mark.parametrize("count", [1, 2, 3, (1 << 17) - 1, 1 << 17, (1 << 17) + 1, 300_001])
def test_a_draw_equals_counters_under_the_block_cipher(count: int) -> None:
    """Also where a draw is cut into pieces of 2^17 elements; the draw after it goes on with the next 8 bytes."""
    blocks = b"".join(i.to_bytes(16, "big") for i in range((count + 3) // 2 + 1))
    expected = Cipher(algorithms.AES(KEY), modes.ECB()).encryptor().update(blocks)
    prg = Prg(KEY)
    assert prg.ring((count,)).tobytes() == expected[: 8 * count]
    assert prg.ring((3,)).tobytes() == expected[8 * count : 8 * count + 24]


@given(SHAPES, st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES))
@settings(max_examples=50)
def test_shapes_cut_one_stream_and_two_holders_agree(shapes: list[tuple[int, ...]], key: bytes) -> None:
    one, two = Prg(key), Prg(key)
    drawn = [one.ring(shape) for shape in shapes]
    assert [values.shape for values in drawn] == shapes
    again = [two.words(shape) for shape in shapes]
    assert all((a.view(np.uint64) == b).all() for a, b in zip(drawn, again, strict=True))
    whole = Prg(key).ring((sum(values.size for values in drawn),))
    assert (np.concatenate([values.reshape(-1) for values in drawn]) == whole).all()


def test_no_element_comes_twice_and_keys_differ() -> None:
    other = bytes([*KEY[:-1], KEY[-1] ^ 1])
    drawn = np.concatenate([Prg(key).ring((100_000,)) for key in (KEY, other)])
    assert len(np.unique(drawn)) == len(drawn)


def test_what_was_drawn_stays_when_more_is_drawn() -> None:
    prg = Prg(KEY)
    first = prg.ring((7,))
    kept = first.copy()
    prg.ring((1000,))
    assert (first == kept).all()


@pytest.mark.parametrize("length", [0, 15, 17, 32])
def test_a_key_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="a key has 16 bytes"):
        Prg(bytes(length))
