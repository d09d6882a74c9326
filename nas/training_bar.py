"""A line on a console that shows where a training is: epochs, loss, images per second and the time left."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

Record = dict[str, Any]


class TrainingBar:
    """`on_epoch` and `on_update` of a training as a progress bar, inside a `with` block; nothing where no terminal is.

    Between reports the bar stands still: images per second and the time left are the loop's, not the console's.
    """

    def __init__(self, console: Console, description: str = "training") -> None:
        columns = [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}")]
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._progress.add_task(description, total=None, figures="")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def on_update(self, report: Record) -> None:
        """Shows a report of the training loop (see `nas.pace.Pace`)."""
        self._progress.start()  # not before: under torchrun only the first process hears reports
        done = report["epoch"] * report["batches"] + report["batch"]
        figures = (
            f"epoch {report['epoch'] + 1} of {report['epochs']}",
            f"loss {report['loss']:.3f}",
            f"{report['images_per_s']:,.0f} images/s",
            f"{timedelta(seconds=round(report['remaining_s']))} left",
        )
        total = report["epochs"] * report["batches"]
        self._progress.update(self._task, completed=done, total=total, figures=", ".join(figures))

    def on_epoch(self, record: Record) -> None:
        """Prints the accuracy of an epoch above the bar, where one was measured."""
        if record.get("accuracy") is not None and not self._progress.disable:
            self._progress.console.print(
                f"epoch {record['epoch'] + 1}: accuracy {record['accuracy']:.4f}", highlight=False
            )
