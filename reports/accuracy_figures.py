"""Accuracy against secure latency on two links, and against multiplications."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from reports.candidates import Reading, families, links, reading
from reports.front import Point, hypervolume, non_dominated, reference_point
from reports.labels import Anchor, place_labels
from reports.provenance import footer, mode_by_network
from reports.records import CandidateRecord
from reports.style import FAINT, INK, MARKERS, MUTED, PAPER, Drawing, bare, colours, new_figure

_MARK_PT = 7.0
_PREDICTED_PT = 4.5


@dataclass(frozen=True, slots=True)
class Panel:
    """Candidates along one axis of cost, with the front and its hypervolume."""

    candidates: tuple[CandidateRecord, ...]
    readings: tuple[Reading, ...]
    points: tuple[Point, ...]
    front: tuple[int, ...]
    reference: Point

    @property
    def front_points(self) -> frozenset[Point]:
        """The points on the front."""
        return frozenset(self.points[index] for index in self.front)

    @property
    def share(self) -> float:
        """Hypervolume as a fraction of the box between the reference and (0, 100 %)."""
        return hypervolume(self.points, self.reference) / (self.reference.cost * (1 - self.reference.accuracy))


def panel(candidates: Sequence[CandidateRecord], link: str | None) -> Panel | None:
    """Candidates that have seconds on `link` (measured or replayed before predicted), or by MACs where it is None."""
    found = [(candidate, reading(candidate, link)) for candidate in candidates]
    shown = [(candidate, value) for candidate, value in found if value is not None]
    if not shown:
        return None
    points = tuple(Point(value.cost, candidate["accuracy"]) for candidate, value in shown)
    return Panel(
        tuple(candidate for candidate, _ in shown),
        tuple(value for _, value in shown),
        points,
        non_dominated(points),
        reference_point(points),
    )


def accuracy_against_latency(candidates: Sequence[CandidateRecord]) -> Drawing | None:
    """Figure: one panel a link, one accuracy axis; None where no candidate has seconds on any link."""
    panels = [(link, shown) for link in links(candidates) if (shown := panel(candidates, link))]
    if not panels:
        return None
    modes = mode_by_network((value.mode, link) for link, shown in panels for value in shown.readings)
    label = footer(candidates, phases="online, one image", modes=modes)
    figure = new_figure(4.5, label, width_in=9.0 if len(panels) > 1 else 6.5)
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (link, shown) in zip(all_axes, panels, strict=True):
        _draw(axes, shown, families(candidates))
        axes.set_xlabel(f"secure latency on {link} (s)")
        _name_hypervolume(axes, shown)
    _finish(all_axes, [shown for _, shown in panels], families(candidates))
    rows = [(link, *row) for link, shown in panels for row in _rows(shown)]
    return Drawing(
        "accuracy_latency",
        "Accuracy against secure latency",
        "Every network of the run; up and to the left is better. Coloured: on the front. Grey and hollow: dominated. "
        "Large marks with a name were measured or replayed (bar: interquartile range); small marks are predictions "
        "(bar: 5 % to 95 %). Shaded: the hypervolume, also given as its share of the box from the reference point to "
        "0 s and 100 %.",
        figure,
        ("network", *_COLUMNS),
        tuple(rows),
    )


def accuracy_against_macs(candidates: Sequence[CandidateRecord]) -> Drawing | None:
    """Figure: what the plain count of multiplications says about the same networks."""
    shown = panel(candidates, None)
    if shown is None:
        return None
    figure = new_figure(4.0, footer(candidates, phases="none (plain count)", modes=("counted",)), width_in=6.5)
    axes = figure.subplots()
    _draw(axes, shown, families(candidates))
    axes.set_xlabel("multiply-accumulates per image (millions)")
    _finish([axes], [shown], families(candidates))
    return Drawing(
        "accuracy_macs",
        "Accuracy against multiplications",
        "The same networks by multiply-accumulates, a count that does not see the rounds of an attention kind.",
        figure,
        _COLUMNS,
        tuple(_rows(shown)),
    )


_COLUMNS = ("name", "found_by", "cost", "low", "high", "mode", "accuracy", "on_front")


def _rows(shown: Panel) -> list[tuple[object, ...]]:
    return [
        (c["name"], c["found_by"], value.cost, value.low, value.high, value.mode, c["accuracy"], index in shown.front)
        for index, (c, value) in enumerate(zip(shown.candidates, shown.readings, strict=True))
    ]


def _draw(axes: Axes, shown: Panel, names: Sequence[str]) -> None:
    shade, corners = colours(names), _corners(shown)
    axes.fill_between(
        [x for x, _ in corners],
        [y for _, y in corners],
        100 * shown.reference.accuracy,
        color=MUTED,
        alpha=0.08,
        linewidth=0,
    )
    axes.plot([x for x, _ in corners], [y for _, y in corners], color=MUTED, linewidth=1.2, zorder=2)
    for index, (candidate, value, point) in enumerate(zip(shown.candidates, shown.readings, shown.points, strict=True)):
        best = index in shown.front
        colour = shade[candidate["found_by"]] if best else FAINT
        axes.errorbar(
            point.cost,
            100 * point.accuracy,
            xerr=None
            if value.mode == "counted"
            else [[max(0.0, point.cost - value.low)], [max(0.0, value.high - point.cost)]],
            marker=MARKERS[names.index(candidate["found_by"]) % len(MARKERS)],
            markersize=_PREDICTED_PT if value.mode == "predicted" else _MARK_PT,
            color=colour,
            markerfacecolor=colour if best else PAPER,
            markeredgecolor=PAPER if best else FAINT,
            markeredgewidth=0.6 if best else 1.2,
            elinewidth=1.2 if value.observed else 0.6,
            capsize=2.5 if value.observed else 0,
            zorder=5 if best else 3,
        )
    bare(axes, grid="y")
    axes.tick_params(axis="x", length=3)
    axes.set_xlim(*_window([(value.low, value.high) for value in shown.readings], shown.reference.cost))


def _accuracy_label(candidates: Sequence[CandidateRecord]) -> str:
    """The axis of accuracies, with the largest binomial standard error where the number of test images is known."""
    errors = [
        100 * sqrt(c["accuracy"] * (1 - c["accuracy"]) / c["test_images"]) for c in candidates if c.get("test_images")
    ]
    bound = f"\nstandard error up to {max(errors):.1f} points" if errors else ""
    return f"plain test accuracy, top-1 (%){bound}"


def _window(intervals: Sequence[tuple[float, float]], reference: float) -> tuple[float, float]:
    """Limits of the cost axis around all intervals, with the reference where it is not far off."""
    low, high = min(low for low, _ in intervals), max(high for _, high in intervals)
    room = 0.06 * (high - low) or 0.05 * high
    return low - room, reference + room / 2 if high < reference < high + 5 * room else high + room


def _corners(shown: Panel) -> list[tuple[float, float]]:
    """The front as a staircase from below its cheapest point to the reference cost, in the units of the axes."""
    front = [shown.points[index] for index in shown.front]
    corners = [(front[0].cost, 100 * shown.reference.accuracy)]
    for point in front:
        corners += [(point.cost, corners[-1][1]), (point.cost, 100 * point.accuracy)]
    window = _window([(value.low, value.high) for value in shown.readings], shown.reference.cost)
    right = min(window[1], shown.reference.cost)
    return [*corners, (right, corners[-1][1])]


def _name_hypervolume(axes: Axes, shown: Panel) -> None:
    cost, percent = shown.reference.cost, 100 * shown.reference.accuracy
    axes.plot(cost, percent, marker="+", color=MUTED, markersize=8)
    text = f"hypervolume {100 * shown.share:.1f} % of the box; reference (+) {cost:g} s, {percent:.0f} %"
    axes.set_title(text, loc="left", fontsize=8, color=MUTED)


def _finish(all_axes: Sequence[Axes], panels: Sequence[Panel], names: Sequence[str]) -> None:
    """Accuracy axis, legend, then the names of the points, which need everything else in place."""
    lowest = min(shown.reference.accuracy for shown in panels)
    highest = max(point.accuracy for shown in panels for point in shown.points)
    room = 8 * (highest - lowest)
    all_axes[0].set_ylim(100 * lowest - room / 2, 100 * highest + 2 * room)
    all_axes[0].set_yticks([tick for tick in all_axes[0].get_yticks() if 100 * lowest <= tick <= 100])
    all_axes[0].set_ylabel(_accuracy_label([candidate for shown in panels for candidate in shown.candidates]))
    all_axes[0].figure.legend(
        handles=_legend(
            names, predicted=any(value.mode == "predicted" for shown in panels for value in shown.readings)
        ),
        loc="outside upper left",
        ncols=4 if len(all_axes) > 1 else 3,
        handletextpad=0.5,
        columnspacing=1.6,
    )
    for axes, shown in zip(all_axes, panels, strict=True):
        anchors = [
            Anchor(point.cost, 100 * point.accuracy, candidate["name"])
            for candidate, value, point in zip(shown.candidates, shown.readings, shown.points, strict=True)
            if value.observed or (value.mode == "counted" and point in shown.front_points)
        ]
        place_labels(axes, anchors, [(point.cost, 100 * point.accuracy) for point in shown.points], _corners(shown))


def _legend(names: Sequence[str], *, predicted: bool) -> list[Line2D]:
    shade = colours(names)
    marks = [
        Line2D(
            [],
            [],
            linestyle="none",
            marker=MARKERS[index % len(MARKERS)],
            markersize=_MARK_PT,
            color=shade[name],
            label=name,
        )
        for index, name in enumerate(names)
    ]
    hollow = Line2D(
        [], [], linestyle="none", marker="o", markersize=_MARK_PT, color=FAINT, markerfacecolor=PAPER, label="dominated"
    )
    small = Line2D([], [], linestyle="none", marker="o", markersize=_PREDICTED_PT, color=INK, label="predicted only")
    front = Line2D([], [], color=MUTED, linewidth=1.2, label="front")
    return [*marks, hollow, *([small] if predicted else []), front]
