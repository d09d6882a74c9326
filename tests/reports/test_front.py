from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.front import Point, hypervolume, non_dominated, reference_point

# Few distinct values, so that ties in one or both coordinates are common.
POINTS = st.lists(st.builds(Point, st.integers(1, 6).map(float), st.integers(1, 6).map(lambda n: n / 10)), max_size=12)


def beats(a: Point, b: Point) -> bool:
    no_worse = a.cost <= b.cost and a.accuracy >= b.accuracy
    return no_worse and (a.cost < b.cost or a.accuracy > b.accuracy)


@given(POINTS)
def test_front_equals_brute_force(points: list[Point]) -> None:
    expected = {i for i, point in enumerate(points) if not any(beats(other, point) for other in points)}
    front = non_dominated(points)
    assert set(front) == expected
    assert len(front) == len(expected)
    assert [points[i].cost for i in front] == sorted(points[i].cost for i in front)


def test_equal_points_stay_together_on_the_front() -> None:
    assert non_dominated([Point(1, 0.5), Point(1, 0.5), Point(1, 0.4), Point(2, 0.5)]) == (0, 1)


def test_hypervolume_of_two_steps_by_hand() -> None:
    # Reference (4 s, 50 %): (1, 0.6) covers 3 s x 10 points; (2, 0.9) adds 2 s x 30 points above it.
    points = [Point(1, 0.6), Point(2, 0.9), Point(3, 0.8)]
    assert hypervolume(points, Point(4, 0.5)) == pytest.approx(3 * 0.1 + 2 * 0.3)


def test_points_worse_than_the_reference_add_nothing() -> None:
    reference = Point(4, 0.5)
    assert hypervolume([Point(5, 0.9), Point(1, 0.4)], reference) == 0
    assert hypervolume([], reference) == 0
    assert hypervolume([Point(1, 0.6), Point(5, 0.9)], reference) == pytest.approx(0.3)


@given(POINTS, POINTS)
def test_hypervolume_never_falls_with_more_points(points: list[Point], more: list[Point]) -> None:
    reference = Point(7, 0.05)
    assert hypervolume(points + more, reference) >= hypervolume(points, reference) - 1e-12


@given(POINTS.filter(bool))
def test_reference_is_worse_than_every_point(points: list[Point]) -> None:
    reference = reference_point(points)
    assert all(point.cost < reference.cost and point.accuracy > reference.accuracy for point in points)


def test_reference_by_hand() -> None:
    assert reference_point([Point(20, 0.947), Point(30.1, 0.98)]) == Point(32, 0.94)
    assert reference_point([Point(0.1, 1.0)]) == Point(0.11, 0.99)
    with pytest.raises(ValueError, match="no points"):
        reference_point([])
