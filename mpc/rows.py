"""The whole table: importing this module registers every row."""

from __future__ import annotations

from mpc import rows_functions, rows_linear, structure
from mpc.tuned import rows as tuned_rows

__all__ = ["rows_functions", "rows_linear", "structure", "tuned_rows"]
