"""One HTML page that needs nothing else: figures inline, style inline, no script."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from string import Template
from typing import Any

from reports.provenance import TFP_MEANING, footer, machine_label, mixture_note
from reports.records_read import Run
from reports.style import Drawing, FigureFiles, inline_svg
from reports.tables import attention_table, calibration_table, candidate_table, cross_table, remeasured_table

_GLOSSARY = {
    "kind": "an attention function, such as softmax or ReLU-softmax",
    "op": "one secure operation",
    "scheme": "protocol, parties, dealer, transport and precision",
    "round": "a message that a party waits for",
    "bytes": "payload that the busiest party sends",
    "latency": "seconds of the slowest party in the online phase, from shared input to shared output",
    "setup, offline, online": "fixed weights opened once; what a dealer sends; the rest",
    "measured": "run on this machine's loopback",
    "replayed": "a measured run with the delays and bandwidth of another link",
    "emulated-transport, emulated-link": "run on a link that the sockets, or a program between namespaces, make slow",
    "predicted": "by the cost model, without a run",
    "front": "networks that no other beats in latency and accuracy",
    "hypervolume": "area between the front and the reference point",
}

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
:root { --ink: #1b1f24; --muted: #57606a;
  --faint: #9aa2ab; --grid: #e3e6ea; --paper: #ffffff; --back: #f6f7f9; --link: #0060a0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8ebef; --muted: #a3acb8;
    --faint: #76808c; --grid: #343b45; --paper: #171b21; --back: #0f1216; --link: #6cb8f0; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 1.2rem 1rem 4rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .6rem 0 .2rem; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
a { color: var(--link); }
.lead, figcaption, .small { color: var(--muted); font-size: .9rem; }
.lead { margin-top: 0; overflow-wrap: anywhere; }
.card, figure { background: var(--paper); border: 1px solid var(--grid); border-radius: 8px; }
.card, figure { padding: .9rem 1rem; margin: .6rem 0; }
.findings { padding-left: 2.1rem; } .findings li { margin: .4rem 0; overflow-wrap: anywhere; }
.note { border-left: 4px solid #e69f00; }
.scroll { overflow-x: auto; }
figure svg { display: block; width: 100%; height: auto; margin: 0 auto; max-width: calc(var(--width) * 1.45px); }
@media (max-width: 640px) { figure svg { min-width: calc(var(--width) * 1px); } }
table { border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums; margin: .4rem 0; }
th, td { padding: .28rem .55rem; text-align: right; border-bottom: 1px solid var(--grid); white-space: nowrap; }
th { color: var(--muted); font-weight: 600; vertical-align: bottom; }
.t { text-align: left; }
dl { margin: 0; }
dt { font-weight: 600; display: inline; } dd { display: inline; margin: 0; } dl div { margin: .15rem 0; }
code { font-size: .85em; overflow-wrap: anywhere; }
</style>
</head>
<body>
<main>
<h1>$title</h1>
<p class="lead">$lead</p>
$findings
$notes
$figures
$tables
<h2>How it was measured</h2>
<div class="card">$method</div>
<h2>Words</h2>
<div class="card small"><dl>$glossary</dl></div>
</main>
</body>
</html>
""")


def page(
    run: Run,
    title: str,
    lines: Sequence[str],
    drawings: Sequence[Drawing],
    files: Sequence[FigureFiles],
    svgs: Mapping[str, str],
) -> str:
    """The page as text; `svgs` holds the SVG of each drawing by name."""
    figures = "".join(
        _figure(drawing, paths, svgs[drawing.name]) for drawing, paths in zip(drawings, files, strict=True)
    )
    return _PAGE.substitute(
        title=escape(title),
        lead=escape(_lead(run)),
        findings=_findings(lines),
        notes=_notes(run),
        figures=figures,
        tables=_tables(run),
        method=_method(run),
        glossary="".join(
            f"<div><dt>{escape(word)}</dt><dd>: {escape(meaning)}</dd></div>" for word, meaning in _GLOSSARY.items()
        ),
    )


def _lead(run: Run) -> str:
    records = _labelled(run)
    if not records:
        return "No record of this run carries a scheme or a machine."
    return footer(records, phases="online unless a column says otherwise", modes=("as marked",))


def _labelled(run: Run) -> list[Mapping[str, Any]]:
    single = [record for record in (run.calibration, run.winners) if record]
    return [*run.attention, *run.candidates, *run.remeasured, *single]


def _findings(lines: Sequence[str]) -> str:
    if not lines:
        return "<div class=card>No findings: the run holds no records that allow one.</div>"
    return f"<ol class='card findings'>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ol>"


def _notes(run: Run) -> str:
    notes = list(run.notes)
    if mixture := mixture_note(_labelled(run)):
        notes.append(mixture)
    if run.missing:
        notes.append(f"Not in this run, so not shown: {'; '.join(run.missing)}.")
    return f"<div class='card note'>{'<br>'.join(escape(note) for note in notes)}</div>" if notes else ""


def _figure(drawing: Drawing, files: FigureFiles, svg: str) -> str:
    picture = inline_svg(svg, drawing.name, escape(drawing.heading, quote=True))
    folder = files.png.parent.name
    links = " ".join(
        f'<a href="{folder}/{path.name}">{path.suffix[1:].upper()}</a>' for path in (files.png, files.svg, files.csv)
    )
    return (
        f'<section id="{drawing.name}"><h2>{escape(drawing.heading)}</h2><figure><div class=scroll>{picture}</div>'
        f"<figcaption>{escape(drawing.caption)} {links}</figcaption></figure></section>"
    )


def _tables(run: Run) -> str:
    sections = (
        (
            "Attention kinds",
            attention_table(run.attention),
            "One attention layer; 1 MB is a million bytes; traffic is that of the busiest party.",
        ),
        (
            "Networks",
            candidate_table(run.candidates),
            "A star marks the front of that link. Seconds are for one image, online.",
        ),
        ("Found for one network, run on another", cross_table(run), "Seconds of the networks that each search found."),
        (
            "Front of the search, measured",
            remeasured_table(run.remeasured),
            "Medians of interleaved runs on real parties, fresh weights. A budget is met by measured seconds only.",
        ),
        (
            "Cost model and baselines",
            calibration_table(run),
            "Workloads that the model never saw, measured after it was frozen. Errors are relative to measured "
            "seconds; repeatability is the relative difference between medians of two halves of the same runs, drift "
            "by how much the machine was slower in one third of them than in another.",
        ),
    )
    return "".join(
        f"<h2>{escape(heading)}</h2><div class=card>{table}<p class=small>{escape(note)}</p></div>"
        for heading, table, note in sections
        if table
    )


def _method(run: Run) -> str:
    manifest = dict(run.manifest)
    machines = list(dict.fromkeys(machine_label(record["machine"]) for record in _labelled(run)))
    rows = {"machine": " / ".join(machines) or None}
    rows |= {key: _plain(manifest.get(key)) for key in ("commit", "versions", "arguments", "seeds")}
    text = "".join(
        f"<div><dt>{key}</dt><dd>: <code>{escape(value)}</code></dd></div>" for key, value in rows.items() if value
    )
    dealt = any(record["scheme"]["dealer"] == "tfp" for record in _labelled(run))
    return f"<dl>{text}</dl>" + (f"<p>{escape(TFP_MEANING)}</p>" if dealt else "")


def _plain(value: object) -> str | None:
    if value is None or value == {}:
        return None
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    return value if isinstance(value, str) else json.dumps(value)
