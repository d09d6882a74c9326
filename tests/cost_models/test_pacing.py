"""Spells of a machine are taken out of what ran in them, and nothing else is."""

from __future__ import annotations

import random

import numpy as np
import pytest

from cost_models.pacing import at_even_pace

CASES, SWEEPS = 60, 24
CASE_OF = [number for number in range(CASES) for _ in range(1 + number % 2)]  # every other case has two operations


def orders(seed: int = 0) -> list[list[int]]:
    """A random order of the cases in every sweep."""
    generator = random.Random(seed)
    return [generator.sample(range(CASES), CASES) for _ in range(SWEEPS)]


def spells(order: list[int], generator: random.Random) -> dict[int, float]:
    """The pace at which each case of a sweep runs: 1 or 1.4, a dozen cases in a row."""
    paces: list[float] = []
    while len(paces) < CASES:
        paces += [generator.choice((1.0, 1.4))] * generator.randint(8, 16)
    return dict(zip(order, paces, strict=False))


def ran(noise: float) -> tuple[np.ndarray, np.ndarray, list[list[int]]]:
    """What every operation takes by itself, its seconds in every sweep, and the orders."""
    generator, drawn = random.Random(1), np.random.default_rng(2)
    true_s, in_order = np.geomspace(1e-4, 1e-2, len(CASE_OF)), orders()
    by_sweep = [spells(order, generator) for order in in_order]
    paces = np.array([[spell[case] for spell in by_sweep] for case in CASE_OF])
    return true_s, true_s[:, None] * paces * drawn.lognormal(0, noise, paces.shape), in_order


def scatter(seconds: np.ndarray, true_s: np.ndarray) -> float:
    """Standard deviation of the logarithms of medians over what is true, whatever the pace of all."""
    return float(np.std(np.log(np.median(seconds, axis=1) / true_s)))


def test_spells_are_taken_out() -> None:
    true_s, seconds, in_order = ran(noise=0.02)
    even = at_even_pace(seconds, CASE_OF, in_order)
    assert scatter(even, true_s) < 0.25 * scatter(seconds, true_s)
    assert 1.0 < np.median(even / true_s[:, None]) < 1.4  # at a pace that the machine had


def test_a_steady_machine_s_seconds_scatter_hardly_more() -> None:
    true_s, in_order = np.geomspace(1e-4, 1e-2, len(CASE_OF)), orders()
    seconds = true_s[:, None] * np.random.default_rng(3).lognormal(0, 0.05, (len(CASE_OF), SWEEPS))
    assert scatter(at_even_pace(seconds, CASE_OF, in_order), true_s) < 1.25 * scatter(seconds, true_s)


def test_what_one_operation_does_by_itself_stays_its_own() -> None:
    seconds, in_order = np.full((len(CASE_OF), SWEEPS), 1e-3), orders()
    seconds[7, ::2] *= 3.0
    assert at_even_pace(seconds, CASE_OF, in_order) == pytest.approx(seconds)


def test_a_case_has_no_part_in_its_own_pace() -> None:
    """Two operations of one case that are slow together, in one sweep, are slow; those around them are not."""
    seconds, in_order = np.full((len(CASE_OF), SWEEPS), 1e-3), orders()
    rows = [row for row, case in enumerate(CASE_OF) if case == 5]
    assert len(rows) == 2
    seconds[rows, 3] *= 3.0
    assert at_even_pace(seconds, CASE_OF, in_order) == pytest.approx(seconds)


def test_one_case_has_no_neighbours() -> None:
    seconds = np.array([[1e-3, 2e-3, 4e-3]])
    assert at_even_pace(seconds, [0], [[0]] * 3) == pytest.approx(seconds)


def test_two_cases_are_each_other_s() -> None:
    seconds = np.array([[1.0, 1.0, 2.0], [3.0, 3.0, 6.0]])
    assert at_even_pace(seconds, [0, 1], [[0, 1], [1, 0], [0, 1]]) == pytest.approx(np.array([[1.0] * 3, [3.0] * 3]))


def test_sizes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match=r"seconds of 2 operations in 3 sweeps expected, got \(2, 2\)"):
        at_even_pace(np.ones((2, 2)), [0, 1], [[0, 1]] * 3)
