"""How well seconds are predicted: the cost model and every baseline against what was measured."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from reports.provenance import footer, mode_by_network
from reports.records import CalibrationRecord, CandidateRecord, RemeasuredRecord, ScoresRecord
from reports.style import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PAPER,
    PURPLE,
    SKY,
    VERMILLION,
    YELLOW,
    Drawing,
    new_figure,
)

BAND = 0.1
_NARROW = 50  # axes from a value to less than so many times it have labels between the powers of ten
MODEL = "cost model"
REPLAY, REPLAYS = "replay", "replays"  # a group that the cost model does not predict: replay of loopback runs does
FOUND, FRONT = "networks found", "front of a search"
_GROUPS = {
    "operations": (BLUE, "o"),
    "layers": (ORANGE, "s"),
    "networks": (VERMILLION, "^"),
    "links": (PURPLE, "v"),
    REPLAYS: (YELLOW, "X"),
    FOUND: (GREEN, "D"),
    FRONT: (SKY, "P"),
}
_OTHER_GROUP = (MUTED, "X")
# What is behind each number that baselines give, as far as its name does not say it.
_MEANINGS = {
    "FLOPs": "a constant x multiply-accumulates",
    "ReLU count": "a constant x elements that are compared",
    "bytes only": "a constant x bytes sent",
    "rounds only": "a constant x rounds",
    "rounds x RTT": "rounds x round-trip time; says nothing on loopback",
    "sum over heads": "the cost model's own seconds of every head alone, added up",
}


@dataclass(frozen=True, slots=True)
class Pair:
    """Observed and predicted seconds; `mode` says how the observed ones came about, `low_s` to `high_s` is 90 %."""

    group: str
    what: str
    network: str
    mode: str
    measured_s: float
    predicted_s: float
    low_s: float | None = None
    high_s: float | None = None

    @property
    def error(self) -> float:
        """Relative to the measured value."""
        return abs(self.predicted_s - self.measured_s) / self.measured_s

    @property
    def counts(self) -> bool:
        """Whether it says something of the model: replayed seconds share hops x delay + bytes / bandwidth with it."""
        return self.mode != "replayed"


def evaluated(calibration: CalibrationRecord | None, baseline: str | None = None) -> list[Pair]:
    """The points of an evaluation, as the cost model or a `baseline` predicts them; those it says nothing of left out.

    Points without positive seconds have no place on a logarithmic axis and are left out too.
    """
    known = []
    for group, evaluation in (calibration["evaluation"] if calibration else {}).items():
        for p in evaluation["points"]:
            said = p["predicted_s"] if baseline is None else p["baselines"].get(baseline)
            interval = (p["p05_s"], p["p95_s"]) if baseline is None else (None, None)
            if said is not None and said > 0 and p["measured_s"] > 0:
                what = f"{p['what']}, {p['shape']}"
                known.append(Pair(group, what, p["network"], p["mode"], p["measured_s"], said, *interval))
    return known


def of_networks(candidates: Sequence[CandidateRecord], remeasured: Sequence[RemeasuredRecord]) -> list[Pair]:
    """Networks of the run that are known both ways: those it holds as candidates, and the front of its search."""
    known = []
    for candidate in candidates:
        for link, observed in candidate["measured_s"].items():
            if said := candidate["seconds"].get(link):
                seconds = (observed["median"], said["p50"], said["p05"], said["p95"])
                known.append(Pair(FOUND, candidate["name"], link, observed["mode"], *seconds))
    for record in remeasured:
        if record["predicted_s"] is not None:
            told = record["predicted_s"]
            seconds = (record["measured_s"]["median"], told["p50"], told["p05"], told["p95"])
            known.append(Pair(FRONT, record["name"], record["network"], record["mode"], *seconds))
    return [pair for pair in known if pair.measured_s > 0 and pair.predicted_s > 0]


def errors(known: Sequence[Pair], group: str) -> tuple[float, float, int] | None:
    """Median and 90th percentile of the relative error in `group`, over pairs that count, and their number."""
    values = [pair.error for pair in known if pair.group == group and pair.counts]
    return (median(values), float(np.quantile(values, 0.9)), len(values)) if values else None


def baseline_names(calibration: CalibrationRecord | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Baselines that say something of an evaluated workload, and those that say nothing of any."""
    names = dict.fromkeys(
        name for e in (calibration["evaluation"] if calibration else {}).values() for name in e["baselines"]
    )
    return (
        tuple(name for name in names if evaluated(calibration, name)),
        tuple(name for name in names if not evaluated(calibration, name)),
    )


def predictions(
    calibration: CalibrationRecord | None,
    candidates: Sequence[CandidateRecord],
    remeasured: Sequence[RemeasuredRecord],
) -> Iterator[Drawing]:
    """Figures: one of the cost model, one of each baseline that says something; none where nothing is known."""
    networks = of_networks(candidates, remeasured)
    if not (known := [*evaluated(calibration), *networks]):
        return
    sources = [*([calibration] if calibration else []), *candidates, *remeasured]
    speaking, silent = baseline_names(calibration)
    yield _of_model(known, calibration, sources, silent)
    for name in speaking:
        yield _of_baseline(name, evaluated(calibration, name), calibration, sources)


def _of_model(
    known: Sequence[Pair],
    calibration: CalibrationRecord | None,
    sources: Sequence[Mapping[str, Any]],
    silent: Sequence[str],
) -> Drawing:
    figure = new_figure(6.0, _label(known, sources), width_in=6.5)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2.6, 1))
    ends = _draw(upper, known)
    upper.set_ylabel("predicted latency (s)")
    lower.axhspan(-100 * BAND, 100 * BAND, color=MUTED, alpha=0.15, linewidth=0)
    lower.axhline(0, color=INK, linewidth=0.9)
    reach = 1.15 * max(200 * BAND, *(100 * pair.error for pair in known))
    lower.set(xlabel="measured latency (s)", ylabel="relative error (%)", ylim=(-reach, reach), xlim=ends)
    _scatter(lower, known, lambda pair, seconds: 100 * (seconds / pair.measured_s - 1))
    scores = {group: e["scores"] for group, e in (calibration["evaluation"] if calibration else {}).items()}
    upper.legend(handles=_legend(known, scores, MODEL), loc="upper left", fontsize=7.5)
    nothing = f" Baselines that say nothing of these workloads: {', '.join(silent)}." if silent else ""
    return Drawing(
        "predicted_measured",
        "Predicted against measured",
        "Workloads that the cost model was not fitted on, all measured after it was frozen. Bars: the 90 % interval of "
        "the prediction. Replays: runs on loopback, replayed on a link that was measured too. "
        "Line: predicted = measured; shaded: 10 % either way. Faint crosses: networks replayed on a "
        "link, where hops x delay + bytes / bandwidth stands on both sides; they count in no error. Errors are "
        f"relative to the measured seconds.{nothing}",
        figure,
        ("group", "what", "network", "mode", "measured_s", "predicted_s", "p05_s", "p95_s", "relative_error"),
        tuple(
            (p.group, p.what, p.network, p.mode, p.measured_s, p.predicted_s, p.low_s, p.high_s, p.error) for p in known
        ),
    )


def _of_baseline(
    name: str, known: Sequence[Pair], calibration: CalibrationRecord | None, sources: Sequence[Mapping[str, Any]]
) -> Drawing:
    figure = new_figure(4.6, _label(known, sources), width_in=6.5)
    axes = figure.subplots()
    _draw(axes, known)
    axes.set(xlabel="measured latency (s)", ylabel=f"latency by {name} (s)")
    evaluation = calibration["evaluation"] if calibration else {}
    scores = {group: e["baselines"][name] for group, e in evaluation.items() if name in e["baselines"]}
    axes.legend(handles=_legend(known, scores, name), loc="upper left", fontsize=7.5)
    silent = [group for group, said in scores.items() if said is None]
    nothing = f" It says nothing of: {', '.join(silent)}." if silent else ""
    return Drawing(
        f"predicted_measured_{_slug(name)}",
        f"Baseline: {name}",
        f"The same workloads by a simpler rule: {_MEANINGS.get(name, name)}. Constants are fitted to the same "
        f"measurements as the cost model's. Line: predicted = measured; shaded: 10 % either way.{nothing}",
        figure,
        ("group", "what", "network", "mode", "measured_s", "predicted_s", "relative_error"),
        tuple((p.group, p.what, p.network, p.mode, p.measured_s, p.predicted_s, p.error) for p in known),
    )


def _label(known: Sequence[Pair], sources: Sequence[Mapping[str, Any]]) -> str:
    return footer(sources, phases="online", modes=mode_by_network((pair.mode, pair.network) for pair in known))


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _draw(axes: Axes, known: Sequence[Pair]) -> tuple[float, float]:
    """Pairs on two logarithmic axes of the same length, with the identity and its band; returns the limits."""
    reached = [pair.measured_s for pair in known] + [pair.predicted_s for pair in known]
    reached += [bound for pair in known for bound in (pair.low_s, pair.high_s) if bound is not None and bound > 0]
    ends = (min(reached) / 1.4, max(reached) * 1.4)
    line = np.array(ends)
    axes.fill_between(line, line * (1 - BAND), line * (1 + BAND), color=MUTED, alpha=0.15, linewidth=0)
    axes.plot(line, line, color=INK, linewidth=0.9)
    _scatter(axes, known, lambda _, seconds: seconds)
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())
        if ends[1] < _NARROW * ends[0]:
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    return ends


def _scatter(axes: Axes, known: Sequence[Pair], scaled: Callable[[Pair, float], float]) -> None:
    """A mark for each pair at its `scaled` prediction, the interval behind it."""
    crossed = [pair for pair in known if _faint(pair)]
    x, y = [pair.measured_s for pair in crossed], [scaled(pair, pair.predicted_s) for pair in crossed]
    axes.plot(x, y, "x", color=FAINT, markersize=4.5, alpha=0.7, zorder=2)
    for group in _groups(known):
        shown = [pair for pair in known if pair.group == group and not _faint(pair)]
        colour, marker = _GROUPS.get(group, _OTHER_GROUP)
        x, y = [pair.measured_s for pair in shown], [scaled(pair, pair.predicted_s) for pair in shown]
        style: dict[str, Any] = {"markerfacecolor": colour, "markeredgecolor": PAPER, "markeredgewidth": 0.4}
        axes.plot(x, y, marker, markersize=3.5 if len(shown) > 60 else 5.5, alpha=0.85, zorder=4, **style)
        bars = [
            (pair.measured_s, scaled(pair, pair.low_s), scaled(pair, pair.high_s))
            for pair in shown
            if pair.low_s is not None and pair.high_s is not None
        ]
        if bars:
            at, low, high = zip(*bars, strict=True)
            axes.vlines(at, low, high, color=colour, linewidth=0.8, alpha=0.4, zorder=3)


def _faint(pair: Pair) -> bool:
    """Whether a pair is drawn as a cross that counts in no error."""
    return pair.group == FOUND and not pair.counts


def _groups(known: Sequence[Pair]) -> tuple[str, ...]:
    present = dict.fromkeys(pair.group for pair in known)
    return tuple(group for group in (*_GROUPS, *(g for g in present if g not in _GROUPS)) if group in present)


def _legend(known: Sequence[Pair], scores: Mapping[str, ScoresRecord | None], what: str) -> list[Line2D]:
    """A mark for each group with its scores: as recorded, or of the pairs that count."""
    handles = []
    for group in _groups(known):
        colour, marker = _GROUPS.get(group, _OTHER_GROUP)
        told = scores.get(group)
        if told is not None:
            middle, high, count = told["median_error"], told["p90_error"], told["points"]
        elif stats := errors(known, group):
            middle, high, count = stats
        else:
            continue
        label = f"{group}: median error {_percent(middle)}, p90 {_percent(high)}, n = {count}"
        handles.append(Line2D([], [], linestyle="none", marker=marker, color=colour, markersize=6, label=label))
    if any(map(_faint, known)):
        handles.append(Line2D([], [], linestyle="none", marker="x", color=FAINT, label="replayed: link term in common"))
    return handles


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share < 1 else f"{100 * share:.0f} %"
