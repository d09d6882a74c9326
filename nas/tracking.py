"""What a training reports, kept as rows and drawn as curves, without a double after any kill and resume.

Rows hold, and curves are drawn from them: `epochs.jsonl`, which the training loop writes, and `updates.jsonl`, kept
here.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import torch.distributed as dist

from bench.records import append, plain, read
from bench.run_directory import write_rows
from nas.curves import Curves, MLflow, TensorBoard

Record = dict[str, Any]

_POSITIONS = ("schema", "seed", "at_s", "epoch", "epochs", "batch", "batches", "updates", "remaining_s")


class Tracker:
    """The `on_epoch` and `on_update` of a training in `folder`: rows there, TensorBoard in `folder`/tensorboard.

    MLflow as well where `mlflow_uri` or MLFLOW_TRACKING_URI names a server; `manifest`, a run directory's, tells it
    what was asked for. A report on updates is kept at most every `every_s`; one that tells of updates before the last
    row removes the rows from there on: they belong to work that a kill has undone. Under torchrun every process may
    have a tracker; only that of the first is told anything, and writes. Close it, or use it in a `with` block.
    """

    def __init__(
        self,
        folder: Path,
        *,
        manifest: Mapping[str, Any] | None = None,
        every_s: float = 10.0,
        mlflow_uri: str | None = None,
        on_epoch: Callable[[Record], None] | None = None,
        on_update: Callable[[Record], None] | None = None,
    ) -> None:
        self._folder, self._manifest, self._every_s = folder, manifest or {}, every_s
        self._epochs, self._updates = folder / "epochs.jsonl", folder / "updates.jsonl"
        self._uri = mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI")
        self._next_epoch, self._next_update = on_epoch, on_update
        self._curves: list[Curves] = []
        self._epochs_drawn = 0
        self._last_update = -1
        self._kept_s = -math.inf

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(finished=kind is None)

    def on_epoch(self, record: Record) -> None:
        """Draws the record, and keeps it where the loop has not; then tells the tracker's own `on_epoch`."""
        if not any(row["epoch"] == record["epoch"] for row in _rows(self._epochs)):
            append(self._epochs, record)
        self._open()
        self._draw_epochs()
        if self._next_epoch:
            self._next_epoch(record)

    def on_update(self, report: Record) -> None:
        """Keeps and draws a report if it is time for one; then tells the tracker's own `on_update`, every time."""
        now_s = time.monotonic()
        if now_s - self._kept_s >= self._every_s:
            self._kept_s = now_s
            self._open()
            self._rewind(report["updates"])
            row = {"record": "update", "at_s": round(time.time(), 3), **_finite(report)}
            append(self._updates, row)
            self._draw_update(row)
            self._flush()
        if self._next_update:
            self._next_update(report)

    def close(self, finished: bool = True) -> None:
        """Draws what the loop has kept without saying so, as it does for an epoch that ended with a kill."""
        elsewhere = dist.is_available() and dist.is_initialized() and dist.get_rank() > 0
        if not elsewhere and (self._curves or self._epochs.exists()):
            self._open()
            self._draw_epochs()
        for curves in self._curves:
            curves.close(finished)
        self._curves = []

    def _open(self) -> None:
        if self._curves:
            return
        self._curves = [TensorBoard(self._folder / "tensorboard")]
        if self._uri:
            self._curves.append(MLflow(self._folder, self._uri, self._manifest))
        self._redraw()

    def _redraw(self) -> None:
        """Draws all rows, from the first on."""
        for curves in self._curves:
            curves.restart()
        self._epochs_drawn, self._last_update = 0, -1
        for row in _rows(self._updates):
            self._draw_update(row)
        self._draw_epochs()

    def _rewind(self, updates: int) -> None:
        """Removes the rows from `updates` on."""
        if updates <= self._last_update:
            write_rows(self._updates, [row for row in _rows(self._updates) if row["updates"] < updates])
            self._redraw()

    def _draw_update(self, row: Record) -> None:
        numbers = {f"update/{name}": value for name, value in _numbers(row).items()}
        for curves in self._curves:
            curves.draw(numbers, row["updates"], row["at_s"])
        self._last_update = row["updates"]

    def _draw_epochs(self) -> None:
        rows = _rows(self._epochs)
        ends_s = {row["epoch"]: row["at_s"] for row in _rows(self._updates)}
        for row in rows[self._epochs_drawn :]:
            for curves in self._curves:
                curves.draw(_numbers(row), row["epoch"], ends_s.get(row["epoch"]))
        self._epochs_drawn = len(rows)
        self._flush()

    def _flush(self) -> None:
        for curves in self._curves:
            curves.flush()


def _rows(path: Path) -> list[Record]:
    return read(path) if path.exists() else []


def _finite(report: Mapping[str, Any]) -> Record:
    """The report with None for what is not finite, such as a gradient that overflowed fp16: no reason to end a run."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else plain(value, name)
        for name, value in report.items()
    }


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """What can be drawn: numbers that do not merely say where in the training they were made."""
    return {
        name: value
        for name, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name not in _POSITIONS
    }
