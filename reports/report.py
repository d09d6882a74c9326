"""From the records of a run directory to a page with figures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reports.accuracy_figures import accuracy_against_latency, accuracy_against_macs
from reports.attention_figures import attention_relative
from reports.cost_figures import latency_by_op
from reports.findings import findings
from reports.page import page
from reports.prediction_figures import predictions
from reports.provenance import footer
from reports.records import WinnerMapRecord
from reports.records_read import Run, read_run
from reports.search_figures import search_course
from reports.style import Drawing, FigureFiles, house_style, write
from reports.winner_figures import winner_map


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
    directory, holds none of the records, or holds one that is not what `reports.records` says.
    """
    run = read_run(run_dir)
    if not any(
        (run.attention, run.candidates, run.calibration, run.search, run.cross_table, run.remeasured, run.winners)
    ):
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


def draw_winner_map(record: WinnerMapRecord, folder: Path) -> FigureFiles:
    """Writes the figure of a winner map as PNG, SVG and CSV into `folder`."""
    with house_style():
        drawing = winner_map(record)
        assert drawing is not None
        return write(drawing, folder)


def _drawings(run: Run) -> Iterable[Drawing | None]:
    yield accuracy_against_latency(run.candidates)
    yield attention_relative(run.attention)
    yield winner_map(run.winners)
    yield latency_by_op(run.candidates)
    yield from predictions(run.calibration, run.candidates, run.remeasured)
    yield search_course(run.search, _search_footer(run))
    yield accuracy_against_macs(run.candidates)


def _search_footer(run: Run) -> str:
    """Search records carry no scheme: theirs is that of the networks they led to, else of the cost model they used."""
    labelled: list[Any] = [*run.candidates] or ([run.calibration] if run.calibration else [*run.attention])
    return footer(labelled, phases="online (latency term)", modes=("plain training, predicted latency",))
