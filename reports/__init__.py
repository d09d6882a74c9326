"""Reports: fronts, figures and a page, from the records of a run directory alone."""

from __future__ import annotations

from reports.report import ReportSummary, build

__all__ = ["ReportSummary", "build"]
