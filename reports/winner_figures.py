"""Which attention kind or network is fastest over the plane of bandwidth and round-trip time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from reports.labels import Anchor, place_labels
from reports.provenance import footer
from reports.records import WinnerMapRecord, WinnersRecord
from reports.style import FAINT, INK, PALETTE, PAPER, Drawing, new_figure

_PER_ROW = 2
_LIGHTER = 0.55  # regions are paler than marks, so that labels on them can be read
_COLUMNS = (
    "accuracy",
    "bandwidth_mbit",
    "round_trip_ms",
    "winner",
    "seconds",
    "runner_up",
    "runner_up_seconds",
    "ratio",
    "too_close",
)


def winner_map(record: WinnerMapRecord | None) -> Drawing | None:
    """Figure: a panel for each accuracy asked for, a colour for each winner; None without a record."""
    if record is None:
        return None
    panels = record["panels"]
    rows, columns = -(-len(panels) // _PER_ROW), min(len(panels), _PER_ROW)
    width_in = 9.0 if columns > 1 else 6.5
    figure = new_figure(0.7 + 4.2 * rows, _label(record), width_in=width_in)
    all_axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    shade = _shades(record)
    for axes, panel in zip(all_axes, panels, strict=False):
        _draw(axes, record, panel, shade)
        axes.set_title(_title(record, panel), loc="left", fontsize=8)
    for number, axes in enumerate(all_axes):
        axes.set_visible(number < len(panels))
        if number + columns >= len(panels):
            axes.set_xlabel("bandwidth (Mbit/s)")
            axes.tick_params(labelbottom=True)
        if number % columns == 0:
            axes.set_ylabel("round-trip time (ms)")
    _legend(figure, record, shade)
    for axes in all_axes[: len(panels)]:
        _name_profiles(axes, record)
    compared = " Accuracy is not compared: an attention kind has none of its own."
    if record["accuracy_source"] is not None:
        compared = (
            f" Networks compete that reach the accuracy of a panel ({record['accuracy_source']}), less the margin."
        )
    return Drawing(
        "winner_map",
        f"The fastest of {len(record['contenders'])} {record['what']} by network",
        f"Predicted seconds on every bandwidth and round-trip time.{compared} Hatched: too close to call, the winner's "
        "90 % interval reaches into another's; the intervals count errors that both share, so this is cautious. "
        "Points: named network profiles.",
        figure,
        _COLUMNS,
        tuple(row for panel in panels for row in _rows(record, panel)),
    )


def _label(record: WinnerMapRecord) -> str:
    return footer([record], phases="online", modes=("predicted",))


def _title(record: WinnerMapRecord, panel: WinnersRecord) -> str:
    if panel["accuracy"] is None:
        return f"fastest of {len(panel['contenders'])} {record['what']}; accuracy is not compared"
    within = 100 * (panel["accuracy_within"] or 0.0)
    count = f"{len(panel['contenders'])} of {len(record['contenders'])} networks compete"
    return f"accuracy at least {100 * panel['accuracy']:.1f} % less {within:.2g} points: {count}"


def _shades(record: WinnerMapRecord) -> dict[int, str]:
    """A colour for each contender that wins anywhere, those that win most first; beyond the palette they are faint."""
    won = Counter(place for panel in record["panels"] for row in panel["winner"] for place in row)
    places = [place for place, _ in won.most_common()]
    return {place: PALETTE[i] if i < len(PALETTE) else FAINT for i, place in enumerate(places)}


def _draw(axes: Axes, record: WinnerMapRecord, panel: WinnersRecord, shade: Mapping[int, str]) -> None:
    x, y = record["plane"]["bandwidth_mbit"], record["plane"]["round_trip_ms"]
    order = {place: number for number, place in enumerate(shade)}
    winners = np.array([[order[place] for place in row] for row in panel["winner"]])
    colours = ListedColormap([_paler(colour) for colour in shade.values()])
    norm = BoundaryNorm(np.arange(len(shade) + 1) - 0.5, len(shade))
    axes.set(xscale="log", yscale="log", xlim=_ends(x), ylim=_ends(y))
    axes.grid(False)
    axes.pcolormesh(_edges(x), _edges(y), winners, cmap=colours, norm=norm, rasterized=True)
    close = np.array(panel["too_close"], dtype=float)
    if close.any():
        hatched = axes.contourf(x, y, close, levels=[0.5, 1.5], colors="none", hatches=["////"])
        hatched.set_edgecolor(to_rgba(INK, 0.3))
        hatched.set_linewidth(0.0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")


def _ends(values: Sequence[float]) -> tuple[float, float]:
    return values[0], values[-1]


def _edges(values: Sequence[float]) -> np.ndarray:
    """Borders of cells around values that are evenly spaced on a logarithmic axis."""
    half = np.sqrt(values[1] / values[0])
    return np.array([values[0] / half, *(value * half for value in values)])


def _paler(colour: str) -> tuple[float, float, float]:
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return tuple(1 - _LIGHTER * (1 - part) for part in (red, green, blue))  # type: ignore[return-value]


def _legend(figure: Figure, record: WinnerMapRecord, shade: Mapping[int, str]) -> None:
    handles = [
        Patch(facecolor=_paler(colour), edgecolor=colour, linewidth=0.8, label=_name(record, place))
        for place, colour in shade.items()
    ]
    if any(close for panel in record["panels"] for row in panel["too_close"] for close in row):
        handles.append(Patch(facecolor=PAPER, edgecolor=INK, hatch="////", linewidth=0.4, label="too close to call"))
    figure.legend(handles=handles, loc="outside upper left", ncols=4, handlelength=1.4)


def _name(record: WinnerMapRecord, place: int) -> str:
    contender = record["contenders"][place]
    accuracy = "" if contender["accuracy"] is None else f" ({100 * contender['accuracy']:.1f} %)"
    return contender["name"] + accuracy


def _name_profiles(axes: Axes, record: WinnerMapRecord) -> None:
    points = [(profile["bandwidth_mbit"], profile["round_trip_ms"]) for profile in record["profiles"]]
    if not points:
        return
    x, y = zip(*points, strict=True)
    axes.plot(x, y, "o", color=INK, markersize=4, markeredgecolor=PAPER, markeredgewidth=0.6, zorder=5)
    anchors = [Anchor(p["bandwidth_mbit"], p["round_trip_ms"], p["name"]) for p in record["profiles"]]
    place_labels(axes, anchors, points, [points[0], points[0]])


def _rows(record: WinnerMapRecord, panel: WinnersRecord) -> list[tuple[object, ...]]:
    names = [contender["name"] for contender in record["contenders"]]
    rows: list[tuple[object, ...]] = []
    for r, round_trip_ms in enumerate(record["plane"]["round_trip_ms"]):
        for b, bandwidth_mbit in enumerate(record["plane"]["bandwidth_mbit"]):
            second = panel["runner_up"][r][b]
            rows.append(
                (
                    panel["accuracy"],
                    bandwidth_mbit,
                    round_trip_ms,
                    names[panel["winner"][r][b]],
                    panel["seconds"][r][b],
                    None if second is None else names[second],
                    panel["runner_up_seconds"][r][b],
                    panel["ratio"][r][b],
                    panel["too_close"][r][b],
                )
            )
    return rows
