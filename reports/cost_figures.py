"""Where secure seconds go, and how well they are predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from reports.accuracy_figures import panel
from reports.candidates import links
from reports.provenance import footer, mode_by_network
from reports.records_read import CalibrationRecord, CandidateRecord
from reports.style import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    MUTED,
    PAPER,
    VERMILLION,
    Drawing,
    bare,
    colours,
    new_figure,
    significant,
)

_OPS_SHOWN = 7
_BARS_SHOWN = 14
_OTHER = "other ops"
BAND = 0.15


def latency_by_op(candidates: Sequence[CandidateRecord]) -> Drawing | None:
    """Figure: a stacked bar a network for each link; None where no candidate has a breakdown."""
    shown_links = [link for link in links(candidates) if any(link in c["by_op_s"] for c in candidates)]
    if not shown_links:
        return None
    bars = _bars(candidates, shown_links)
    ops = _dearest_ops(bars, shown_links)
    figure = new_figure(
        1.5 + 0.26 * len(bars), footer(bars, phases="online, one image", modes=_modes(bars, shown_links))
    )
    all_axes = figure.subplots(1, len(shown_links), sharey=True, squeeze=False)[0]
    for axes, link in zip(all_axes, shown_links, strict=True):
        _stack(axes, bars, link, ops)
    all_axes[0].set_yticks(range(len(bars)), [bar["name"] for bar in bars])
    all_axes[0].set_ylim(len(bars) - 0.4, -0.6)
    shade = _shades(ops)
    figure.legend(
        handles=[Patch(color=shade[op], label=op) for op in shade], loc="outside upper left", ncols=8, handlelength=1.0
    )
    rows = [
        (link, c["name"], op, s)
        for link in shown_links
        for c in candidates
        for op, s in c["by_op_s"].get(link, {}).items()
    ]
    left_out = len(candidates) - len(bars)
    more = f" {left_out} more networks are in the CSV." if left_out else ""
    return Drawing(
        "latency_by_op",
        "Where the seconds go",
        f"Secure latency of one image by operation, fastest network first; each bar ends with its sum.{more}",
        figure,
        ("network", "name", "op", "seconds"),
        tuple(rows),
    )


def _bars(candidates: Sequence[CandidateRecord], shown_links: Sequence[str]) -> list[CandidateRecord]:
    """A screenful of networks, by latency on the last link: those that were run first, then those on a front."""
    on_front = {p.candidates[i]["name"] for link in shown_links if (p := panel(candidates, link)) for i in p.front}

    def seconds(candidate: CandidateRecord) -> float:
        return sum(candidate["by_op_s"].get(shown_links[-1], {}).values())

    with_ops = [c for c in candidates if any(link in c["by_op_s"] for link in shown_links)]
    chosen = sorted(with_ops, key=lambda c: (not c["measured_s"], c["name"] not in on_front, seconds(c)))[:_BARS_SHOWN]
    return sorted(chosen, key=seconds)


def _modes(bars: Sequence[CandidateRecord], shown_links: Sequence[str]) -> tuple[str, ...]:
    """How the runs that are split by operation are known, with the links each holds for."""
    links_of: dict[str, list[str]] = {}
    for link in shown_links:
        for mode in sorted({bar["measured_s"][link]["mode"] for bar in bars if link in bar["measured_s"]}):
            links_of.setdefault(mode, []).append(link)
    return tuple(f"{mode} ({', '.join(on)}), by operation" for mode, on in links_of.items()) or (
        "predicted, by operation",
    )


def _dearest_ops(bars: Sequence[CandidateRecord], shown_links: Sequence[str]) -> list[str]:
    """The ops with the largest share of any link, so that what matters on one link is named on both."""
    shares: dict[str, float] = {}
    for link in shown_links:
        whole = sum(sum(bar["by_op_s"].get(link, {}).values()) for bar in bars) or 1.0
        for op in dict.fromkeys(op for bar in bars for op in bar["by_op_s"].get(link, {})):
            share = sum(bar["by_op_s"].get(link, {}).get(op, 0.0) for bar in bars) / whole
            shares[op] = max(share, shares.get(op, 0.0))
    return sorted(shares, key=lambda op: -shares[op])


def _shades(ops: Sequence[str]) -> dict[str, str]:
    shade = colours(ops[:_OPS_SHOWN])
    return shade | {_OTHER: FAINT} if len(ops) > _OPS_SHOWN else shade


def _stack(axes: Axes, bars: Sequence[CandidateRecord], link: str, ops: Sequence[str]) -> None:
    named = ops[:_OPS_SHOWN]
    ends = np.zeros(len(bars))
    for op, colour in _shades(ops).items():
        by_op = [bar["by_op_s"].get(link, {}) for bar in bars]
        widths = np.array(
            [s.get(op, 0.0) if op != _OTHER else sum(v for o, v in s.items() if o not in named) for s in by_op]
        )
        axes.barh(range(len(bars)), widths, left=ends, color=colour, edgecolor=PAPER, linewidth=0.4, height=0.72)
        ends += widths
    for row, end in enumerate(ends):
        axes.annotate(
            significant(end), (end, row), xytext=(3, 0), textcoords="offset points", va="center", fontsize=7.5
        )
    axes.set_xlim(0, 1.12 * float(ends.max()))
    axes.set_xlabel(f"secure latency on {link} (s)")
    bare(axes, grid="x")


@dataclass(frozen=True, slots=True)
class Pair:
    """An observed and a predicted number of seconds; `mode` says how the observed one came about."""

    group: str
    what: str
    network: str
    mode: str
    measured_s: float
    predicted_s: float

    @property
    def error(self) -> float:
        """Relative to the measured value."""
        return abs(self.predicted_s - self.measured_s) / self.measured_s


FIT, HELD_OUT, FOUND = "fit", "held out", "networks found"
MEASURED = "measured"


def pairs(calibration: CalibrationRecord | None, candidates: Sequence[CandidateRecord]) -> list[Pair]:
    """Every workload known both ways: of the fit, held out of it, and the candidates.

    Points of a calibration are measured on loopback and replayed on any other network.
    """
    known: list[Pair] = []
    if calibration is not None:
        for group, points in ((FIT, calibration["fit"]), (HELD_OUT, calibration["held_out"])):
            known += [
                Pair(group, p["what"], p["network"], _mode(p["network"]), p["measured_s"], p["predicted_s"])
                for p in points
            ]
    for candidate in candidates:
        for link, observed in candidate["measured_s"].items():
            if predicted := candidate["seconds"].get(link):
                seconds = (observed["median"], predicted["p50"])
                known.append(Pair(FOUND, candidate["name"], link, observed["mode"], *seconds))
    return [pair for pair in known if pair.measured_s > 0 and pair.predicted_s > 0]


def _mode(network: str) -> str:
    return MEASURED if network == "loopback" else "replayed"


def errors(known: Sequence[Pair], group: str) -> tuple[float, float, int] | None:
    """Median and 90th percentile of the relative error in `group`, and the number of pairs; None without any.

    Measured pairs only: replayed seconds share hops x delay + bytes / bandwidth with the prediction, so their agreement
    says little about it.
    """
    values = [pair.error for pair in known if pair.group == group and pair.mode == MEASURED]
    return (median(values), float(np.quantile(values, 0.9)), len(values)) if values else None


_PAIR_MARKS: dict[str, dict[str, Any]] = {
    FIT: {"marker": "o", "markerfacecolor": "none", "markeredgecolor": BLUE, "markersize": 5.5, "zorder": 3},
    HELD_OUT: {"marker": "^", "markerfacecolor": VERMILLION, "markeredgecolor": PAPER, "markersize": 6.5, "zorder": 5},
    FOUND: {"marker": "D", "markerfacecolor": GREEN, "markeredgecolor": PAPER, "markersize": 5.5, "zorder": 4},
}
_REPLAYED_MARK: dict[str, Any] = {"marker": "x", "markeredgecolor": FAINT, "markersize": 4.5, "alpha": 0.7, "zorder": 2}


def predicted_against_measured(
    calibration: CalibrationRecord | None, candidates: Sequence[CandidateRecord]
) -> Drawing | None:
    """Figure: log-log with y = x and a band of 15 %, relative error below; None where nothing is known both ways."""
    known = pairs(calibration, candidates)
    if not known:
        return None
    sources = [*([calibration] if calibration else []), *candidates]
    modes = mode_by_network((pair.mode, pair.network) for pair in known)
    figure = new_figure(5.8, footer(sources, phases="online", modes=modes), width_in=6.5)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2.6, 1))
    _draw_pairs(upper, lower, known)
    seconds = [value for pair in known for value in (pair.measured_s, pair.predicted_s)]
    ends = np.array([min(seconds) / 1.5, max(seconds) * 1.5])
    upper.fill_between(ends, ends * (1 - BAND), ends * (1 + BAND), color=MUTED, alpha=0.15, linewidth=0)
    upper.plot(ends, ends, color=INK, linewidth=0.9)
    upper.set(xscale="log", yscale="log", xlim=ends, ylim=ends, ylabel="predicted latency (s)")
    lower.axhspan(-100 * BAND, 100 * BAND, color=MUTED, alpha=0.15, linewidth=0, label="within 15 %")
    lower.axhline(0, color=INK, linewidth=0.9)
    lower.set(xlabel="measured or replayed latency (s)", ylabel="relative error (%)")
    reach = 1.15 * max(100 * BAND, *(100 * pair.error for pair in known))
    lower.set_ylim(-reach, reach)
    upper.legend(
        handles=[*upper.get_legend_handles_labels()[0], *lower.get_legend_handles_labels()[0]], loc="upper left"
    )
    return Drawing(
        "predicted_measured",
        "Predicted against measured",
        "Hollow circles: workloads that the cost model was fitted on. Filled triangles: shapes and networks that it "
        "never saw. Diamonds: the networks of the front figure, measured on loopback. Faint crosses: replayed on other "
        "links, where hops x delay + bytes / bandwidth stands on both sides; they count in no error. Line: predicted = "
        "measured. Errors are relative to the measured seconds.",
        figure,
        ("group", "what", "network", "mode", "measured_s", "predicted_s", "relative_error"),
        tuple((p.group, p.what, p.network, p.mode, p.measured_s, p.predicted_s, p.error) for p in known),
    )


def _draw_pairs(upper: Axes, lower: Axes, known: Sequence[Pair]) -> None:
    for group, mark in _PAIR_MARKS.items():
        if stats := errors(known, group):
            label = f"{group}: median error {100 * stats[0]:.1f} %, p90 {100 * stats[1]:.1f} %, n = {stats[2]}"
            chosen = [pair for pair in known if pair.group == group and pair.mode == MEASURED]
            _scatter(upper, lower, chosen, label, mark)
    if others := [pair for pair in known if pair.mode != MEASURED]:
        _scatter(upper, lower, others, "replayed: link term in common", _REPLAYED_MARK)


def _scatter(upper: Axes, lower: Axes, shown: Sequence[Pair], label: str, mark: dict[str, Any]) -> None:
    measured_s = [pair.measured_s for pair in shown]
    upper.plot(measured_s, [pair.predicted_s for pair in shown], linestyle="none", label=label, **mark)
    lower.plot(measured_s, [100 * (p.predicted_s / p.measured_s - 1) for p in shown], linestyle="none", **mark)
