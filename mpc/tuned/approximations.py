"""Functions as what the tuned scheme computes cheaply: chains of squarings, and straight pieces. Plain numbers only.

Errors are maxima over the domain: `float` in exact arithmetic, `fixed` with 16 fraction bits, every product truncated
and off by up to one more 2^-16. Constants of chains are multiples of 2^-16, so encoding does not change them; they
were found by minimax fits (successive linear programmes, `tests/mpc/tuned/fits.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

ULP = 2.0**-16


@dataclass(frozen=True, slots=True)
class ExpChain:
    """e^x on [low, high]: y = start + slope x, then y <- y^2 + constant for each constant."""

    slope: float
    start: float
    constants: tuple[float, ...]
    low: float
    high: float

    @property
    def squarings(self) -> int:
        """Squarings, which is also rounds."""
        return len(self.constants)

    def doubled(self) -> ExpChain:
        """The chain on twice the domain: e^x = (e^(x / 2))^2. Errors relative to e^x double, rounding included."""
        return replace(
            self, slope=self.slope / 2, constants=(*self.constants, 0.0), low=2 * self.low, high=2 * self.high
        )

    def __call__(self, x: float) -> float:
        """The value in exact arithmetic."""
        y = self.start + self.slope * x
        for constant in self.constants:
            y = y * y + constant
        return y


def _exp_chain(start: int, slope: int, constants: tuple[int, ...], low: float, high: float) -> ExpChain:
    return ExpChain(slope * ULP, start * ULP, tuple(c * ULP for c in constants), low, high)


# Over a row of softmax most entries are near 0, and errors there add up. So either the fit of least absolute error is
# followed by one plain squaring (`doubled`), which leaves the square of an error near 0; or the fit weighs errors by
# 1 / max(e^x, 0.02), which gives up some accuracy near 1. Slopes are even, so that doubling keeps them on the grid.
_EXP_CHAINS: tuple[ExpChain, ...] = (
    _exp_chain(58504, 5436, (-1786, 32784, -12599, -212), -13.5, 0.05).doubled(),  # float 3.1e-4, fixed 1.9e-3
    _exp_chain(70490, 2198, (-17705, 11669, 5101, -1045, 1), -54.0, 0.05),  # weighted: float 7.5e-4, fixed 2.4e-3
    _exp_chain(70878, 2260, (-19971, 13534, 6724, -1837, 1), -54.0, 0.05).doubled(),  # float 1.7e-4, fixed 3.6e-3
    _exp_chain(78582, 1956, (-29943, -6833, 19659, -4772, -27), -72.0, 0.05).doubled(),  # float 2.6e-4, fixed 4e-3
)

# Least error relative to max(e^x, 2^-8).
_RELATIVE_CHAINS = (
    _exp_chain(35404, 3375, (49564, -3140, -5524, -2657, 87), -4.0, 4.0),  # float 9.3e-4
    _exp_chain(34521, 1710, (50362, -2151, -6564, -3541, 233, -2), -8.0, 8.0),  # float 9e-4; even slope, for doubling
)
EXP_RELATIVE_BOUND = 10.0  # e^10 = 22026: the last square before truncation still fits 64 bits with room


@lru_cache
def exp_chain(low: float) -> ExpChain:
    """The chain for e^x on [low, 0]: 5 squarings to -54, 6 to -144, one more for every doubling after.

    Fixed error 1.9e-3 to -27, 2.4e-3 to -54, 4e-3 to -144, 8e-3 to -288, largest near 0 and from rounding; below
    e^x = 1/16 less than 4e-4 to -144. Softmax over 65 unit-variance scores errs 6e-4 with each of the first two.
    Below `low` the value is wrong without bound.
    """
    if not (math.isfinite(low) and low < 0):
        raise ValueError(f"e^x is fitted on [low, 0] with low < 0, not low = {low}: subtract the maximum first")
    for chain in _EXP_CHAINS:
        if chain.low <= low:
            return chain
    chain = _EXP_CHAINS[-1]
    while chain.low > low:
        chain = chain.doubled()
    return chain


@lru_cache
def exp_relative(bound: float) -> ExpChain:
    """The cheapest chain for e^x on [-bound, bound] with a small error relative to max(e^x, 2^-8).

    5 squarings to 4, 6 to 8 (where ((1 + (1 + x / 64)^2) / 2)^64 takes 7 and errs 1.9e-2), 7 to 10. Float 9.3e-4,
    9e-4, 1.8e-3. Fixed, where e^x >= 1/8: 2.5e-3, 3.3e-3, 7e-3; at 2^-8, where 2^-16 itself is 4e-3: up to 1.4e-2.
    The last square reaches e^bound: local truncation fails with a chance of about e^x 2^-31.
    """
    if not 0 < bound <= EXP_RELATIVE_BOUND:
        raise ValueError(
            f"e^x without its maximum is fitted for |x| <= {EXP_RELATIVE_BOUND:g}, not {bound:g}: "
            "subtract the maximum first, or declare a narrower range"
        )
    for chain in _RELATIVE_CHAINS:
        if bound <= chain.high:
            return chain
    return _RELATIVE_CHAINS[-1].doubled()


@dataclass(frozen=True, slots=True)
class Pieces:
    """A piecewise linear function: piece j, slopes[j] x + intercepts[j], covers [thresholds[j - 1], thresholds[j]).

    The outer pieces continue. `slope_bits` fraction bits for the slopes keep their rounding below an eighth of the
    error of the piece.
    """

    thresholds: tuple[float, ...]
    slopes: tuple[float, ...]
    intercepts: tuple[float, ...]
    slope_bits: int = 16

    def __post_init__(self) -> None:
        """Hold the three lists to each other."""
        if not len(self.thresholds) + 1 == len(self.slopes) == len(self.intercepts):
            raise ValueError("J thresholds part J + 1 pieces: give J + 1 slopes and J + 1 intercepts")
        if any(a >= b for a, b in pairwise(self.thresholds)):
            raise ValueError("thresholds must rise")

    def __call__(self, x: float) -> float:
        """The value in exact arithmetic."""
        piece = sum(x >= threshold for threshold in self.thresholds)
        return self.slopes[piece] * x + self.intercepts[piece]


@dataclass(frozen=True, slots=True)
class _Line:
    """B (ratio - x / a), the line nearest in relative error to x^-power on [a, rho a]: B = slope a^-power."""

    slope: float
    ratio: float
    error: float


def _reciprocal_line(rho: float) -> _Line:
    """On [1, rho] x (ratio - x) is least at both ends and largest at ratio / 2: error 1 / T2((rho + 1) / (rho - 1))."""
    return _balanced(1 + rho, rho, ((1 + rho) / 2) ** 2)


def _inverse_root_line(rho: float) -> _Line:
    """On [1, rho] sqrt(x) (ratio - x) is least at both ends and largest at ratio / 3."""
    s = math.sqrt(rho)
    ratio = s * s + s + 1
    return _balanced(ratio, ratio - 1, 2 * (ratio / 3) ** 1.5)


def _balanced(ratio: float, least: float, largest: float) -> _Line:
    """The slope that makes least and largest lie equally far from 1."""
    return _Line(2 / (least + largest), ratio, (largest - least) / (largest + least))


# The relative error e of a start becomes gain x e^2 by one Newton step.
_POWERS = {1.0: (_reciprocal_line, 1.0), 0.5: (_inverse_root_line, 1.5)}


@lru_cache
def reciprocal_pieces(low: float, high: float, relative: float = 5e-5, absolute: float = ULP) -> Pieces:
    """Lines near 1 / x on [low, high], for one Newton step r = w (2 - x w) after them.

    After it the error is at most `relative` of 1 / x or `absolute`, whichever is more: 16 fraction bits cannot tell
    1 / x apart to less than 2^-16, so pieces widen with x (a ratio of 1.27 while x < 3.3). absolute = 0: all alike.
    """
    return _newton_pieces(1.0, low, high, relative, absolute)


@lru_cache
def inverse_root_pieces(low: float, high: float, relative: float = 5e-5, absolute: float = ULP) -> Pieces:
    """Lines near x^(-1/2) on [low, high], for one Newton step r = w (3 - x w^2) / 2 after them; as reciprocal_pieces.

    Pieces have a ratio of 1.42 while x < 10, and widen after.
    """
    return _newton_pieces(0.5, low, high, relative, absolute)


def _newton_pieces(power: float, low: float, high: float, relative: float, absolute: float) -> Pieces:
    """Geometric pieces of x^-power from low to high: as few as the tolerance allows (two at least), then narrowed."""
    if not 0 < low < high < math.inf:
        raise ValueError(f"pieces of x^-{power:g} need 0 < low < high, not {low:g} and {high:g}: declare the range")
    line, gain = _POWERS[power]
    steps: list[float] = []
    reached = low
    while reached < high or len(steps) < 2:
        tolerance = min(0.25, max(relative, absolute * reached**power))
        steps.append(_widest(power, math.sqrt(tolerance / gain)))
        reached *= steps[-1]
    narrower = math.log(high / low) / math.log(reached / low)
    edges = [low]
    for step in steps:
        edges.append(edges[-1] * step**narrower)
    lines = [line(b / a) for a, b in pairwise(edges)]
    # Half a step of 2^-bits, times b, against an eighth of the error times b^-power.
    bits = max(math.log2(4 * b ** (1 + power) / one.error) for b, one in zip(edges[1:], lines, strict=True))
    return Pieces(
        tuple(edges[1:-1]),
        tuple(-one.slope * a ** (-1 - power) for a, one in zip(edges, lines, strict=False)),
        tuple(one.slope * one.ratio * a**-power for a, one in zip(edges, lines, strict=False)),
        max(16, math.ceil(bits)),
    )


@lru_cache
def _widest(power: float, error: float) -> float:
    """The ratio rho of the widest piece whose line errs at most `error`, by bisection."""
    line = _POWERS[power][0]
    narrow, wide = 1.0, 64.0
    for _ in range(50):
        middle = (narrow + wide) / 2
        narrow, wide = (middle, wide) if line(middle).error <= error else (narrow, middle)
    return narrow


def _mirrored(edges: tuple[float, ...], slopes: tuple[float, ...], intercepts: tuple[float, ...]) -> Pieces:
    """The sigmoid from its right half (middle piece first): s(-x) = 1 - s(x); constant outside."""
    outer = 1 - 0.5 / (1 + math.exp(edges[-1]))  # half way from s(last edge) to 1
    right_slopes, right = (*slopes[1:], 0.0), (*intercepts[1:], outer)
    return Pieces(
        (*(-edge for edge in reversed(edges)), *edges),
        (*reversed(right_slopes), slopes[0], *right_slopes),
        (*(1 - value for value in reversed(right)), 0.5, *right),
        slope_bits=20,
    )


# Lines err alike: 9.96e-4 for the sigmoid, 9.86e-4 for tanh(x) = 2 s(2 x) - 1 (closed forms, lines parallel to chords).
_SIGMOID = _mirrored(
    (0.584096, 1.027067, 1.435418, 1.85246, 2.307944, 2.83812, 3.505363, 4.453864, 6.217377),
    (0.244831, 0.212965, 0.174843, 0.135889, 0.099053, 0.066334, 0.039174, 0.018619, 0.005392),
    (0.5, 0.518612, 0.557767, 0.613681, 0.681919, 0.757434, 0.834516, 0.906568, 0.965479),
)
_FINER_SIGMOID = _mirrored(
    (
        *(0.459605, 0.797956, 1.096226, 1.383132, 1.672478, 1.974603, 2.299944),
        *(2.661476, 3.077978, 3.580471, 4.228494, 5.16461, 6.921661),
    ),
    (
        *(0.246762, 0.226441, 0.201211, 0.174068, 0.14658, 0.119814, 0.094571),
        *(0.07148, 0.051045, 0.033667, 0.019663, 0.009275, 0.002674),
    ),
    (
        *(0.5, 0.50934, 0.529472, 0.559227, 0.597246, 0.642013, 0.691858),
        *(0.744965, 0.799352, 0.852841, 0.902981, 0.94691, 0.981002),
    ),
)
_TANH = Pieces(
    tuple(edge / 2 for edge in _FINER_SIGMOID.thresholds),
    tuple(4 * slope for slope in _FINER_SIGMOID.slopes),
    tuple(2 * value - 1 for value in _FINER_SIGMOID.intercepts),
    slope_bits=20,
)


def sigmoid_pieces() -> Pieces:
    """1 / (1 + e^-x) everywhere: 18 thresholds, constant outside +-6.22; float 1.0e-3, fixed 1.03e-3."""
    return _SIGMOID


def tanh_pieces() -> Pieces:
    """Tanh everywhere: 26 thresholds, constant outside +-3.46; float 1.0e-3, fixed 1.02e-3."""
    return _TANH


@dataclass(frozen=True, slots=True)
class EvenChain:
    """x / 2 + s(x) for |x| < cut, -`outside` below, x - `outside` above; s even, a chain of squarings.

    With terms 1, w = x^2, q1, q2, ...: each row of `squares` (constant first) combines the terms so far, and the
    square of that is the next term; `combination` of all terms is s. `outside` halves what is neglected at the cut.
    """

    cut: float
    squares: tuple[tuple[float, ...], ...]
    combination: tuple[float, ...]
    outside: float = 0.0

    def __post_init__(self) -> None:
        """Hold the rows to the number of terms before each."""
        rows = (*self.squares, self.combination)
        if any(len(row) != terms for terms, row in enumerate(rows, start=2)):
            raise ValueError("rows of an even chain have 2, 3, 4, ... numbers: one for each term before them")

    @property
    def squarings(self) -> int:
        """Squarings, that of x included."""
        return 1 + len(self.squares)

    def __call__(self, x: float) -> float:
        """The value in exact arithmetic."""
        if abs(x) >= self.cut:
            return max(x, 0.0) - self.outside
        terms = [1.0, x * x]
        for row in self.squares:
            terms.append(sum(factor * term for factor, term in zip(row, terms, strict=True)) ** 2)
        return x / 2 + sum(factor * term for factor, term in zip(self.combination, terms, strict=True))


def _even_chain(cut: float, *rows: tuple[int, ...], outside: int = 0) -> EvenChain:
    grid = tuple(tuple(number * ULP for number in row) for row in rows)
    return EvenChain(cut, grid[:-1], grid[-1], outside * ULP)


# GELU, 4 squarings: 1.6e-4 inside, 2.8e-4 at the cut.
GELU = _even_chain(
    3.8, (-145745, 11468), (-9703, -433, 32801), (-2940, -58, -478, 23659), (58027, 4641, -4132, -4202, -4219)
)
# SiLU, 5 squarings: 4.1e-4 inside, 9e-4 outside.
SILU = _even_chain(
    8.5,
    (-230389, 3823),
    (-33076, -460, 19179),
    (-26341, -255, -183, 18841),
    (-1112, 159, -227, -235, 19745),
    (126742, 2187, -4180, -4204, -4253, -4446),
    outside=57,
)
