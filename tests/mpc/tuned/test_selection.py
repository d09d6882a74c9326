"""Comparisons are exact, also at the edges of their range, and one step beyond it they are not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpc.tuned import selection as s
from mpc.tuned.bits import packed, planes, unpacked
from mpc.tuned.comparison import chunks_for
from tests.mpc.tuned.two_engines import run_both, shared

RNG = np.random.default_rng(6)
CHUNKS = [4, 5, 6, 7, 8]


@pytest.mark.parametrize("chunks", CHUNKS)
def test_signs_are_exact_on_the_whole_declared_range(chunks: int) -> None:
    bound = 2 ** (4 * chunks)
    edges = [0, 1, -1, bound - 1, -bound, 1 - bound, bound // 2, -bound // 2, 15, 16, -16, -17]
    values = np.array(edges + list(RNG.integers(-bound, bound, 20_000)))
    outcome = run_both(lambda e, a: s.ring_signs(e, a, chunks), s.signs_events(len(values), chunks), shared(values))
    assert (outcome.opened == (values < 0)).all()


@pytest.mark.parametrize("chunks", CHUNKS)
def test_one_step_beyond_the_range_the_sign_is_wrong(chunks: int) -> None:
    bound = 2 ** (4 * chunks)
    values = np.array([bound, -bound - 1] * 100)
    outcome = run_both(lambda e, a: s.ring_signs(e, a, chunks), s.signs_events(200, chunks), shared(values))
    assert (outcome.opened != (values < 0)).all()


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("n", [1, 63, 64, 65, 1000])
def test_the_negative_part_is_exact(chunks: int, n: int) -> None:
    bound = 2 ** (4 * chunks)
    values = RNG.integers(-bound, bound, n)
    events = s.negative_part_events(n, chunks)
    outcome = run_both(lambda e, a: s.negative_part(e, a, chunks), events, shared(values))
    assert (outcome.opened == np.minimum(values, 0)).all()


@given(st.integers(1, 200), st.integers(1, 4), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_the_maximum_is_exact_with_ties(length: int, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(-(2**19), 2**19, (rows, length)) // rng.choice([1, 2**16])
    outcome = run_both(lambda e, a: s.maximum(e, a, 5), s.maximum_events(rows, length, 5), shared(values))
    assert (outcome.opened[:, 0] == values.max(1)).all()


@given(st.integers(2, 100), st.integers(1, 10), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_dropping_bits_costs_at_most_one_step_a_level(length: int, drop: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(-(2 ** (14 + drop)), 2 ** (14 + drop), (5, length))
    outcome = run_both(lambda e, a: s.maximum(e, a, 4, drop), s.maximum_events(5, length, 4, drop), shared(values))
    short = values.max(1) - outcome.opened[:, 0]
    assert (short >= 0).all()
    assert (short <= 2**drop * len(s.fan_ins(length))).all()


@pytest.mark.parametrize(
    ("length", "levels"), [(1, []), (2, [2]), (5, [5]), (17, [4, 5]), (65, [4, 4, 5]), (197, [4, 4, 4, 5])]
)
def test_levels_of_a_maximum(length: int, levels: list[int]) -> None:
    assert s.fan_ins(length) == levels


def test_chunks_for_a_bound() -> None:
    bounds = (0.5, 1 - 2**-16, 1, 15.9, 16, 255, 256, 4095, 4096, 65536 - 2**-16)
    assert [chunks_for(b, 16) for b in bounds] == [4, 4, 5, 5, 6, 6, 7, 7, 8, 8]
    with pytest.raises(ValueError, match="beyond the widest comparison"):
        chunks_for(65536, 16)


def test_planes_hold_the_lowest_bits() -> None:
    values = RNG.integers(-(2**63), 2**63 - 1, (3, 70))
    sliced = planes(values, 33)
    for bit in range(33):
        assert (unpacked(sliced[bit], 70) == (values >> bit) & 1).all()
    assert (unpacked(packed(values & 1), 70) == values & 1).all()
