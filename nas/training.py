"""The one training loop: teacher, search and retraining differ only in model, loss and settings.

Every epoch starts from a random state derived from (seed, epoch), so a resumed run continues bit for bit on a CPU and
no generator has to be saved.
"""

# B images, Y classes

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.records import append, read
from nas.checkpoint import Progress, load_checkpoint, save_checkpoint
from nas.data import Dataset
from nas.losses import Loss
from nas.settings import TrainSettings

Record = dict[str, Any]
OnEpoch = Callable[[Record], None]
Describe = Callable[[nn.Module], Mapping[str, Any]]

_EVALUATION_BATCH = 256


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
    identity: Mapping[str, Any] | None = None,
) -> tuple[Record, ...]:
    """Train `model` in place and return one record an epoch: mean of every loss term, learning rate, accuracy.

    With `folder`, each epoch ends with a checkpoint and a row of `epochs.jsonl` there (a record called `kind`), and a
    call with the same arguments continues after the last one. `describe(model)` adds to the record at the end of an
    epoch; `on_epoch` hears each new record when it is on disk. `identity` says what run this is beyond data, settings
    and seed: a checkpoint of another run is refused (ValueError). Raises FloatingPointError for a loss that is not
    finite.
    """
    model.to(best_device())
    run = {"kind": kind, "dataset": dataset.name, "seed": seed, "settings": asdict(settings), **(identity or {})}
    optimizer = make_optimizer(model, settings)
    progress = (load_checkpoint(folder, model, optimizer, run) if folder else None) or Progress(0, 0, (), run)
    log = folder / "epochs.jsonl" if folder else None
    _catch_up(log, progress.records)
    for epoch in range(progress.epochs_done, settings.total_epochs):
        with torch.random.fork_rng():
            _seed_epoch(seed, epoch, settings)
            means, updates = _run_epoch(model, dataset, loss, optimizer, settings, epoch, progress.updates)
        record = {
            "record": kind,
            "seed": seed,
            "epoch": epoch,
            **means,
            "learning_rate": optimizer.param_groups[0]["lr"],
        }
        validate = epoch == settings.total_epochs - 1 or (epoch + 1) % settings.evaluate_every == 0
        record["accuracy"] = accuracy(model, dataset.val_images, dataset.val_labels) if validate else None
        record |= describe(model) if describe else {}
        progress = Progress(epoch + 1, updates, (*progress.records, record), run)
        if folder:
            save_checkpoint(folder, model, optimizer, progress)
        _catch_up(log, progress.records)
        if on_epoch:
            on_epoch(record)
    return progress.records


def _catch_up(log: Path | None, records: Sequence[Record]) -> None:
    """Append the records that `log` lacks: a killed run's checkpoint, written first, may be one row ahead of it."""
    if log is None:
        return
    written = len(read(log)) if log.exists() else 0
    for record in records[written:]:
        append(log, record)


def best_device() -> torch.device:
    """The first GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images whose largest logit is their label, in evaluation mode; the model's mode is restored."""
    was_training = model.training
    device = next(model.parameters()).device
    model.eval()
    right = 0
    for start in range(0, len(labels), _EVALUATION_BATCH):
        part = slice(start, start + _EVALUATION_BATCH)
        right += int((model(images[part].to(device)).argmax(-1).cpu() == labels[part]).sum())
    model.train(was_training)
    return right / len(labels)


def make_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW over three groups: decayed weights, biases and norms without decay, search logits (`theta`).

    As in timm, vectors and scalars are not decayed; positions and the class token are, as in the paper's code.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    theta: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        group = theta if is_theta(name) else plain if parameter.ndim <= 1 or name.endswith(".bias") else decayed
        group.append(parameter)
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": plain, "weight_decay": 0.0},
        {
            "params": theta,
            "weight_decay": settings.weight_decay if settings.decay_theta else 0.0,
            "lr_scale": (settings.theta_lr or settings.lr) / settings.lr,  # read by timm's schedulers
        },
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=settings.lr)


def is_theta(parameter_name: str) -> bool:
    """Whether a parameter holds search logits."""
    return parameter_name.rpartition(".")[2] == "theta"


def _run_epoch(
    model: nn.Module,
    dataset: Dataset,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    settings: TrainSettings,
    epoch: int,
    updates: int,
) -> tuple[dict[str, float], int]:
    """One pass over the training images: mean of every term and of their sum, and the updates made so far."""
    device = next(model.parameters()).device
    batch = min(settings.batch, len(dataset.train_labels))
    schedule = _schedule(optimizer, settings, updates_per_epoch=len(dataset.train_labels) // batch)
    totals: dict[str, float] = {}
    batches = 0
    model.train()
    for images, targets_BY in _batches(dataset, settings, epoch, batch):
        schedule(updates)
        terms = loss(model, images.to(device), targets_BY.to(device))
        total = torch.stack(list(terms.values())).sum()
        if not torch.isfinite(total):
            raise FloatingPointError(f"loss is {total.item()} in epoch {epoch}; lower lr or set clip_norm")
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(total)
        if settings.clip_norm is not None:
            weights = [p for name, p in model.named_parameters() if not is_theta(name)]
            nn.utils.clip_grad_norm_(weights, settings.clip_norm)
        optimizer.step()
        updates += 1
        batches += 1
        for name, value in (*terms.items(), ("loss", total)):
            totals[name] = totals.get(name, 0.0) + float(value.detach())
    return {name: value / batches for name, value in totals.items()}, updates


def _batches(dataset: Dataset, settings: TrainSettings, epoch: int, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled whole batches, augmented, with soft targets; a different part batch of images rests each epoch."""
    mix = _mixer(dataset.classes, settings, epoch)
    order = torch.randperm(len(dataset.train_labels))
    for start in range(0, len(order) - batch + 1, batch):
        chosen = order[start : start + batch]
        images, labels = dataset.train_images[chosen], dataset.train_labels[chosen]
        if settings.augmentation:
            images = settings.augmentation(images)
        yield mix(images, labels)


def _mixer(classes: int, settings: TrainSettings, epoch: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    mixing = settings.mixing
    if mixing and not 0 < mixing.off_epoch <= epoch:
        from timm.data.mixup import Mixup

        mixer: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = Mixup(  # type: ignore[no-untyped-call]
            mixup_alpha=mixing.mixup_alpha,
            cutmix_alpha=mixing.cutmix_alpha,
            prob=mixing.probability,
            switch_prob=mixing.switch_probability,
            label_smoothing=settings.label_smoothing,
            num_classes=classes,
        )
        return mixer
    smoothing = settings.label_smoothing

    def smooth(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return images, F.one_hot(labels, classes).float() * (1 - smoothing) + smoothing / classes

    return smooth


def _schedule(
    optimizer: torch.optim.Optimizer, settings: TrainSettings, updates_per_epoch: int
) -> Callable[[int], None]:
    """timm's cosine schedule by update; its learning rate is a function of the update count alone."""
    from timm.scheduler.cosine_lr import CosineLRScheduler

    scheduler = CosineLRScheduler(
        optimizer,
        t_initial=settings.epochs * updates_per_epoch,
        lr_min=settings.min_lr,
        warmup_t=math.ceil(settings.warmup_epochs * updates_per_epoch),
        warmup_lr_init=settings.warmup_lr,
        t_in_epochs=False,
    )

    def set_rate(update: int) -> None:
        scheduler.step_update(update)

    return set_rate


def _seed_epoch(seed: int, epoch: int, settings: TrainSettings) -> None:
    """Seed torch (order, augmentation, dropout) for one epoch, and numpy's global state, where timm's Mixup draws."""
    state = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
    torch.manual_seed(state)
    if settings.mixing:
        np.random.seed(state)
