"""The tables of the page, as HTML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape

from reports.accuracy_figures import panel
from reports.attention_figures import REFERENCE_KIND, compare, shape_label
from reports.candidates import links, reading
from reports.prediction_figures import MODEL, REPLAY, REPLAYS
from reports.records import AttentionRecord, CandidateRecord, RemeasuredRecord, ScoresRecord, SpreadRecord
from reports.records_read import Run
from reports.style import significant

_ABSENT = "\N{EN DASH}"
_STAR = " \N{BLACK STAR}"


def attention_table(records: Sequence[AttentionRecord]) -> str:
    """Every attention record: seconds with spread, traffic by phase, error, beside its ratio to softmax."""
    comparison = compare(records)
    if comparison is None:
        return ""
    several = len({(str(r["shape"]), str(r["scheme"])) for r in records}) > 1
    rows = []
    for r in sorted(
        records, key=lambda r: (str(r["shape"]), str(r["scheme"]), r["network"], -r["seconds"]["online"]["median"])
    ):
        mine = comparison.records.get((r["kind"], r["network"])) is r
        ratio = comparison.seconds(r["kind"], r["network"]) if mine else None
        where = f"{shape_label(r['shape'])}; {r['scheme']['name']}, {r['scheme']['functions']}"
        rows.append(
            (
                *((where,) if several else ()),
                r["network"],
                r["mode"],
                r["kind"],
                _spread(r["seconds"]["online"]),
                _ratio(ratio),
                _number(r["seconds_per_image"]),
                r["online"]["rounds"],
                _megabytes(r["online"]["bytes"]),
                _megabytes(r["offline"]["bytes"]),
                _megabytes(r["setup"]["bytes"]),
                _megabytes(r["peak_bytes"]),
                _number(r["max_abs_error"], 2),
            )
        )
    head = ["network", "mode", "kind", "online s, median (iqr, n)", f"/ {REFERENCE_KIND}", "s per image", "rounds"]
    head += ["online MB", "offline MB", "setup MB", "peak MB", "max error"]
    return _table([*(["layer and scheme"] if several else []), *head], rows, text_columns=4 if several else 3)


def candidate_table(candidates: Sequence[CandidateRecord]) -> str:
    """Every candidate: accuracy plain and secure, seconds on each link, traffic; the fronts are marked."""
    shown_links = links(candidates)
    on_front = {
        link: {p.candidates[index]["name"] for index in p.front}
        for link in shown_links
        if (p := panel(candidates, link))
    }
    rows = []
    for c in sorted(candidates, key=lambda c: (-c["accuracy"], c["name"])):
        rows.append(
            (
                c["name"],
                c["found_by"],
                _kinds(c["kinds"]),
                _percent(c["accuracy"]),
                *(_on_link(c, link, on_front.get(link, set())) for link in shown_links),
                _secure(c),
                _percent(c["agreement"]),
                _number(c["max_logit_difference"], 2),
                _number(c["min_plain_margin"], 2),
                c["online"]["rounds"],
                _megabytes(c["online"]["bytes"]),
                f"{c['macs'] / 1e6:.1f}",
                f"{c['params']:,}",
                _ABSENT if c["ratio"] is None else f"{c['ratio']:g}",
                c["seed"],
            )
        )
    head = ["name", "found by", "heads by kind", "accuracy", *(f"s on {link}" for link in shown_links)]
    head += ["secure accuracy (images)", "agreement", "max logit diff.", "min margin", "rounds", "online MB"]
    head += ["M MACs", "params", "ratio", "seed"]
    return _table(head, rows, text_columns=3)


def cross_table(run: Run) -> str:
    """Found for one network, run on each; the verdict below."""
    if run.cross_table is None:
        return ""
    rows = run.cross_table["rows"]
    networks = tuple(dict.fromkeys(network for row in rows for network in row["seconds"]))
    body = [
        (
            row["found_for"],
            _ABSENT if row["ratio"] is None else f"{row['ratio']:g}",
            row["seed"],
            *(_number(row["seconds"].get(network)) for network in networks),
            " ".join(map(str, row["relu_softmax_heads"])),
        )
        for row in rows
    ]
    head = ("found for", "ratio", "seed", *(f"s on {network}" for network in networks), "ReLU-softmax heads by layer")
    return _table(head, body, text_columns=1) + f"<p>{escape(run.cross_table['verdict'])}</p>"


def calibration_table(run: Run) -> str:
    """Scores on what the cost model never saw, by group, the model beside each baseline; then what was fitted."""
    if run.calibration is None:
        return ""
    rows: list[tuple[object, ...]] = []
    for group, evaluation in run.calibration["evaluation"].items():
        own = evaluation["scores"]
        coverage = (_percent(own["coverage_90"]), _percent(own["coverage_50"]))
        repeats = (
            _percent(own["repeatability_median"]),
            _percent(own["repeatability_p90"]),
            _percent(own.get("drift")),
        )
        rows.append((group, REPLAY if group == REPLAYS else MODEL, *_scores(own), *coverage, *repeats))
        for name, said in evaluation["baselines"].items():
            told = (_ABSENT,) * 6 if said is None else _scores(said)
            rows.append((group, name, *told, *(_ABSENT,) * 5))
    head = ["group", "predicted by", "n", "median error", "90th percentile", "within 10 %", "Spearman", "Kendall"]
    head += ["inside 90 %", "inside 50 %", "repeatability", "its 90th percentile", "drift"]
    scores = _table(head, rows, text_columns=2) if rows else "<p>The cost model was not tested.</p>"
    return scores + _fitted(run)


def _scores(scores: ScoresRecord) -> tuple[object, ...]:
    shares = (_percent(scores[key]) for key in ("median_error", "p90_error", "within_10"))
    return (scores["points"], *shares, _ratio(scores["spearman"], 3), _ratio(scores["kendall"], 3))


def _fitted(run: Run) -> str:
    assert run.calibration is not None
    units = dict.fromkeys(name for seconds in run.calibration["operations"].values() for name in seconds)
    inside = run.calibration["in_networks"]
    rows = [
        (
            key or "any other",
            *(_seconds_of(seconds.get(name)) for name in units),
            _seconds_of(inside.get(key, inside[""])["more_s"]),
            f"{inside.get(key, inside[''])['times']:.2f}",
            _seconds_of(inside.get(key, inside[""]).get("byte_s")),
        )
        for key, seconds in sorted(run.calibration["operations"].items())
    ]
    constants = ", ".join(f"{key} {_ratio(run.calibration[key], 4)}" for key in ("wake_s", "link_spread", "threads"))
    headings = ["operation", *(f"s of {name}" for name in units), "s more in a network", "times in a network"]
    headings += ["s of a byte in a network"]
    table = _table(headings, rows, text_columns=1)
    return f"<details><summary>What was fitted ({escape(constants)})</summary>{table}</details>"


def _seconds_of(value: float | None) -> str:
    return f"{value:.3g}" if value else _ABSENT


def remeasured_table(records: Sequence[RemeasuredRecord]) -> str:
    """A search's front, measured beside predicted, and what was tried for a budget."""
    if not records:
        return ""
    rows = [
        (
            r["name"],
            _kinds(r["kinds"]),
            r["network"],
            r["mode"],
            _spread(r["measured_s"]),
            _predicted(r),
            _ratio(r["ratio"]),
            {None: _ABSENT, True: "yes", False: "no"}[r["within_90"]],
            f"{r['budget']['asked_s']:g} s: {'met' if r['budget']['met'] else 'not met'}" if "budget" in r else _ABSENT,
            r["online"]["rounds"],
            _megabytes(r["online"]["bytes"]),
        )
        for r in records
    ]
    head = ["name", "heads by kind", "network", "mode", "measured s, median (iqr, n)", "predicted s (5 % to 95 %)"]
    head += ["predicted / measured", "in the interval", "budget", "rounds", "online MB"]
    return _table(head, rows, text_columns=4)


def _predicted(record: RemeasuredRecord) -> str:
    seconds = record["predicted_s"]
    if seconds is None:
        return _ABSENT
    return f"{significant(seconds['p50'])} ({significant(seconds['p05'])} to {significant(seconds['p95'])})"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]], *, text_columns: int) -> str:
    """A table whose first `text_columns` columns hold words and whose others hold numbers."""
    text = [index < text_columns for index in range(len(head))]
    cells = "".join(f"<th{' class=t' if t else ''}>{escape(name)}</th>" for name, t in zip(head, text, strict=True))
    body = "".join(
        "<tr>"
        + "".join(f"<td{' class=t' if t else ''}>{escape(str(cell))}</td>" for cell, t in zip(row, text, strict=True))
        + "</tr>"
        for row in rows
    )
    return f"<div class=scroll><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>"


def _on_link(candidate: CandidateRecord, link: str, front: set[str]) -> str:
    value = reading(candidate, link)
    if value is None:
        return _ABSENT
    star = _STAR if candidate["name"] in front else ""
    return f"{significant(value.cost)} {value.mode}{star}"


def _secure(candidate: CandidateRecord) -> str:
    accuracy = candidate["secure_accuracy"]
    return _ABSENT if accuracy is None else f"{_percent(accuracy)} ({candidate['secure_images']})"


def _kinds(kinds: Sequence[Sequence[str]]) -> str:
    counts = Counter(kind for layer in kinds for kind in layer)
    return ", ".join(f"{count} {kind}" for kind, count in counts.most_common())


def _spread(spread: SpreadRecord) -> str:
    return f"{significant(spread['median'])} ({significant(spread['iqr'], 2)}, {spread['n']})"


def _percent(value: float | None) -> str:
    return _ABSENT if value is None else f"{100 * value:.1f} %"


def _number(value: float | None, digits: int = 3) -> str:
    return _ABSENT if value is None else significant(value, digits)


def _ratio(value: float | None, digits: int = 2) -> str:
    return _ABSENT if value is None else f"{value:.{digits}f}"


def _megabytes(value: int | None) -> str:
    return _ABSENT if value is None else f"{value / 1e6:.2f}"
