"""What a training run minimises: named terms that the loop adds up.

A loss is called with the model, a batch and soft targets, and runs the forward pass itself, so that distillation can
feed the very same batch to the teacher.
"""

# B images, N tokens, C channels, Y classes

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.vit import VisionTransformer


class Loss(Protocol):
    """Terms of the loss of one batch; the loop adds them up."""

    def __call__(self, model: nn.Module, images: Tensor, targets_BY: Tensor) -> dict[str, Tensor]:
        """The terms by name, each a scalar with its weight already applied."""
        ...


def soft_cross_entropy(logits_BY: Tensor, targets_BY: Tensor) -> Tensor:
    """H(targets, softmax(logits)) averaged over the batch, without subtracting the targets' own entropy."""
    return -(targets_BY * F.log_softmax(logits_BY, dim=-1)).sum(-1).mean()


class CrossEntropy:
    """Cross-entropy with the (smoothed, mixed) labels."""

    def __call__(self, model: nn.Module, images: Tensor, targets_BY: Tensor) -> dict[str, Tensor]:
        """The one term `cross_entropy`."""
        return {"cross_entropy": soft_cross_entropy(model(images), targets_BY)}


class Distillation:
    """MPCViT's retraining loss: H(softmax(z_T), softmax(z_S)) at temperature 1, plus cross-entropy with the labels.

    With `token_weight` (the paper's kd_alpha) the mean squared error between final-LayerNorm tokens is added; extra
    leading tokens of the student are left out. The teacher is put in evaluation mode and run without gradients on the
    student's own batch. Unlike the paper's code, which builds the teacher's graph, and equal to it in value.
    """

    def __init__(self, teacher: nn.Module, token_weight: float | None = None) -> None:
        self._teacher = teacher.eval().requires_grad_(False)
        self._token_weight = token_weight

    def __call__(self, model: nn.Module, images: Tensor, targets_BY: Tensor) -> dict[str, Tensor]:
        """The terms `cross_entropy`, `distillation` and, if asked for, `token_distillation`."""
        self._teacher.to(images.device)
        if self._token_weight is None:
            logits = model(images)
            with torch.no_grad():
                teacher_logits = self._teacher(images)
            return self._terms(logits, teacher_logits, targets_BY)
        tokens_BNC, logits = _tokens_and_logits(model, images)
        with torch.no_grad():
            teacher_tokens_BNC, teacher_logits = _tokens_and_logits(self._teacher, images)
        aligned = tokens_BNC[:, -teacher_tokens_BNC.shape[1] :]
        token_loss = self._token_weight * F.mse_loss(aligned, teacher_tokens_BNC)
        return {**self._terms(logits, teacher_logits, targets_BY), "token_distillation": token_loss}

    @staticmethod
    def _terms(logits: Tensor, teacher_logits: Tensor, targets_BY: Tensor) -> dict[str, Tensor]:
        return {
            "cross_entropy": soft_cross_entropy(logits, targets_BY),
            "distillation": soft_cross_entropy(logits, teacher_logits.softmax(-1)),
        }


def _tokens_and_logits(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Final-LayerNorm tokens and logits of one forward pass of a `VisionTransformer`."""
    if not isinstance(model, VisionTransformer):
        raise ValueError(
            f"token distillation needs a VisionTransformer, got {type(model).__name__}; leave token_weight out"
        )
    tokens = model.tokens(images)
    return tokens, model.head(tokens[:, 0])
