"""Names beside points, without overlaps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.text import Annotation, Text

from reports.style import FAINT, INK, PAPER

# A box is (x0, y0, x1, y1) in pixels; boxes_P4 holds P of them.
Boxes = np.ndarray[Any, np.dtype[np.float64]]

_SIZE_PT = 7.5
_DISTANCES_PT = (6.0, 8.0, 11.0, 15.0, 20.0, 27.0, 36.0, 48.0, 64.0)
_DIRECTIONS = 16
_LEADER_FROM_PT = 10.0
_MARK_REACH_PT = 4.5
_GAP_PT = 1.5
_LEADER_POINTS = 9
_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Anchor:
    """A point to name, in data coordinates."""

    x: float
    y: float
    text: str


def place_labels(
    axes: Axes,
    anchors: Sequence[Anchor],
    marks: Sequence[tuple[float, float]],
    lines: Sequence[tuple[float, float]],
) -> list[Annotation]:
    """Writes the text of each anchor where it hides no other label, no mark and as little as possible of the `lines`.

    The figure must be complete otherwise: places are found in pixels, at the resolution of the figure. `lines` are the
    corners of one drawn polyline. A label that had to move away gets a thin leader.
    """
    if not anchors:
        return []
    canvas: Any = axes.figure.canvas
    canvas.figure.draw_without_rendering()
    pixels_per_pt = axes.figure.dpi / 72
    offsets, options = zip(*(_places(axes, anchor, canvas, pixels_per_pt) for anchor in anchors), strict=True)
    static = [_static_cost(axes, boxes_P4, marks, lines, pixels_per_pt) for boxes_P4 in options]
    leaders = [_leaders(axes, anchor, boxes_P4) for anchor, boxes_P4 in zip(anchors, options, strict=True)]
    crossing = 100 * pixels_per_pt**2
    gap = np.array((-1, -1, 1, 1)) * _GAP_PT * pixels_per_pt
    chosen = [0] * len(anchors)
    for _ in range(_ROUNDS):
        for index, boxes_P4 in enumerate(options):
            others = [(other, pick) for other, pick in enumerate(chosen) if other != index]
            labels_O4 = np.array([options[other][pick] for other, pick in others]).reshape(-1, 4)
            their_leaders = np.array([leaders[other][pick] for other, pick in others]).reshape(-1, 2)
            cost_P = static[index] + 100 * _overlap(boxes_P4 + gap, labels_O4)
            cost_P += crossing * _holds(boxes_P4[:, None], their_leaders[None]).sum(axis=1)
            cost_P += crossing * _holds(labels_O4[None, :, None], leaders[index][:, None]).sum(axis=(1, 2))
            chosen[index] = int(np.argmin(cost_P))
    return [
        _annotate(axes, anchor, offsets[index][pick] / pixels_per_pt, _distance_pt(pick))
        for index, (anchor, pick) in enumerate(zip(anchors, chosen, strict=True))
    ]


def _distance_pt(place: int) -> float:
    return _DISTANCES_PT[place // _DIRECTIONS]


def _places(axes: Axes, anchor: Anchor, canvas: Any, pixels_per_pt: float) -> tuple[Boxes, Boxes]:
    """Offsets of the lower left corner of the text from its point, nearest first, and the boxes that it would fill."""
    probe = Text(0, 0, anchor.text, fontproperties=FontProperties(size=_SIZE_PT), figure=axes.figure)
    extent = probe.get_window_extent(canvas.get_renderer())
    offsets = []
    for distance_pt in _DISTANCES_PT:
        for step in range(_DIRECTIONS):
            angle = 2 * math.pi * (step / _DIRECTIONS + 1 / 8)
            cos, sin, away = math.cos(angle), math.sin(angle), distance_pt * pixels_per_pt
            offsets.append((away * cos + extent.width * (cos - 1) / 2, away * sin + extent.height * (sin - 1) / 2))
    corners = axes.transData.transform((anchor.x, anchor.y)) + np.array(offsets)
    return np.array(offsets), np.hstack((corners, corners + np.array((extent.width, extent.height))))


def _static_cost(
    axes: Axes,
    boxes_P4: Boxes,
    marks: Sequence[tuple[float, float]],
    lines: Sequence[tuple[float, float]],
    pixels_per_pt: float,
) -> Boxes:
    """What each place costs whatever the other labels do."""
    reach = np.array((-1, -1, 1, 1)) * _MARK_REACH_PT * pixels_per_pt
    marks_M4 = np.tile(axes.transData.transform(np.array(marks)), 2) + reach
    corners = axes.transData.transform(np.array(lines))
    low, high = np.minimum(corners[:-1], corners[1:]), np.maximum(corners[:-1], corners[1:])
    lines_M4 = np.hstack((low - pixels_per_pt, high + pixels_per_pt))
    inside = axes.bbox
    room = np.array((inside.x0, inside.y0, -inside.x1, -inside.y1))
    outside_P = np.maximum(0, room - boxes_P4 * np.array((1, 1, -1, -1))).sum(axis=1)
    distance_P = np.array([_distance_pt(place) for place in range(len(boxes_P4))])
    crossing_P = 50 * _overlap(boxes_P4, marks_M4) + 3 * _overlap(boxes_P4, lines_M4)
    cost_P: Boxes = crossing_P + 500 * outside_P + 4 * pixels_per_pt**2 * distance_P
    return cost_P


def _leaders(axes: Axes, anchor: Anchor, boxes_P4: Boxes) -> Boxes:
    """Points along the leader of each place (P, points, xy); all on the anchor itself where there is no leader."""
    start = axes.transData.transform((anchor.x, anchor.y))
    has_leader_P = np.array([_distance_pt(place) > _LEADER_FROM_PT for place in range(len(boxes_P4))])
    centre_P2 = (boxes_P4[:, :2] + boxes_P4[:, 2:]) / 2
    along = np.linspace(0, 1, _LEADER_POINTS)[None, :, None]
    points: Boxes = start + along * ((centre_P2 - start) * has_leader_P[:, None])[:, None, :]
    return points


def _holds(boxes: Boxes, points: Boxes) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Whether each box (last axis 4) holds each point (last axis 2); the other axes broadcast."""
    inside: np.ndarray[Any, np.dtype[np.bool_]] = np.all((boxes[..., :2] < points) & (points < boxes[..., 2:]), axis=-1)
    return inside


def _overlap(boxes_P4: Boxes, others_M4: Boxes) -> Boxes:
    """The area that each box shares with all `others_M4`."""
    low = np.maximum(boxes_P4[:, None, :2], others_M4[None, :, :2])
    high = np.minimum(boxes_P4[:, None, 2:], others_M4[None, :, 2:])
    shared_P: Boxes = np.prod(np.maximum(0, high - low), axis=2).sum(axis=1)
    return shared_P


def _annotate(axes: Axes, anchor: Anchor, offset_pt: Boxes, distance_pt: float) -> Annotation:
    leader = {"arrowstyle": "-", "color": FAINT, "linewidth": 0.7, "shrinkA": 1, "shrinkB": 4, "relpos": (0.5, 0.5)}
    annotation = axes.annotate(
        anchor.text,
        (anchor.x, anchor.y),
        xytext=(float(offset_pt[0]), float(offset_pt[1])),
        textcoords="offset points",
        fontsize=_SIZE_PT,
        color=INK,
        ha="left",
        va="bottom",
        arrowprops=leader if distance_pt > _LEADER_FROM_PT else None,
        bbox={"facecolor": PAPER, "alpha": 0.6, "linewidth": 0, "pad": 0.3},
        zorder=6,
    )
    annotation.set_in_layout(False)
    return annotation
