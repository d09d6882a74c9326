"""The whole table: importing this module registers every row."""

from __future__ import annotations

from mpc import rows_functions, rows_linear, structure

__all__ = ["rows_functions", "rows_linear", "structure"]
