"""The weights of a run and all that changes with an update: optimiser, rates, loss scale, average, sums of the loss."""

# B images, Y classes

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from nas.data import Dataset
from nas.distributed import Ranks, best_device
from nas.evaluation import precision
from nas.loading import training_batches, updates_per_epoch
from nas.losses import Loss, Placed
from nas.mixing import Mix, mixer
from nas.optimizers import is_theta, make_optimizer, schedule
from nas.randomness import Position, seed_generators
from nas.settings import TrainSettings

_LOADING, _TRAINING = 0, 1  # streams of random numbers within a batch: how one was loaded does not shift the other


class Engine:
    """Trains `model` in place on the best device; `updates` is the loop over one epoch.

    `sums` holds the sum of every term of the loss over the batches of the epoch so far, on this process. Raises
    ValueError for a precision that the device has not, or more processes than images.
    """

    def __init__(
        self, model: nn.Module, dataset: Dataset, loss: Loss, settings: TrainSettings, seed: int, ranks: Ranks
    ) -> None:
        self.device = best_device()
        precision(settings.amp, self.device)
        layout = torch.channels_last if settings.channels_last else torch.preserve_format
        self.model = model.to(self.device, memory_format=layout)  # type: ignore[call-overload]
        self.optimizer = make_optimizer(model, settings)
        self.ema: nn.Module | None = None
        self._average = ModelEmaV3(model, settings.ema_decay) if settings.ema_decay else None
        if self._average is not None:
            self.ema = self._average.module
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=settings.amp == "fp16")
        self.updates_done = 0
        self.images_done = 0  # by this process, since it started
        self.sums: dict[str, Tensor] = {}
        self.batch = _batch(dataset, settings, ranks)
        self.batches = updates_per_epoch(dataset, self.batch, ranks.world)
        self.updates_per_epoch = math.ceil(self.batches / settings.accumulate)
        self._dataset, self._loss, self._settings, self._seed, self._ranks = dataset, loss, settings, seed, ranks
        self._set_rates = schedule(self.optimizer, settings, self.updates_per_epoch)
        self._clipped = [p for name, p in model.named_parameters() if p.requires_grad and not is_theta(name)]
        self._forward = self._wrapped()

    def updates(self, epoch: int, first_batch: int = 0) -> Iterator[int]:
        """Trains on the batches of an epoch from `first_batch` on; yields, after every update, those done in it."""
        settings = self._settings
        batches = training_batches(
            self._dataset,
            settings.augmentation,
            batch=self.batch,
            seed=self._seed,
            epoch=epoch,
            device=self.device,
            rank=self._ranks.rank,
            world=self._ranks.world,
            start=first_batch,
        )
        mix = mixer(self._dataset.classes, settings, epoch)
        self.model.train()
        for start in range(first_batch, self.batches, settings.accumulate):
            stop = min(start + settings.accumulate, self.batches)
            self._set_rates(self.updates_done)
            for batch in range(start, stop):
                images, targets_BY = self._next(batches, mix, Position(self._seed, epoch, batch))
                with nullcontext() if batch == stop - 1 else self._unshared():
                    self._backward(images, targets_BY, share=1 / (stop - start))
            self._apply()
            yield stop

    def learning_rate(self) -> float:
        """Rate of the first group in the last update."""
        self._set_rates(max(0, self.updates_done - 1))
        return float(self.optimizer.param_groups[0]["lr"])

    def resume(self, updates_done: int, sums: dict[str, float], scaler: dict[str, Any]) -> None:
        """Goes on after `updates_done` updates, with the sums over all processes of the epoch under way."""
        self.updates_done = updates_done
        shares = {name: total / self._ranks.world for name, total in sums.items()}
        self.sums = {name: torch.tensor(t, dtype=torch.float64, device=self.device) for name, t in shares.items()}
        if scaler:
            self.scaler.load_state_dict(scaler)

    def summed(self) -> dict[str, float]:
        """The sums over all processes; each must ask."""
        totals = self._ranks.total(torch.stack(list(self.sums.values())))
        return dict(zip(self.sums, totals.tolist(), strict=True))

    def demand_finite(self, epoch: int) -> None:
        """Raises FloatingPointError where a loss of this epoch was not finite; the host waits for the device."""
        total = self.sums["loss"].item() if "loss" in self.sums else 0.0
        if not math.isfinite(total):
            raise FloatingPointError(f"loss is {total} in epoch {epoch}; lower lr or set clip_norm")

    def _next(self, batches: Iterator[tuple[Tensor, Tensor]], mix: Mix, position: Position) -> tuple[Tensor, Tensor]:
        """The batch of `position`, mixed, with the generators left where training on it starts."""
        place = (position.seed, position.epoch, position.batch, self._ranks.rank)
        seed_generators(*place, _LOADING)
        images, labels = next(batches)
        self.images_done += len(labels)
        seed_generators(*place, _TRAINING)
        images, targets_BY = mix(images, labels)
        if self._settings.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        if isinstance(self._loss, Placed):
            self._loss.at(position)
        return images, targets_BY

    def _backward(self, images: Tensor, targets_BY: Tensor, share: float) -> None:
        with precision(self._settings.amp, self.device):
            terms: dict[str, Tensor] = self._forward(images, targets_BY)
            total = torch.stack([term.float() for term in terms.values()]).sum()
        torch.autograd.backward(self.scaler.scale(total * share if share < 1 else total))
        for name, value in (*terms.items(), ("loss", total)):
            self.sums[name] = self.sums.get(name, 0) + value.detach().double()

    def _apply(self) -> None:
        """One step of the optimiser, from the gradients that were gathered; a step that overflowed fp16 is skipped."""
        if self._settings.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self._clipped, self._settings.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.updates_done += 1
        if self._average is not None:
            self._average.update(self.model, self.updates_done)

    def _wrapped(self) -> nn.Module:
        forward = _Forward(self.model, self._loss)
        if self._settings.compile:
            forward.compile()
        return self._ranks.parallel(forward, self._settings.unused_weights)

    def _unshared(self) -> AbstractContextManager[None]:
        """Gradients stay on this process until the last batch of an update."""
        forward = self._forward
        return forward.no_sync() if isinstance(forward, nn.parallel.DistributedDataParallel) else nullcontext()


class _Forward(nn.Module):
    """The loss as a module, so that compiling it and averaging its gradients reach whatever the loss calls."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(self, images: Tensor, targets_BY: Tensor) -> dict[str, Tensor]:
        """The terms of the loss."""
        return self._loss(self.model, images, targets_BY)


def _batch(dataset: Dataset, settings: TrainSettings, ranks: Ranks) -> int:
    """Images of one process in one pass: fewer than asked for where the data set is smaller."""
    images = len(dataset.train.labels) // ranks.world
    batch = min(settings.batch, images - images % 2 if settings.mixing else images)
    if batch < 1:
        raise ValueError(f"{dataset.name} has {len(dataset.train.labels)} training images for {ranks.world} processes")
    return batch
