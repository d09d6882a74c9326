"""How figures look, and writing one as PNG, SVG and CSV."""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

# Okabe and Ito, "Color Universal Design" (2008), without black: distinct under the common colour-vision deficiencies.
BLUE, VERMILLION, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
SKY, ORANGE, YELLOW = "#56b4e9", "#e69f00", "#f0e442"
PALETTE = (BLUE, ORANGE, GREEN, VERMILLION, SKY, PURPLE, YELLOW)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

# Neutral colours become CSS variables in the page, so that figures follow light and dark.
INK, MUTED, FAINT, GRID, PAPER = "#1b1f24", "#57606a", "#9aa2ab", "#e3e6ea", "#ffffff"
_NEUTRALS = {INK: "--ink", MUTED: "--muted", FAINT: "--faint", GRID: "--grid", PAPER: "--paper"}

WIDTH_IN = 9.0
FOOTER_SEPARATOR = "  |  "
PNG_DPI = 200
_FOOTER_PT = 6.5
_FOOTER_CHARACTERS = 184

_RC: Any = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.facecolor": PAPER,
    "figure.facecolor": PAPER,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "mpc-pareto",
}


@dataclass(frozen=True, slots=True)
class Drawing:
    """A finished figure with what stands below it and the numbers that it shows."""

    name: str
    heading: str
    caption: str
    figure: Figure
    columns: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]


@dataclass(frozen=True, slots=True)
class FigureFiles:
    """Where one figure was written."""

    name: str
    png: Path
    svg: Path
    csv: Path


@contextmanager
def house_style() -> Iterator[None]:
    """Matplotlib's settings for our figures, restored afterwards."""
    with matplotlib.rc_context(_RC):
        yield


def new_figure(height_in: float, footer: str, width_in: float = WIDTH_IN) -> Figure:
    """An empty figure that lays itself out above its `footer`."""
    lines = _footer_lines(footer, int(_FOOTER_CHARACTERS * width_in / WIDTH_IN))
    footer_in = (len(lines) * _FOOTER_PT * 1.35 + 10) / 72
    height_in += footer_in
    figure = Figure(figsize=(width_in, height_in), dpi=PNG_DPI)
    FigureCanvasAgg(figure)
    rect = (0.0, footer_in / height_in, 1.0, 1 - footer_in / height_in)
    figure.set_layout_engine(ConstrainedLayoutEngine(rect=rect, w_pad=0.06, h_pad=0.06, wspace=0.03))
    text = figure.text(
        0.06 / width_in,
        0.04 / height_in,
        "\n".join(lines),
        fontsize=_FOOTER_PT,
        color=MUTED,
        va="bottom",
        linespacing=1.25,
    )
    text.set_in_layout(False)
    return figure


def _footer_lines(footer: str, characters: int) -> list[str]:
    """Parts of the label kept together where they fit a line."""
    lines: list[str] = []
    for part in footer.split(FOOTER_SEPARATOR):
        if lines and len(lines[-1]) + len(FOOTER_SEPARATOR) + len(part) <= characters:
            lines[-1] += FOOTER_SEPARATOR + part
        else:
            lines += textwrap.wrap(part, characters)
    return lines


def bare(axes: Axes, *, grid: str) -> None:
    """Leaves grid lines only along `grid` ("x", "y" or "none"), and no ticks on the other axis."""
    axes.grid(False)
    if grid != "none":
        axes.grid(True, axis="x" if grid == "x" else "y")
        axes.tick_params(axis="y" if grid == "x" else "x", length=0)


def write(drawing: Drawing, folder: Path) -> FigureFiles:
    """Writes PNG, SVG (text as text) and CSV of `drawing` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    files = FigureFiles(drawing.name, *(folder / f"{drawing.name}.{ending}" for ending in ("png", "svg", "csv")))
    drawing.figure.savefig(files.png, dpi=PNG_DPI, metadata={"Software": None})
    files.svg.write_text(_svg(drawing.figure), "utf-8")
    with files.csv.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(drawing.columns)
        writer.writerows(drawing.rows)
    return files


def _svg(figure: Figure) -> str:
    stream = io.StringIO()
    metadata: Mapping[str, None] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(stream, format="svg", metadata=dict(metadata))
    return stream.getvalue()


def inline_svg(svg: str, prefix: str, description: str) -> str:
    """`svg` for the inside of a page: ids made unique by `prefix`, neutral colours as CSS variables."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r'(url\(|href=")#', rf"\1#{prefix}-", svg)
    for colour, variable in _NEUTRALS.items():
        svg = re.sub(re.escape(colour), f"var({variable})", svg, flags=re.IGNORECASE)
    size = re.search(r' width="([\d.]+)pt" height="[\d.]+pt"', svg)
    assert size is not None, "matplotlib states the size of an SVG in points"
    svg = svg.replace(size[0], f' style="--width: {float(size[1]):.0f}"', 1)
    return svg.replace("<svg", f'<svg role="img" aria-label="{description}"', 1)


def significant(value: float, digits: int = 3) -> str:
    """`value` to so many significant digits, in full where it is large: 0.300, 26.0, 1,234."""
    if abs(value) >= 10**digits:
        return f"{value:,.0f}"
    return f"{value:#.{digits}g}".rstrip(".")


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each of `names`, in order; beyond the palette they are faint."""
    return {name: PALETTE[index] if index < len(PALETTE) else FAINT for index, name in enumerate(names)}
