"""Where secure seconds go."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from reports.accuracy_figures import panel
from reports.candidates import links
from reports.provenance import footer
from reports.records import CandidateRecord
from reports.style import FAINT, PAPER, Drawing, bare, colours, new_figure, significant

_OPS_SHOWN = 7
_BARS_SHOWN = 14
_OTHER = "other ops"


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
