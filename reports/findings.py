"""At most six lines that say what a run found, each computed from its records."""

from __future__ import annotations

from statistics import median

from reports.accuracy_figures import Panel, panel
from reports.attention_figures import Comparison, compare
from reports.candidates import links
from reports.prediction_figures import FOUND, FRONT, REPLAYS, errors, of_networks
from reports.records_read import Run
from reports.search_figures import last_epochs, short_objective
from reports.style import significant


def findings(run: Run) -> tuple[str, ...]:
    """Attention kinds, front, search, budget, prediction, secure accuracy: a line each, where its records exist."""
    lines = (_attention(run), _fronts(run), _search(run), _budget(run), _prediction(run), _secure_accuracy(run))
    return tuple(line for line in lines if line)


def _attention(run: Run) -> str | None:
    comparison = compare(run.attention)
    if comparison is None or len(comparison.kinds) < 2:
        return None
    network = comparison.networks[-1]
    ratios = {
        kind: ratio
        for kind in comparison.kinds
        if kind != comparison.reference and (ratio := comparison.seconds(kind, network)) is not None
    }
    if not ratios:
        return None
    fastest = min(ratios, key=lambda kind: ratios[kind])
    return (
        f"Fastest attention kind on {network}: {fastest}, {ratios[fastest]:.2g} x the seconds of {comparison.reference}"
        f"{_traffic(comparison, fastest)}; {comparison.shape}."
    )


def _traffic(comparison: Comparison, kind: str) -> str:
    own, reference = comparison.record(kind), comparison.record(comparison.reference)
    if own is None or reference is None:
        return ""
    rounds = f"{own['online']['rounds']} rounds instead of {reference['online']['rounds']}"
    return f" ({rounds}, {own['online']['bytes'] / 1e6:.2f} MB instead of {reference['online']['bytes'] / 1e6:.2f} MB)"


def _fronts(run: Run) -> str | None:
    parts = [_front(link, shown) for link in links(run.candidates) if (shown := panel(run.candidates, link))]
    return f"Front: {'; '.join(reversed(parts))}." if parts else None


def _front(link: str, shown: Panel) -> str:
    first, last = shown.points[shown.front[0]], shown.points[shown.front[-1]]
    modes = sorted({shown.readings[index].mode for index in shown.front})
    span = f"{100 * first.accuracy:.1f} % at {significant(first.cost)} s"
    if last != first:
        span += f" to {100 * last.accuracy:.1f} % at {significant(last.cost)} s"
    corner = f"({shown.reference.cost:g} s, {100 * shown.reference.accuracy:.0f} %)"
    return (
        f"on {link} {len(shown.front)} of {len(shown.points)} networks, {span} ({', '.join(modes)}), "
        f"hypervolume {100 * shown.share:.1f} % of the box from {corner}"
    )


def _search(run: Run) -> str | None:
    if run.cross_table is not None:
        return run.cross_table["verdict"].strip().rstrip(".") + "."
    last = last_epochs(run.search)
    norms: dict[str, list[float]] = {}
    for (objective, _), record in last.items():
        if record["latency_gradient_norm"] is not None:
            norms.setdefault(objective, []).append(record["latency_gradient_norm"])
    if not norms:
        return None
    parts = [f"{short_objective(objective)} {median(values):.2g}" for objective, values in sorted(norms.items())]
    return f"Latency gradient of the search after the last epoch, median over seeds: {', '.join(parts)}."


def _budget(run: Run) -> str | None:
    tried = [record for record in run.remeasured if "budget" in record]
    if not tried:
        return None
    asked, network = tried[0]["budget"]["asked_s"], tried[0]["network"]
    met = [record for record in tried if record["budget"]["met"]]
    chosen = met[0] if met else min(tried, key=lambda record: record["measured_s"]["median"])
    seconds = f"{significant(chosen['measured_s']['median'])} s ({chosen['mode']})"
    verdict = f"met, by {seconds}" if met else f"not met: the fastest tried takes {seconds}"
    return f"Budget of {asked:g} s on {network}: {verdict}; {len(tried)} network{'s' * (len(tried) > 1)} tried."


def _prediction(run: Run) -> str | None:
    parts = []
    for group, evaluation in (run.calibration["evaluation"] if run.calibration else {}).items():
        if group == REPLAYS:  # no prediction of the cost model
            continue
        scores = evaluation["scores"]
        parts.append(
            f"{group} never seen: median error {100 * scores['median_error']:.1f} %, "
            f"{100 * scores['within_10']:.0f} % within 10 % (n = {scores['points']})"
        )
    known = of_networks(run.candidates, run.remeasured)
    for group, what in ((FOUND, "networks shown here"), (FRONT, "front of the search")):
        if stats := errors(known, group):
            parts.append(f"{what}, measured: median error {100 * stats[0]:.1f} % (n = {stats[2]})")
    return f"Predicted latency of {'; '.join(parts)}." if parts else None


def _secure_accuracy(run: Run) -> str | None:
    secure = [c for c in run.candidates if c["agreement"] is not None]
    if not secure:
        return None
    images = {c["secure_images"] for c in secure}
    lowest = min(c["agreement"] for c in secure if c["agreement"] is not None)
    networks = f"{len(secure)} network{'s' if len(secure) > 1 else ''}"
    share = "all images" if lowest == 1 else f"at least {100 * lowest:.1f} % of images"
    line = f"Secure and plain top-1 agree on {share} ({networks}, "
    line += f"{' to '.join(map(str, sorted({min(images), max(images)})))} images each)"
    differences = [c["max_logit_difference"] for c in secure if c["max_logit_difference"] is not None]
    margins = [c["min_plain_margin"] for c in secure if c["min_plain_margin"] is not None]
    if differences and margins:
        line += f"; largest logit difference {max(differences):.2g}, smallest plain margin {min(margins):.2g}"
    return line + "."
