"""Errors as stated in `mpc.tuned.approximations`, in float and in fixed point, and where the constants come from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import erf, expit

from mpc.tuned.approximations import (
    GELU,
    SILU,
    EvenChain,
    ExpChain,
    Pieces,
    exp_chain,
    exp_relative,
    inverse_root_pieces,
    reciprocal_pieces,
    sigmoid_pieces,
    tanh_pieces,
)
from tests.mpc.tuned import fits

BITS = 16
ONE = 1 << BITS
Whole = NDArray[np.int64]


class FixedPoint:
    """Products truncated to 16 fraction bits, and off by up to one step more either way."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(0)

    def truncate(self, wide: Whole, bits: int = BITS) -> Whole:
        return (wide >> bits) + self.generator.integers(-1, 2, wide.shape)

    def combine(self, factors: tuple[float, ...], terms: list[Whole]) -> Whole:
        wide = sum(round(factor * ONE) * term for factor, term in zip(factors[1:], terms, strict=True))
        return self.truncate(wide + (round(factors[0] * ONE) << BITS))

    def exp(self, chain: ExpChain, x: Whole) -> Whole:
        y = self.combine((chain.start, chain.slope), [x])
        for constant in chain.constants:
            y = self.truncate(y * y) + round(constant * ONE)
        return y

    def pieces(self, pieces: Pieces, x: Whole) -> Whole:
        piece = np.searchsorted([round(t * ONE) for t in pieces.thresholds], x, side="right")
        slopes = np.array([round(slope * 2**pieces.slope_bits) for slope in pieces.slopes])
        intercepts = np.array([round(value * 2 ** (BITS + pieces.slope_bits)) for value in pieces.intercepts])
        return self.truncate(slopes[piece] * x + intercepts[piece], pieces.slope_bits)

    def even(self, chain: EvenChain, x: Whole) -> tuple[Whole, int]:
        """The value, and the largest term met inside the cut."""
        terms = [self.truncate(x * x)]
        for row in chain.squares:
            base = self.combine(row, terms)
            terms.append(self.truncate(base * base))
        inside = np.abs(x) < round(chain.cut * ONE)
        outside = np.maximum(x, 0) - round(chain.outside * ONE)
        largest = max(int(np.abs(term[inside]).max()) for term in terms)
        return np.where(inside, (x >> 1) + self.combine(chain.combination, terms), outside), largest


def grid(low: float, high: float, points: int = 100_001) -> Whole:
    return np.unique(np.round(np.linspace(low, high, points) * ONE).astype(np.int64))


def evaluated(function: ExpChain | Pieces | EvenChain, x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([function(float(value)) for value in x])


@pytest.mark.parametrize(
    ("low", "squarings", "error", "fixed_error"),
    [
        (-13.5, 5, 3.1e-4, 1.9e-3),
        (-27.0, 5, 3.1e-4, 1.9e-3),
        (-54.0, 5, 7.5e-4, 2.4e-3),
        (-108.0, 6, 1.7e-4, 4e-3),
        (-144.0, 6, 2.6e-4, 4e-3),
    ],
)
def test_exp_chain_errs_as_stated(low: float, squarings: int, error: float, fixed_error: float) -> None:
    chain = exp_chain(low)
    x = grid(chain.low, 0.05)
    exact = np.exp(x / ONE)
    assert chain.squarings == squarings and chain.low <= low
    assert np.abs(evaluated(chain, x[::10] / ONE) - exact[::10]).max() < error
    fixed = np.abs(FixedPoint().exp(chain, x) / ONE - exact)
    assert fixed.max() < fixed_error
    assert fixed[exact < 1 / 16].max() < 4e-4  # where most entries of a softmax lie


@pytest.mark.parametrize(
    ("bound", "squarings", "error", "fixed_error"),
    [(4, 5, 9.4e-4, 2.5e-3), (8, 6, 9.1e-4, 4e-3), (10, 7, 1.9e-3, 8e-3)],
)
def test_exp_relative_errs_as_stated(bound: float, squarings: int, error: float, fixed_error: float) -> None:
    chain = exp_relative(bound)
    x = grid(-bound, bound)
    exact = np.exp(x / ONE)
    assert chain.squarings == squarings
    assert (np.abs(evaluated(chain, x[::10] / ONE) - exact[::10]) / np.maximum(exact[::10], 2.0**-8)).max() < error
    seen = exact >= 1 / 8
    assert np.abs(FixedPoint().exp(chain, x) / ONE / exact - 1)[seen].max() < fixed_error


def test_a_range_that_no_chain_serves_is_refused_with_advice() -> None:
    with pytest.raises(ValueError, match="subtract the maximum"):
        exp_relative(12.0)
    with pytest.raises(ValueError, match="subtract the maximum"):
        exp_chain(0.0)
    with pytest.raises(ValueError, match="declare the range"):
        reciprocal_pieces(0.0, 1.0)


@pytest.mark.parametrize(("low", "high"), [(0.9, 69.0), (0.05, 20.0), (0.01, 1000.0)])
def test_reciprocal_after_one_newton_step(low: float, high: float) -> None:
    pieces = reciprocal_pieces(low, high)
    x = np.geomspace(low, high, 5001)
    start = evaluated(pieces, x)
    assert np.abs(start * (2 - x * start) - 1 / x).max() <= max(5e-5 / low, 2.0**-16) * 1.001
    exact = reciprocal_pieces(low, high, absolute=0.0)
    start = evaluated(exact, x)
    assert np.abs(start * (2 - x * start) * x - 1).max() <= 5.001e-5
    assert len(pieces.thresholds) < len(exact.thresholds)


def test_reciprocal_of_sums_of_a_softmax_in_fixed_point() -> None:
    machine, pieces = FixedPoint(), reciprocal_pieces(0.9, 69.0)
    x = grid(0.9, 69.0)
    start = machine.pieces(pieces, x)
    result = machine.truncate(start * (2 * ONE - machine.truncate(x * start))) / ONE
    assert np.abs(result - ONE / x).max() < 1.1e-4
    assert len(pieces.thresholds) == 14
    coarse = machine.pieces(replace(pieces, slope_bits=16), x)  # the reason for `slope_bits`
    assert np.abs(coarse * x / ONE**2 - 1).max() > 1.15 * np.abs(start * x / ONE**2 - 1).max()


@pytest.mark.parametrize(("low", "high"), [(0.016, 40_000.0), (0.16, 160.0)])
def test_inverse_root_after_one_newton_step(low: float, high: float) -> None:
    x = np.geomspace(low, high, 5001)
    for absolute in (0.0, 2.0**-16):
        start = evaluated(inverse_root_pieces(low, high, absolute=absolute), x)
        error = np.abs(start * (3 - x * start**2) / 2 - x**-0.5)
        # The step errs by 1.5 e^2 + e^3 / 2: a little more than planned, where pieces are wide.
        assert (error / np.maximum(5e-5 * x**-0.5, 1.7 * absolute)).max() < 1.01


def test_inverse_root_in_fixed_point() -> None:
    machine, pieces = FixedPoint(), inverse_root_pieces(0.16, 160.0)
    x = grid(0.16, 160.0)
    start = machine.pieces(pieces, x)
    near_one = machine.truncate(start * machine.truncate(x * start))
    result = machine.truncate(start * (3 * ONE - near_one), BITS + 1) / ONE
    assert np.abs(result * np.sqrt(x / ONE) - 1).max() < 8e-4


def test_a_reciprocal_piece_errs_by_the_closed_form() -> None:
    pieces = reciprocal_pieces(1.0, 1.25**2, relative=0.1, absolute=0.0)  # two pieces of ratio 1.25
    x = np.linspace(1.0, 1.25, 1001)[:-1]
    assert np.abs(1 - x * evaluated(pieces, x)).max() == pytest.approx(1 / (2 * 9**2 - 1), rel=1e-5)


def gelu(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(x * (1 + erf(x / np.sqrt(2))) / 2)


def silu(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(x * expit(x))


@pytest.mark.parametrize(
    ("chain", "function", "squarings", "error"),
    [(GELU, gelu, 4, 2.9e-4), (SILU, silu, 5, 9e-4)],
)
def test_even_chain_errs_as_stated(chain: EvenChain, function: object, squarings: int, error: float) -> None:
    assert callable(function) and chain.squarings == squarings
    x = grid(-20, 20)
    exact = function(x / ONE)
    assert np.abs(evaluated(chain, x[::10] / ONE) - exact[::10]).max() < error
    value, largest = FixedPoint().even(chain, x)
    assert np.abs(value / ONE - exact).max() < error
    assert largest < 128 * ONE


@pytest.mark.parametrize(("pieces", "function"), [(sigmoid_pieces(), expit), (tanh_pieces(), np.tanh)])
def test_pieces_of_a_bounded_function_err_as_stated(pieces: Pieces, function: np.ufunc) -> None:
    x = grid(-30, 30)
    exact = function(x / ONE)
    assert np.abs(evaluated(pieces, x[::10] / ONE) - exact[::10]).max() < 1e-3
    assert np.abs(FixedPoint().pieces(pieces, x) / ONE - exact).max() < 1.05e-3
    assert pieces.slopes[0] == pieces.slopes[-1] == 0.0


@pytest.mark.parametrize(("pieces", "lines", "squeeze"), [(sigmoid_pieces(), 8, 1), (tanh_pieces(), 12, 2)])
def test_sigmoid_lines_are_the_equal_error_ones(pieces: Pieces, lines: int, squeeze: int) -> None:
    edges, slopes, _, _ = fits.sigmoid_lines(lines)
    half = len(edges)
    assert np.array(pieces.thresholds[half:]) * squeeze == pytest.approx(edges, abs=1e-6)
    assert np.array(pieces.slopes[half:-1]) / squeeze**2 == pytest.approx(slopes, abs=1e-6)


def test_exp_constants_follow_from_the_prototype_by_minimax() -> None:
    x = fits.chebyshev_grid(-13.5, 0.05, 100)
    start = (0.86878, 0.08538, -0.0039, 0.55423, -0.24842, -0.00335)
    constants, error = fits.minimax(fits.exp_form, start, x, np.exp(x), steps=400)
    assert error == pytest.approx(1.91e-4, rel=0.02)
    rounded, rounded_error = fits.on_grid(fits.exp_form, constants, x, np.exp(x))
    assert np.array_equal(rounded / fits.ULP, np.round(rounded / fits.ULP)) and rounded_error < 2.15e-4


def test_the_weighted_exp_constants_are_near_a_local_optimum() -> None:
    chain = exp_chain(-54.0)
    x = np.unique([*fits.chebyshev_grid(-54.0, 0.05, 140), *fits.chebyshev_grid(-14.0, 0.05, 100)])
    weight = 1 / np.maximum(np.exp(x), 0.02)
    start = (chain.start, chain.slope, *chain.constants)
    before = np.abs(weight * (evaluated(chain, x) - np.exp(x))).max()
    assert fits.minimax(fits.exp_form, start, x, np.exp(x), weight, steps=100, radius=0.01)[1] > 0.7 * before


@pytest.mark.parametrize(("chain", "function"), [(GELU, gelu), (SILU, silu)])
def test_even_constants_are_near_a_local_optimum(chain: EvenChain, function: object) -> None:
    assert callable(function)
    x = chain.cut * np.sin(np.linspace(0, np.pi / 2, 160))[:-1]
    target = function(x) - x / 2
    start = [*(number for row in chain.squares for number in row), *chain.combination]
    _, error = fits.minimax(fits.even_form(chain.squarings), start, x, target, steps=5, radius=0.01)
    assert error > 0.8 * np.abs(evaluated(chain, x) - function(x)).max()


@pytest.mark.parametrize("spread", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("low", [-27.0, -54.0, -108.0])
def test_softmax_by_a_chain_errs_less_than_two_thousandths(low: float, spread: float) -> None:
    scores = np.random.default_rng(0).normal(size=(1000, 65)) * spread
    x = np.round((scores - scores.max(1, keepdims=True)) * ONE).astype(np.int64)
    exact, fixed = np.exp(x / ONE), FixedPoint().exp(exp_chain(low), x) / ONE
    error = fixed / fixed.sum(1, keepdims=True) - exact / exact.sum(1, keepdims=True)
    assert np.abs(error).max() < 2e-3
