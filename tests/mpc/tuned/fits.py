"""How the constants of `mpc.tuned.approximations` were found: minimax by successive linear programmes.

`minimax` finds a local optimum near its start; the starts given in the tests are those the constants came from (the
best of some tens of random ones). `on_grid` then rounds them to 2^-16, so that rounding costs next to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, linprog
from scipy.special import expit

Array = NDArray[np.float64]
Form = Callable[[Array, Array], Array]  # constants, arguments -> values

ULP = 2.0**-16


def chebyshev_grid(low: float, high: float, points: int) -> Array:
    """Points of [low, high], dense at both ends, where the errors of a minimax fit peak."""
    return (low + high) / 2 - (high - low) / 2 * np.cos(np.pi * np.arange(points) / (points - 1))


def minimax(
    form: Form,
    start: Sequence[float] | Array,
    x: Array,
    target: Array,
    weight: Array | float = 1.0,
    fixed: Sequence[int] = (),
    steps: int = 100,
    radius: float = 0.1,
) -> tuple[Array, float]:
    """The constants near `start` with the least max |weight (form - target)|, and that error.

    Each step solves the linearised problem in a box around the constants and widens or narrows the box by how well
    the gain was foretold. `fixed` holds the indices of constants that stay.
    """
    constants = np.array(start, float)
    free = [i for i in range(len(constants)) if i not in fixed]

    def residual(p: Array) -> Array:
        return np.asarray(weight * (form(p, x) - target))

    error = residual(constants)
    for _ in range(steps if free else 0):
        jacobian = np.stack([_slope(residual, constants, i) for i in free], axis=1)
        worst, moved = float(np.abs(error).max()), False
        while radius > 1e-8 and not moved:
            step, foretold = _linear_step(jacobian, error, radius * np.maximum(0.02, np.abs(constants[free])))
            trial = constants.copy()
            trial[free] += step
            trial_error = residual(trial)
            gain = worst - float(np.abs(trial_error).max())
            moved = gain > 1e-6 * worst
            radius *= 2 if moved and gain > 0.7 * (worst - foretold) else 0.25
        if not moved:
            break
        constants, error = trial, trial_error
    return constants, float(np.abs(error).max())


def on_grid(
    form: Form, constants: Array, x: Array, target: Array, weight: Array | float = 1.0, fixed: Sequence[int] = ()
) -> tuple[Array, float]:
    """Multiples of 2^-16 near `constants`: rounded, then one or two of them moved by a step while the error falls."""

    def error_of(steps: Array) -> float:
        return float(np.abs(weight * (form(steps * ULP, x) - target)).max())

    rounded = np.round(constants / ULP)
    error = error_of(rounded)
    units = [sign * row for i, row in enumerate(np.eye(len(rounded))) if i not in fixed for sign in (1, -1)]
    moves = [*units, *(a + b for a, b in combinations(units, 2))]
    while True:
        best = min(moves, key=lambda move: error_of(rounded + move))
        if error_of(rounded + best) >= error:
            return rounded * ULP, error
        rounded = rounded + best
        error = error_of(rounded)


def _slope(residual: Callable[[Array], Array], constants: Array, i: int) -> Array:
    above, below, step = constants.copy(), constants.copy(), 1e-7 * max(1.0, abs(constants[i]))
    above[i] += step
    below[i] -= step
    return (residual(above) - residual(below)) / (2 * step)


def _linear_step(jacobian: Array, error: Array, box: Array) -> tuple[Array, float]:
    """The step within the box that makes max |error + jacobian step| least, and that maximum."""
    ones = np.ones((len(error), 1))
    solution = linprog(
        np.append(np.zeros(len(box)), 1.0),
        A_ub=np.block([[jacobian, -ones], [-jacobian, -ones]]),
        b_ub=np.concatenate([-error, error]),
        bounds=[*((-b, b) for b in box), (None, None)],
        method="highs",
    )
    if solution.x is None:
        return np.zeros(len(box)), float(np.abs(error).max())
    return solution.x[:-1], float(solution.x[-1])


def exp_form(constants: Array, x: Array) -> Array:
    """The chain a0 + a1 x, then squares plus constants."""
    y = constants[0] + constants[1] * x
    for constant in constants[2:]:
        y = y * y + constant
    return y


def exp_form_with_slopes(constants: Array, x: Array) -> Array:
    """As `exp_form`, a multiple of x added with each constant: (a0, a1, c1, d1, c2, d2, ...)."""
    y = constants[0] + constants[1] * x
    for constant, slope in zip(constants[2::2], constants[3::2], strict=True):
        y = y * y + constant + slope * x
    return y


def even_form(squarings: int) -> Form:
    """The chain of `EvenChain`: rows of 2, 3, ... constants (1, w, q1, ...), then the combination."""

    def form(constants: Array, x: Array) -> Array:
        terms, at = [np.ones_like(x), x * x], 0
        for length in range(2, squarings + 1):
            base = sum(c * t for c, t in zip(constants[at : at + length], terms, strict=True))
            terms.append(base * base)
            at += length
        return np.asarray(sum(c * t for c, t in zip(constants[at:], terms, strict=True)))

    return form


def sigmoid_lines(lines: int) -> tuple[list[float], list[float], list[float], float]:
    """Straight pieces of the sigmoid: edges right of 0, slopes and intercepts from the middle out, error.

    The middle piece passes through (0, 1/2); `lines` more follow on the right, then the constant; all err alike.
    """
    error = brentq(lambda trial: _edges(trial, lines)[0], 1e-5, 0.05)
    _, edges = _edges(error, lines)
    fitted = [_middle_line(edges[0]), *(_line(a, b) for a, b in pairwise(edges))]
    return edges, [line[1] for line in fitted], [line[2] for line in fitted], error


def _edges(error: float, lines: int) -> tuple[float, list[float]]:
    """What the constant errs beyond `error`, once the middle piece and `lines` more reached as far as they can."""
    edges = [brentq(lambda t: _middle_line(t)[0] - error, 0.05, 30.0)]
    for _ in range(lines):
        start = edges[-1]
        if start > 29 or _line(start, 30.0)[0] < error:
            return -error, edges
        edges.append(brentq(lambda b: _line(start, b)[0] - error, start + 1e-3, 30.0))  # noqa: B023 - used at once
    return (1 - float(expit(edges[-1]))) / 2 - error, edges


def _touch(slope: float) -> float:
    """Where right of 0 the sigmoid has this slope."""
    height = 0.5 + math.sqrt(max(0.25 - slope, 0.0))
    return math.log(height * height / slope)


def _line(a: float, b: float) -> tuple[float, float, float]:
    """Error, slope and intercept of the line nearest to the sigmoid on [a, b], a >= 0: parallel to its chord."""
    slope = float(expit(b) - expit(a)) / (b - a)
    touch = _touch(slope)
    below, above = float(expit(a)) - slope * a, float(expit(touch)) - slope * touch
    return (above - below) / 2, slope, (above + below) / 2


def _middle_line(t: float) -> tuple[float, float, float]:
    """Error, slope and intercept of the line through (0, 1/2) nearest to the sigmoid on [-t, t]."""
    height = float(expit(t)) - 0.5

    def excess(slope: float) -> float:
        touch = _touch(slope)
        return float(expit(touch)) - 0.5 - slope * touch - (slope * t - height)

    slope = brentq(excess, height / t, 0.25)
    return slope * t - height, slope, 0.5
