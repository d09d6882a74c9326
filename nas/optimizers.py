"""Optimisers by name with explicit groups of weight decay, and the learning rate as a function of the update."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from nas.settings import TrainSettings

_EMBEDDINGS = ("pos_embed", "cls_token", "dist_token")


def make_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """The optimiser of `settings` over decayed weights, weights without decay, and search logits (`theta`).

    As in timm, biases, vectors and scalars are not decayed; positions and class tokens are where `decay_embeddings`
    says so (MPCViT; not DeiT). One fused kernel does all of an update.
    """
    groups: dict[str, list[nn.Parameter]] = {"decayed": [], "plain": [], "theta": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[_group(name, parameter, settings)].append(parameter)
    theta_decay = settings.weight_decay if settings.decay_theta else 0.0
    theta_scale = (settings.theta_lr or settings.lr) / settings.lr  # read by timm's schedulers
    rows: list[dict[str, Any]] = [
        {"params": groups["decayed"], "weight_decay": settings.weight_decay},
        {"params": groups["plain"], "weight_decay": 0.0},
        {"params": groups["theta"], "weight_decay": theta_decay, "lr_scale": theta_scale},
    ]
    rows = [row for row in rows if row["params"]]
    if settings.optimizer == "sgd":
        nesterov = settings.momentum > 0  # as timm's "sgd"
        return torch.optim.SGD(rows, lr=settings.lr, momentum=settings.momentum, nesterov=nesterov, fused=True)
    return torch.optim.AdamW(rows, lr=settings.lr, fused=True)


def is_theta(parameter_name: str) -> bool:
    """Whether a parameter holds search logits."""
    return parameter_name.rpartition(".")[2] == "theta"


def schedule(
    optimizer: torch.optim.Optimizer, settings: TrainSettings, updates_per_epoch: int
) -> Callable[[int], None]:
    """timm's schedule of `settings`, by update: sets the rates for the update of a number, counted from 0.

    Warm-up is linear from `warmup_lr` and part of `epochs`; cool-down epochs follow at `min_lr`.
    """
    from timm.scheduler.cosine_lr import CosineLRScheduler
    from timm.scheduler.poly_lr import PolyLRScheduler

    lasting: dict[str, Any] = {
        "t_initial": settings.epochs * updates_per_epoch,
        "lr_min": settings.min_lr,
        "warmup_t": math.ceil(settings.warmup_epochs * updates_per_epoch),
        "warmup_lr_init": settings.warmup_lr,
        "t_in_epochs": False,
    }
    scheduler: CosineLRScheduler | PolyLRScheduler
    if settings.schedule == "linear":
        scheduler = PolyLRScheduler(optimizer, power=1.0, **lasting)
    else:
        scheduler = CosineLRScheduler(optimizer, **lasting)

    def set_rates(update: int) -> None:
        scheduler.step_update(update)

    return set_rates


def _group(name: str, parameter: nn.Parameter, settings: TrainSettings) -> str:
    last = name.rpartition(".")[2]
    if last == "theta":
        return "theta"
    exempt = last in _EMBEDDINGS and not settings.decay_embeddings
    return "plain" if exempt or parameter.ndim <= 1 or last == "bias" else "decayed"
