"""Over the plane of bandwidth and round-trip time: which attention kind or network is fastest, by predicted seconds."""

# C contenders, R round-trip times, B bandwidths

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cost_models.linear import Cost, CostModel
from mpc.network import PROFILES, NetworkProfile, network

Floats = NDArray[np.float64]
LEAST_WITHIN = 0.005  # half a point


@dataclass(frozen=True, slots=True)
class Contender:
    """What may win: its cost, and its measured accuracy as a fraction, with the standard error that the images leave.

    An attention kind has neither.
    """

    name: str
    cost: Cost
    accuracy: float | None = None
    standard_error: float = 0.0


@dataclass(frozen=True, slots=True)
class Plane:
    """Bandwidths in Mbit/s and round-trip times in ms, spaced evenly on logarithmic axes, ends included.

    Raises ValueError for bounds that are not positive and rising, or fewer than 2 points.
    """

    bandwidth_mbit: tuple[float, float] = (10.0, 10_000.0)
    round_trip_ms: tuple[float, float] = (0.1, 200.0)
    points: int = 60

    def __post_init__(self) -> None:
        for what, (low, high) in (("bandwidth", self.bandwidth_mbit), ("round-trip time", self.round_trip_ms)):
            if not 0 < low < high:
                raise ValueError(f"the {what} rises from a positive value, got {low:g} to {high:g}")
        if self.points < 2:
            raise ValueError(f"a plane has at least 2 points along each axis, got {self.points}")

    @property
    def bandwidths(self) -> list[float]:
        """All values along the first axis."""
        return [float(value) for value in np.geomspace(*self.bandwidth_mbit, self.points)]

    @property
    def round_trips(self) -> list[float]:
        """All values along the second axis."""
        return [float(value) for value in np.geomspace(*self.round_trip_ms, self.points)]

    def profiles(self) -> list[dict[str, Any]]:
        """The named networks that lie on the plane."""
        placed = [
            {"name": name, "bandwidth_mbit": 8e-6 * known.bytes_per_s, "round_trip_ms": 2e3 * known.one_way_delay_s}
            for name, known in PROFILES.items()
        ]
        ends = {"bandwidth_mbit": self.bandwidth_mbit, "round_trip_ms": self.round_trip_ms}
        return [p for p in placed if all(low <= float(p[axis]) <= high for axis, (low, high) in ends.items())]  # type: ignore[arg-type]


@dataclass(frozen=True)
class PlaneSeconds:
    """Predicted seconds of every contender at every point: median and 90 % interval, (C, R, B)."""

    p50: Floats
    p05: Floats
    p95: Floats


def seconds_on_plane(contenders: Sequence[Contender], cost_model: CostModel, plane: Plane) -> PlaneSeconds:
    """Every contender on every network of the plane; each was counted once, only the link's share changes."""
    if not contenders:
        raise ValueError("nothing competes: name at least one attention kind or network")
    costs = [contender.cost for contender in contenders]
    shape = (len(costs), plane.points, plane.points)
    p50, p05, p95 = (np.empty(shape) for _ in range(3))
    compute_s, hops, sent_bytes, rounds, largest_bytes = np.array(list(map(_sums, costs)), dtype=np.float64).T
    bandwidths = plane.bandwidths
    for row, round_trip_ms in enumerate(plane.round_trips):
        for column, bandwidth_mbit in enumerate(bandwidths):
            link = link_at(bandwidth_mbit, round_trip_ms)
            p50[:, row, column] = cost_model.p50_of(compute_s, hops, sent_bytes, rounds, largest_bytes, link)
            estimates = [cost_model.seconds_of(cost, link) for cost in costs]
            p05[:, row, column] = [estimate.p05_s for estimate in estimates]
            p95[:, row, column] = [estimate.p95_s for estimate in estimates]
    return PlaneSeconds(p50, p05, p95)


def _sums(cost: Cost) -> tuple[float, ...]:
    """What seconds on a link are made of: compute, and the busiest party's hops, bytes, rounds and largest message."""
    online = cost.online
    return cost.compute_s, max(online.hops), max(online.bytes), max(online.rounds), cost.largest_bytes


def link_at(bandwidth_mbit: float, round_trip_ms: float) -> NetworkProfile:
    """The network at a point of the plane."""
    name = f"{bandwidth_mbit:.6g}mbit/{round_trip_ms:.6g}ms"
    return NetworkProfile(name, round_trip_ms / 2e3, bandwidth_mbit * 1e6 / 8, "a point of a winner map")


def winner_map(
    what: str,
    contenders: Sequence[Contender],
    cost_model: CostModel,
    plane: Plane,
    accuracies: Sequence[float] = (),
    accuracy_within: float | None = None,
    accuracy_source: str | None = None,
) -> dict[str, Any]:
    """The record of a map: for each of `accuracies` a panel in which those no less accurate compete.

    `accuracy_within` is what a network may fall short of the accuracy asked for: by default half a point, or the
    standard error of the best accuracy where that is larger, since so few images do not tell two networks apart.
    Without `accuracies` the best of the contenders is asked for; where none has an accuracy, all compete in one panel.
    Raises ValueError where nothing competes.
    """
    known = [(one.accuracy, one.standard_error) for one in contenders if one.accuracy is not None]
    best = max(known, default=None)
    levels: list[float | None] = [*accuracies] or [best[0] if best else None]
    least_within = max(LEAST_WITHIN, best[1]) if best else LEAST_WITHIN
    within = least_within if accuracy_within is None else accuracy_within
    seconds = seconds_on_plane(contenders, cost_model, plane)
    return {
        "schema": 1,
        "record": "winner_map",
        "mode": "predicted",
        "what": what,
        "accuracy_source": accuracy_source,
        "plane": {"bandwidth_mbit": plane.bandwidths, "round_trip_ms": plane.round_trips},
        "profiles": plane.profiles(),
        "contenders": [_contender_json(contender) for contender in contenders],
        "panels": [_panel(contenders, seconds, level, within) for level in levels],
        "scheme": cost_model.scheme.to_json(),
        "machine": dict(cost_model.machine),
    }


def _contender_json(contender: Contender) -> dict[str, Any]:
    cost, online = contender.cost, contender.cost.online
    counts = {"rounds": max(online.rounds), "bytes": max(online.bytes), "hops": max(online.hops)}
    return {"name": contender.name, "accuracy": contender.accuracy, "compute_s": cost.compute_s, **counts}


def _panel(
    contenders: Sequence[Contender], seconds: PlaneSeconds, level: float | None, within: float
) -> dict[str, Any]:
    places = [
        place
        for place, contender in enumerate(contenders)
        if level is None or (contender.accuracy is not None and contender.accuracy >= level - within - 1e-12)
    ]
    if not places:
        best = max(contender.accuracy for contender in contenders if contender.accuracy is not None)
        raise ValueError(f"no network reaches an accuracy of {level:g} less {within:g}; the best has {best:.4f}")
    chosen = np.array(places)
    p50_CRB = seconds.p50[chosen]
    order_CRB = np.argsort(p50_CRB, axis=0, kind="stable")  # of equal ones the first
    ranked_CRB = np.take_along_axis(p50_CRB, order_CRB, axis=0)
    alone = len(places) == 1
    none_RB = np.full(p50_CRB.shape[1:], None, dtype=object)
    return {
        "accuracy": level,
        "accuracy_within": None if level is None else within,
        "contenders": places,
        "winner": chosen[order_CRB[0]].tolist(),
        "seconds": ranked_CRB[0].tolist(),
        "runner_up": (none_RB if alone else chosen[order_CRB[1]]).tolist(),
        "runner_up_seconds": (none_RB if alone else ranked_CRB[1]).tolist(),
        "ratio": (none_RB if alone else ranked_CRB[1] / ranked_CRB[0]).tolist(),
        "too_close": _too_close(order_CRB[0], seconds.p05[chosen], seconds.p95[chosen]).tolist(),
    }


def _too_close(winner_RB: NDArray[np.intp], p05_CRB: Floats, p95_CRB: Floats) -> NDArray[np.bool_]:
    """Where the winner's 90 % interval reaches into that of any other."""
    reach_RB = np.take_along_axis(p95_CRB, winner_RB[None], axis=0)[0]
    others_CRB = np.where(np.arange(len(p05_CRB))[:, None, None] == winner_RB, np.inf, p05_CRB)
    return np.asarray(reach_RB >= others_CRB.min(axis=0))


def at(record: dict[str, Any], name: str) -> dict[str, Any]:
    """Who wins nearest to a named network of the map, a row for each panel; ValueError for one off the plane."""
    profile = network(name)
    bandwidth_mbit, round_trip_ms = 8e-6 * profile.bytes_per_s, 2e3 * profile.one_way_delay_s
    column = _nearest(record["plane"]["bandwidth_mbit"], bandwidth_mbit)
    row = _nearest(record["plane"]["round_trip_ms"], round_trip_ms)
    names = {place: contender["name"] for place, contender in enumerate(record["contenders"])}
    return {
        "network": name,
        "winners": [
            {
                "accuracy": panel["accuracy"],
                "winner": names[panel["winner"][row][column]],
                "seconds": panel["seconds"][row][column],
                "runner_up": names.get(panel["runner_up"][row][column]),
                "ratio": panel["ratio"][row][column],
                "too_close": panel["too_close"][row][column],
            }
            for panel in record["panels"]
        ],
    }


def _nearest(values: Sequence[float], wanted: float) -> int:
    return int(np.argmin(np.abs(np.log(np.array(values) / wanted))))
