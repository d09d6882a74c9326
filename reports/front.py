"""Fronts and hypervolumes: little cost, much accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pymoo.indicators.hv import HV


@dataclass(frozen=True, slots=True)
class Point:
    """What a network costs (seconds, or multiplications) and its accuracy as a fraction."""

    cost: float
    accuracy: float


def non_dominated(points: Sequence[Point]) -> tuple[int, ...]:
    """Indices of the points that no other point beats, by rising cost.

    A point is beaten by one that costs no more and is no less accurate, and is better in one of the two; equal points
    do not beat each other, so ties are kept.
    """
    by_cost = sorted(range(len(points)), key=lambda index: (points[index].cost, -points[index].accuracy, index))
    front: list[int] = []
    for index in by_cost:
        if not front or points[index].accuracy > points[front[-1]].accuracy or points[index] == points[front[-1]]:
            front.append(index)
    return tuple(front)


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """Area between the front of `points` and `reference`, in units of cost times accuracy.

    Points that are worse than the reference in either value add nothing; no points give 0.
    """
    if not points:
        return 0.0
    minimised = np.array([(point.cost, -point.accuracy) for point in points])
    return float(HV(ref_point=np.array((reference.cost, -reference.accuracy)))(minimised))


def reference_point(points: Sequence[Point]) -> Point:
    """A round point worse than all of `points`: 5 % dearer (2 digits, up), and the next full percent below.

    Raises ValueError when there are no points.
    """
    if not points:
        raise ValueError("no points, so no reference point")
    dearest = 1.05 * max(point.cost for point in points)
    digit = 10.0 ** (math.floor(math.log10(dearest)) - 1) if dearest > 0 else 1.0
    cost = float(f"{max(1, math.ceil(dearest / digit)) * digit:.2g}")
    least = min(point.accuracy for point in points)
    return Point(cost, max(0, math.ceil(least * 100 - 1e-9) - 1) / 100)
