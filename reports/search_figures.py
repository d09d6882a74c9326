"""What a search chose for each head, and how strongly latency pulled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.ticker import MaxNLocator

from reports.records import SearchEpochRecord
from reports.style import MARKERS, PAPER, Drawing, bare, colours, new_figure

_SEEDS_SHOWN = 3
_OBJECTIVES_SHOWN = 4
_LEVELS = 10
_COLUMNS = ("objective", "seed", "epoch", "loss", "accuracy", "latency_s", "latency_gradient_norm", "p_relu_softmax")
_ON_DARK, _ON_LIGHT = "#fdfdfd", "#101214"  # fixed in light and dark: they stand on coloured cells


def search_course(records: Sequence[SearchEpochRecord], footer: str) -> Drawing | None:
    """Figure: p(ReLU-softmax) per head after the last epoch, by objective and seed; latency gradient over epochs."""
    if not records:
        return None
    objectives = tuple(sorted({record["objective"] for record in records}, key=_objective_order))[:_OBJECTIVES_SHOWN]
    all_seeds = tuple(sorted({record["seed"] for record in records}))
    seeds = all_seeds[:_SEEDS_SHOWN]
    layers = max(len(record["p_relu_softmax"]) for record in records)
    row_in = min(2.4, 0.55 + 0.24 * layers)
    figure = new_figure(max(3.2, 0.9 + row_in * len(seeds)), footer)
    widths = [*([1.0] * len(objectives)), 0.12, 0.14, 2.0]
    grid = GridSpec(len(seeds), len(objectives) + 3, figure=figure, width_ratios=widths)
    _heat_maps(figure, grid, records, objectives, seeds)
    _gradients(figure.add_subplot(grid[:, -1]), records, objectives)
    more = f" {len(all_seeds) - len(seeds)} more seeds are in the CSV." if len(all_seeds) > len(seeds) else ""
    return Drawing(
        "search",
        "Course of the search",
        "Left: the probability of ReLU-softmax (against the cheaper kind) for each head after the last epoch; heads of "
        "a layer are interchangeable, so compare counts per row between seeds, not columns. Right: norm of the latency "
        f"term's gradient, a thin line a seed, thick their median; zero would mean that latency played no part.{more}",
        figure,
        _COLUMNS,
        tuple(tuple(map(dict(record).get, _COLUMNS)) for record in records),
    )


def short_objective(objective: str) -> str:
    """`cheetah-wan` for `latency@cheetah-wan`; others as they are."""
    return objective.removeprefix("latency@")


def last_epochs(records: Sequence[SearchEpochRecord]) -> dict[tuple[str, int], SearchEpochRecord]:
    """The last record of each objective and seed."""
    return {(r["objective"], r["seed"]): r for r in sorted(records, key=lambda r: r["epoch"])}


def _objective_order(objective: str) -> tuple[bool, str]:
    return (not objective.startswith("latency@"), objective)


def _heat_maps(
    figure: Figure,
    grid: GridSpec,
    records: Sequence[SearchEpochRecord],
    objectives: Sequence[str],
    seeds: Sequence[int],
) -> None:
    last = last_epochs(records)
    shades = ListedColormap(colormaps["cividis"](np.linspace(0.0, 1.0, _LEVELS)))
    mesh = None
    for row, seed in enumerate(seeds):
        for column, objective in enumerate(objectives):
            record = last.get((objective, seed))
            if record is None:
                continue
            axes = figure.add_subplot(grid[row, column])
            p_LH = np.array(record["p_relu_softmax"])
            mesh = axes.pcolormesh(p_LH, cmap=shades, vmin=0, vmax=1, edgecolors=PAPER, linewidth=0.8)
            _write_values(axes, p_LH)
            _head_axes(axes, p_LH.shape, f"layer (seed {seed})" if column == 0 else "", bottom=row == len(seeds) - 1)
            if row == 0:
                axes.set_title(short_objective(objective))
    if mesh is not None:
        bar = figure.colorbar(mesh, cax=figure.add_subplot(grid[:, -3]), ticks=[0, 0.5, 1])
        bar.set_label("p(ReLU-softmax)", labelpad=2)
        bar.outline.set_visible(False)


def _write_values(axes: Axes, p_LH: np.ndarray) -> None:
    for layer, head in np.ndindex(p_LH.shape):
        p = p_LH[layer, head]
        shade = _ON_DARK if p < 0.55 else _ON_LIGHT
        axes.text(head + 0.5, layer + 0.5, f"{p:.2f}".lstrip("0"), ha="center", va="center", fontsize=6.5, color=shade)


def _head_axes(axes: Axes, shape: tuple[int, ...], y_label: str, *, bottom: bool) -> None:
    axes.set_xticks(np.arange(shape[1]) + 0.5, [str(head) for head in range(shape[1])])
    axes.set_yticks(np.arange(shape[0]) + 0.5, [str(layer) for layer in range(shape[0])] if y_label else [])
    axes.invert_yaxis()
    axes.tick_params(length=0, labelbottom=bottom)
    axes.spines[:].set_visible(False)
    axes.grid(False)
    axes.set_ylabel(y_label)
    if bottom:
        axes.set_xlabel("head")


def _gradients(axes: Axes, records: Sequence[SearchEpochRecord], objectives: Sequence[str]) -> None:
    shade = colours(objectives)
    positive: list[float] = []
    zero = False
    for index, objective in enumerate(objectives):
        by_epoch: dict[int, list[float]] = {}
        for seed in sorted({r["seed"] for r in records if r["objective"] == objective}):
            course = [
                (r["epoch"], norm)
                for r in sorted(records, key=lambda r: r["epoch"])
                if r["objective"] == objective
                and r["seed"] == seed
                and (norm := r["latency_gradient_norm"]) is not None
            ]
            axes.plot(
                [epoch for epoch, _ in course],
                [norm for _, norm in course],
                color=shade[objective],
                linewidth=0.7,
                alpha=0.5,
            )
            for epoch, norm in course:
                by_epoch.setdefault(epoch, []).append(norm)
        if not by_epoch:
            continue
        middle = {epoch: float(np.median(norms)) for epoch, norms in sorted(by_epoch.items())}
        norms = [norm for values in by_epoch.values() for norm in values]
        positive += [norm for norm in norms if norm > 0]
        zero = zero or min(norms) <= 0
        axes.plot(
            list(middle),
            list(middle.values()),
            color=shade[objective],
            marker=MARKERS[index % len(MARKERS)],
            markersize=4,
            markevery=max(1, len(middle) // 10),
            label=short_objective(objective),
        )
    if positive:
        axes.set_yscale("symlog", linthresh=min(positive)) if zero else axes.set_yscale("log")
        axes.legend(loc="best")
    bare(axes, grid="y")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel("norm of the latency gradient")
