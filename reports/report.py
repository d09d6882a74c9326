"""From the records of a run directory to a page with figures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reports.accuracy_figures import accuracy_against_latency, accuracy_against_macs
from reports.attention_figures import attention_relative
from reports.cost_figures import latency_by_op, predicted_against_measured
from reports.findings import findings
from reports.page import page
from reports.provenance import footer
from reports.records_read import Run, read_run
from reports.search_figures import search_course
from reports.style import Drawing, FigureFiles, house_style, write


@dataclass(frozen=True, slots=True)
class ReportSummary:
    """Where the report is, what it found (at most five lines) and which records were absent."""

    page: Path
    figures: tuple[FigureFiles, ...]
    findings: tuple[str, ...]
    missing: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values for the last line of a command."""
        figures = {f.name: {"png": str(f.png), "svg": str(f.svg), "csv": str(f.csv)} for f in self.figures}
        return {
            "page": str(self.page),
            "figures": figures,
            "findings": list(self.findings),
            "missing": list(self.missing),
        }


def build(run_dir: Path, out: Path | None = None) -> ReportSummary:
    """Writes `index.html` and `figures/` into `out` (`run_dir/report` by default) from the records of `run_dir`.

    A section whose record is absent is left out and named on the page. Raises ValueError where `run_dir` is not a
    directory, holds none of the records, or holds one that is not what `reports.records_read` says.
    """
    run = read_run(run_dir)
    if not (run.attention or run.candidates or run.calibration or run.search or run.cross_table):
        raise ValueError(f"{run_dir} holds no records to report: missing {'; '.join(run.missing)}")
    out = run_dir / "report" if out is None else out
    out.mkdir(parents=True, exist_ok=True)
    with house_style():
        drawings = tuple(drawing for drawing in _drawings(run) if drawing is not None)
        files = tuple(write(drawing, out / "figures") for drawing in drawings)
    lines = findings(run)
    svgs = {drawn.name: drawn.svg.read_text("utf-8") for drawn in files}
    target = out / "index.html"
    target.write_text(page(run, f"mpc-pareto: {run_dir.resolve().name}", lines, drawings, files, svgs), "utf-8")
    return ReportSummary(target, files, lines, run.missing)


def _drawings(run: Run) -> Iterable[Drawing | None]:
    yield accuracy_against_latency(run.candidates)
    yield attention_relative(run.attention)
    yield predicted_against_measured(run.calibration, run.candidates)
    yield latency_by_op(run.candidates)
    yield search_course(run.search, _search_footer(run))
    yield accuracy_against_macs(run.candidates)


def _search_footer(run: Run) -> str:
    """Search records carry no scheme: theirs is that of the networks they led to, else of the cost model they used."""
    labelled: list[Any] = [*run.candidates] or ([run.calibration] if run.calibration else [*run.attention])
    return footer(labelled, phases="online (latency term)", modes=("plain training, predicted latency",))
