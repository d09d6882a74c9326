"""Attention kinds relative to softmax: seconds, bytes, rounds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from reports.provenance import footer, mode_by_network
from reports.records import AttentionRecord, ShapeRecord
from reports.style import BLUE, GREEN, MUTED, ORANGE, PAPER, PURPLE, SKY, Drawing, bare, new_figure

REFERENCE_KIND = "softmax"
_CLEAR = {"facecolor": PAPER, "linewidth": 0, "pad": 0.4}
_LINK_COLOURS = (SKY, BLUE, ORANGE, PURPLE)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Records of one shape and scheme, by kind and network, with the kind that they are relative to."""

    records: dict[tuple[str, str], AttentionRecord]
    kinds: tuple[str, ...]
    networks: tuple[str, ...]
    reference: str

    def record(self, kind: str, network: str | None = None) -> AttentionRecord | None:
        """The record of `kind` on `network`, or on any network where traffic is all that is asked for."""
        if network is not None:
            return self.records.get((kind, network))
        return next((self.records[kind, name] for name in self.networks if (kind, name) in self.records), None)

    def seconds(self, kind: str, network: str) -> float | None:
        """Online seconds relative to the reference kind."""
        return _ratio(_median(self.record(kind, network)), _median(self.record(self.reference, network)))

    def traffic(self, kind: str, what: str) -> float | None:
        """Online `rounds` or `bytes` relative to the reference kind."""
        return _ratio(_online(self.record(kind), what), _online(self.record(self.reference), what))

    @property
    def shape(self) -> str:
        """The layer in words."""
        return shape_label(next(iter(self.records.values()))["shape"])


def shape_label(shape: ShapeRecord) -> str:
    """An attention layer in words."""
    return f"{shape['tokens']} tokens, {shape['dim']} wide, {shape['heads']} heads, batch {shape['batch']}"


def compare(records: Sequence[AttentionRecord]) -> Comparison | None:
    """The shape and scheme with most records (the first of equals), fastest kind last; None without records."""
    if not records:
        return None
    groups = [json.dumps([record["shape"], record["scheme"]], sort_keys=True) for record in records]
    largest = Counter(groups).most_common(1)[0][0]
    chosen = {(r["kind"], r["network"]): r for r, group in zip(records, groups, strict=True) if group == largest}
    networks = tuple(dict.fromkeys(network for _, network in chosen))
    kinds = tuple(dict.fromkeys(kind for kind, _ in chosen))
    reference = REFERENCE_KIND if REFERENCE_KIND in kinds else kinds[0]

    def slowness(kind: str) -> float:
        return max((_median(chosen.get((kind, network))) or 0.0) for network in networks)

    return Comparison(chosen, tuple(sorted(kinds, key=slowness, reverse=True)), networks, reference)


def attention_relative(records: Sequence[AttentionRecord]) -> Drawing | None:
    """Figure: bars relative to softmax for seconds (a bar a network), bytes and rounds."""
    comparison = compare(records)
    if comparison is None:
        return None
    used = list(comparison.records.values())
    modes = mode_by_network((record["mode"], record["network"]) for record in used)
    bars = max(2, len(comparison.networks))
    height_in = 1.2 + len(comparison.kinds) * (0.14 + 0.12 * bars)
    figure = new_figure(height_in, footer(used, phases="online", modes=modes))
    all_axes = figure.subplots(1, 3, sharey=True, width_ratios=(1.5, 1, 1))
    shade = dict(zip(comparison.networks, _LINK_COLOURS * len(comparison.networks), strict=False))
    seconds = {name: [comparison.seconds(kind, name) for kind in comparison.kinds] for name in comparison.networks}
    _bars(all_axes[0], seconds, shade, f"seconds / {comparison.reference}")
    for axes, what in zip(all_axes[1:], ("bytes", "rounds"), strict=True):
        values = {what: [comparison.traffic(kind, what) for kind in comparison.kinds]}
        _bars(axes, values, {what: GREEN}, f"online {what} / {comparison.reference}")
    all_axes[0].set_yticks(range(len(comparison.kinds)), comparison.kinds)
    all_axes[0].set_ylim(len(comparison.kinds) - 0.45, -0.55)
    handles = [Patch(color=shade[name], label=f"seconds, {name}") for name in comparison.networks]
    handles.append(Patch(color=GREEN, label="traffic of the busiest party"))
    figure.legend(handles=handles, loc="outside upper left", ncols=4, handlelength=1.0)
    return Drawing(
        "attention_kinds",
        "Attention kinds under secure computation",
        f"One attention layer ({comparison.shape}), projections included, relative to {comparison.reference} = 1 "
        "(line); shorter is better. Bytes and rounds do not depend on the network.",
        figure,
        ("kind", *(f"seconds_{name}" for name in comparison.networks), "bytes", "rounds"),
        tuple(
            (
                kind,
                *(comparison.seconds(kind, name) for name in comparison.networks),
                *(comparison.traffic(kind, what) for what in ("bytes", "rounds")),
            )
            for kind in comparison.kinds
        ),
    )


def _bars(axes: Axes, values: dict[str, list[float | None]], shade: dict[str, str], label: str) -> None:
    thick = 0.8 / len(values) if len(values) > 1 else 0.5
    for index, (name, ratios) in enumerate(values.items()):
        offset = (index - (len(values) - 1) / 2) * thick
        for row, ratio in enumerate(ratios):
            if ratio is None:
                continue
            axes.barh(row + offset, ratio, height=0.86 * thick, color=shade[name])
            text = f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"
            axes.annotate(
                text,
                (ratio, row + offset),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=7.5,
                bbox=_CLEAR,
            )
    axes.axvline(1, color=MUTED, linewidth=0.9, zorder=0.9)
    axes.set_xlim(0, 1.17 * max([1.0, *(ratio for ratios in values.values() for ratio in ratios if ratio is not None)]))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(label)
    bare(axes, grid="x")


def _median(record: AttentionRecord | None) -> float | None:
    return None if record is None else record["seconds"]["online"]["median"]


def _online(record: AttentionRecord | None, what: str) -> float | None:
    if record is None:
        return None
    return float(record["online"]["rounds"] if what == "rounds" else record["online"]["bytes"])


def _ratio(value: float | None, reference: float | None) -> float | None:
    return None if value is None or not reference else value / reference
