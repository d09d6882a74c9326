"""How fast a training goes and how long it still takes, for whoever watches."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from nas.engine import Engine

OnUpdate = Callable[[dict[str, Any]], None]

_EVERY_S = 1.0


class Pace:
    """Tells `on_update`, at most once a second, where a run of `epochs` epochs is.

    A report holds epoch, epochs, batch (done in the epoch), batches, updates (done in the run), learning_rate, loss
    (mean of the epoch so far, on this process), images_per_s (of all processes, since the report before) and
    remaining_s (of training; validations not counted).
    """

    def __init__(self, on_update: OnUpdate, engine: Engine, epochs: int, processes: int) -> None:
        self._on_update, self._engine, self._epochs, self._processes = on_update, engine, epochs, processes
        self._last_s, self._last_images = time.monotonic(), 0
        self._start_s, self._start_updates = self._last_s, engine.updates_done

    def after_update(self, epoch: int, batches_done: int) -> None:
        """Reports if the last report is a second old; the host then waits for the device."""
        engine = self._engine
        if time.monotonic() - self._last_s < _EVERY_S:
            return
        loss = float(engine.sums["loss"]) / batches_done
        now_s, updates = time.monotonic(), engine.updates_done
        images = (engine.images_done - self._last_images) * self._processes
        update_s = (now_s - self._start_s) / (updates - self._start_updates)
        self._on_update(
            {
                "epoch": epoch,
                "epochs": self._epochs,
                "batch": batches_done,
                "batches": engine.batches,
                "updates": updates,
                "learning_rate": engine.learning_rate(),
                "loss": loss,
                "images_per_s": images / (now_s - self._last_s),
                "remaining_s": (self._epochs * engine.updates_per_epoch - updates) * update_s,
            }
        )
        self._last_s, self._last_images = now_s, engine.images_done
