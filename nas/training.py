"""The one training loop: teacher, search and retraining differ only in model, loss and settings.

Every batch starts from a random state derived from (seed, epoch, batch, process), so a run that was killed anywhere
continues bit for bit on a CPU. Under torchrun the same call trains on all its processes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from bench.records import append, read
from nas.checkpoint import Progress, Tensors, load_checkpoint, save_checkpoint, save_weights
from nas.data import Dataset
from nas.distributed import Ranks, best_device, join
from nas.engine import Engine
from nas.evaluation import accuracy, shared_accuracy
from nas.losses import Loss
from nas.optimizers import is_theta, make_optimizer
from nas.pace import OnUpdate, Pace
from nas.randomness import kept_generators
from nas.settings import TrainSettings
from nas.termination import EXIT_CODE, heeded_termination

__all__ = ["OnEpoch", "OnUpdate", "Record", "accuracy", "best_device", "is_theta", "make_optimizer", "train"]

Record = dict[str, Any]
OnEpoch = Callable[[Record], None]
Describe = Callable[[nn.Module], Mapping[str, Any]]

_GO_ON, _SAVE, _STOP = 0, 1, 2  # wishes of a process after an update; the largest is everybody's

_FINITE_EVERY = 50  # updates between looks at the loss on a GPU, each of which waits for it


def train(
    model: nn.Module,
    dataset: Dataset,
    loss: Loss,
    settings: TrainSettings,
    seed: int,
    folder: Path | None = None,
    *,
    kind: str = "train_epoch",
    describe: Describe | None = None,
    on_epoch: OnEpoch | None = None,
    on_update: OnUpdate | None = None,
    identity: Mapping[str, Any] | None = None,
) -> tuple[Record, ...]:
    """Train `model` in place and return one record an epoch: mean of every loss term, learning rate, accuracy.

    With `folder`, each epoch ends with a checkpoint and a row of `epochs.jsonl` there (a record called `kind`), and a
    call with the same arguments continues after the last checkpoint, which may be within an epoch. The weights of the
    best validation are in `best.safetensors`, the averaged ones of theirs in `best_ema.safetensors`; which
    images validate, where they were held out of the training images, in `split.json`. SIGTERM, which is
    heeded with `folder` only, saves and raises SystemExit(143).
    `describe(model)` adds to the record at the end of an epoch; `on_epoch` hears each new record when it is on disk,
    `on_update` a report every second (see `Pace`). Of several processes, the first calls them and writes. `identity`
    says what run this is beyond data, settings and seed: a checkpoint of another run is refused (ValueError). Raises
    FloatingPointError for a loss that is not finite.
    """
    ranks = join()
    with kept_generators(), heeded_termination(folder is not None) as asked_to_stop:
        engine = Engine(model, dataset, loss, settings, seed, ranks)
        run = {
            "kind": kind,
            "dataset": dataset.name,
            "seed": seed,
            "settings": {name: value for name, value in asdict(settings).items() if name != "checkpoint_every_s"},
            "processes": ranks.world,
            **(identity or {}),
        }
        if folder and ranks.first and dataset.split:
            dataset.split.keep(folder / "split.json")
        keeper = _Keeper(folder, engine, run, settings.checkpoint_every_s, ranks, asked_to_stop)
        progress = keeper.resumed()
        pace = Pace(on_update, engine, settings.total_epochs, ranks.world) if on_update and ranks.first else None
        for epoch in range(progress.epochs_done, settings.total_epochs):
            means = _run_epoch(engine, keeper, progress, pace)
            record = {"record": kind, "seed": seed, "epoch": epoch, **means, "learning_rate": engine.learning_rate()}
            record |= _validation(engine, dataset, settings, ranks, epoch)
            record |= describe(model) if describe else {}
            progress = keeper.finish_epoch(progress, record)
            if on_epoch and ranks.first:
                on_epoch(record)
            keeper.heed_stop()
    return progress.records


def _run_epoch(engine: Engine, keeper: _Keeper, progress: Progress, pace: Pace | None) -> dict[str, float]:
    """The rest of the epoch that `progress` is in: mean of every term of the loss and of their sum."""
    epoch = progress.epochs_done
    for batches_done in engine.updates(epoch, progress.batches_done):
        if engine.device.type == "cpu" or engine.updates_done % _FINITE_EVERY == 0:
            engine.demand_finite(epoch)
        if pace:
            pace.after_update(epoch, batches_done)
        if batches_done < engine.batches:
            keeper.after_update(progress, batches_done)
    engine.demand_finite(epoch)
    means = {name: total / (engine.batches * keeper.ranks.world) for name, total in engine.summed().items()}
    engine.sums = {}
    return means


def _validation(
    engine: Engine, dataset: Dataset, settings: TrainSettings, ranks: Ranks, epoch: int
) -> dict[str, float | None]:
    """Accuracy on the validation images, and that of the averaged weights; None in an epoch that has no validation."""
    due = epoch == settings.total_epochs - 1 or (epoch + 1) % settings.evaluate_every == 0
    networks = {"accuracy": engine.model} | ({"ema_accuracy": engine.ema} if engine.ema else {})
    return {
        name: shared_accuracy(network, dataset, dataset.val, ranks, settings.amp) if due else None
        for name, network in networks.items()
    }


class _Keeper:
    """What a run leaves in `folder`, written by the first process; nothing where there is no folder."""

    def __init__(
        self,
        folder: Path | None,
        engine: Engine,
        run: dict[str, Any],
        every_s: float | None,
        ranks: Ranks,
        asked_to_stop: Callable[[], bool],
    ) -> None:
        self.ranks = ranks
        self._folder, self._engine, self._run, self._every_s = folder, engine, run, every_s
        self._asked_to_stop = asked_to_stop
        self._tensors = Tensors(engine.model, engine.optimizer, engine.ema)
        self._saved_s = time.monotonic()

    def resumed(self) -> Progress:
        """The newest checkpoint's progress, its tensors restored, or a fresh start."""
        found = load_checkpoint(self._folder, self._tensors, self._run) if self._folder else None
        progress = found or Progress(0, 0, (), self._run)
        self._engine.resume(progress.updates, progress.sums, progress.scaler)
        self._catch_up(progress.records)
        return progress

    def after_update(self, progress: Progress, batches_done: int) -> None:
        """Saves within an epoch if it is time or the run was asked to stop, and then stops it."""
        if self._folder is None:
            return
        due = self.ranks.first and self._every_s is not None and time.monotonic() - self._saved_s >= self._every_s
        wish = self.ranks.agreed(_STOP if self._asked_to_stop() else _SAVE if due else _GO_ON)
        if wish != _GO_ON:
            self._engine.demand_finite(progress.epochs_done)
            self._save(replace(progress, batches_done=batches_done, sums=self._engine.summed()))
        if wish == _STOP:
            raise SystemExit(EXIT_CODE)

    def finish_epoch(self, progress: Progress, record: Record) -> Progress:
        """Keeps the end of an epoch: the weights if they are the best, a checkpoint, the record in `epochs.jsonl`."""
        if self._folder:
            for name, network in (("", self._engine.model), ("ema_", self._engine.ema)):
                if network is not None and _is_best(record, progress.records, f"{name}accuracy"):
                    state = {key: record[key] for key in ("epoch", f"{name}accuracy")}
                    file = self._folder / f"best{'_ema' if name else ''}.safetensors"
                    save_weights(network, file, {"state": json.dumps(state)})
        finished = Progress(progress.epochs_done + 1, 0, (*progress.records, record), self._run)
        finished = self._save(finished)
        self._catch_up(finished.records)
        return finished

    def heed_stop(self) -> None:
        """Ends the run between two epochs if it was asked to stop; all is saved."""
        if self._folder and self.ranks.agreed(_STOP if self._asked_to_stop() else _GO_ON) == _STOP:
            raise SystemExit(EXIT_CODE)

    def _save(self, progress: Progress) -> Progress:
        """Saves `progress` with the engine's updates and loss scale."""
        scaler = self._engine.scaler.state_dict()
        progress = replace(progress, updates=self._engine.updates_done, scaler=scaler)
        if self._folder and self.ranks.first:
            save_checkpoint(self._folder, self._tensors, progress)
        self._saved_s = time.monotonic()
        return progress

    def _catch_up(self, records: Sequence[Record]) -> None:
        """Append the records that the log lacks: a killed run's checkpoint, written first, may be one row ahead."""
        if self._folder is None or not self.ranks.first:
            return
        log = self._folder / "epochs.jsonl"
        written = len(read(log)) if log.exists() else 0
        for record in records[written:]:
            append(log, record)


def _is_best(record: Record, earlier: Sequence[Record], name: str) -> bool:
    accuracies = [row[name] for row in earlier if row[name] is not None]
    return record[name] is not None and record[name] > max(accuracies, default=-1)
