"""What a training run minimises: named terms that the loop adds up.

A loss is called with the model, a batch and soft targets, and runs the forward pass itself, so that distillation can
feed the very same batch to the teacher. One that draws, such as a supernet's, has a method `at(position)` as well and
hears where each batch is before it is called.
"""

# B images, N tokens, C channels, Y classes, T targets of an image (its own, then those of its parts)

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.vit import VisionTransformer
from nas.randomness import Position


class Loss(Protocol):
    """Terms of the loss of one batch; the loop adds them up."""

    def __call__(self, model: nn.Module, images: Tensor, targets_BY: Tensor) -> dict[str, Tensor]:
        """The terms by name, each a scalar with its weight already applied; the same names throughout an epoch."""
        ...


@runtime_checkable
class Placed(Protocol):
    """A loss that depends on where the run is."""

    def at(self, position: Position) -> None:
        """The next batch is that of `position`, whose generator draws alike on all processes."""
        ...


def soft_cross_entropy(logits_BY: Tensor, targets_BY: Tensor) -> Tensor:
    """H(targets, softmax(logits)) averaged over the batch, without subtracting the targets' own entropy."""
    return -(targets_BY * F.log_softmax(logits_BY.float(), dim=-1)).sum(-1).mean()


class CrossEntropy:
    """Cross-entropy with the (smoothed, mixed) labels."""

    def __call__(self, model: nn.Module, images: Tensor, targets_BY: Tensor) -> dict[str, Tensor]:
        """The one term `cross_entropy`."""
        return {"cross_entropy": soft_cross_entropy(model(images), targets_BY)}


class PatchLabels:
    """ViT-ResNAS's loss for a network that answers class logits B Y and logits of the parts of an image B N Y.

    Cross-entropy of both, unweighted. Targets are B (1+N) Y as `PatchMixing` makes them; where they are B Y, every
    part has the label of its image.
    """

    def __call__(self, model: nn.Module, images: Tensor, targets_BY: Tensor) -> dict[str, Tensor]:
        """The terms `cross_entropy` and `patch_cross_entropy`. Raises ValueError where parts and targets disagree."""
        output = model(images)
        if not isinstance(output, tuple):
            raise ValueError(f"patch labels need a network with patch logits, got {type(model).__name__} without")
        logits_BY, parts_BNY = output
        targets_BTY = targets_BY if targets_BY.ndim == 3 else targets_BY[:, None].expand(-1, 1 + parts_BNY.shape[1], -1)
        if targets_BTY.shape[1] != 1 + parts_BNY.shape[1]:
            raise ValueError(
                f"the network labels {parts_BNY.shape[1]} parts of an image and the targets {targets_BTY.shape[1] - 1};"
                " give mixing the cells of the network's last grid"
            )
        return {
            "cross_entropy": soft_cross_entropy(logits_BY, targets_BTY[:, 0]),
            "patch_cross_entropy": soft_cross_entropy(parts_BNY, targets_BTY[:, 1:]),
        }


class Distillation:
    """MPCViT's retraining loss: H(softmax(z_T), softmax(z_S)) at temperature 1, plus cross-entropy with the labels.

    With `token_weight` (the paper's kd_alpha) the mean squared error between final-LayerNorm tokens is added; extra
    leading tokens of the student are left out. The teacher is put in evaluation mode and run without gradients on the
    student's own batch. Unlike the paper's code, which builds the teacher's graph, and equal to it in value.
    """

    def __init__(self, teacher: nn.Module, token_weight: float | None = None) -> None:
        self._teacher = _frozen(teacher)
        self._token_weight = token_weight

    def __call__(self, model: nn.Module, images: Tensor, targets_BY: Tensor) -> dict[str, Tensor]:
        """The terms `cross_entropy`, `distillation` and, if asked for, `token_distillation`."""
        _follow(self._teacher, images)
        if self._token_weight is None:
            logits = model(images)
            with torch.no_grad():
                teacher_logits = self._teacher(images)
            return self._terms(logits, teacher_logits, targets_BY)
        tokens_BNC, logits = _tokens_and_logits(model, images)
        with torch.no_grad():
            teacher_tokens_BNC, teacher_logits = _tokens_and_logits(self._teacher, images)
        aligned = tokens_BNC[:, -teacher_tokens_BNC.shape[1] :]
        token_loss = self._token_weight * F.mse_loss(aligned.float(), teacher_tokens_BNC.float())
        return {**self._terms(logits, teacher_logits, targets_BY), "token_distillation": token_loss}

    @staticmethod
    def _terms(logits: Tensor, teacher_logits: Tensor, targets_BY: Tensor) -> dict[str, Tensor]:
        return {
            "cross_entropy": soft_cross_entropy(logits, targets_BY),
            "distillation": soft_cross_entropy(logits, teacher_logits.float().softmax(-1)),
        }


class HardDistillation:
    """DeiT's: (1 - alpha) of the cross-entropy with the labels, alpha of that with the teacher's likeliest class.

    A student with a distillation token answers two logits in training; the second learns from the teacher.
    """

    def __init__(self, teacher: nn.Module, alpha: float = 0.5) -> None:
        self._teacher, self._alpha = _frozen(teacher), _share(alpha)

    def __call__(self, model: nn.Module, images: Tensor, targets_BY: Tensor) -> dict[str, Tensor]:
        """The terms `cross_entropy` and `distillation`."""
        logits, distilled = _two_logits(model(images))
        answer_B = _answer(self._teacher, images).argmax(-1)
        return {
            "cross_entropy": (1 - self._alpha) * soft_cross_entropy(logits, targets_BY),
            "distillation": self._alpha * F.cross_entropy(distilled.float(), answer_B),
        }


class SoftDistillation:
    """DeiT's and UVC's: (1 - alpha) of the cross-entropy, alpha of T^2 KL(teacher at T || student at T).

    KL is averaged over images. With `per_class` it is divided by the classes as well, as in DeiT's and UVC's code.
    A student with a distillation token answers two logits in training; the second learns from the teacher.
    """

    def __init__(
        self, teacher: nn.Module, alpha: float = 0.5, temperature: float = 1.0, per_class: bool = False
    ) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature must be > 0, got {temperature}")
        self._teacher, self._alpha = _frozen(teacher), _share(alpha)
        self._temperature, self._per_class = temperature, per_class

    def __call__(self, model: nn.Module, images: Tensor, targets_BY: Tensor) -> dict[str, Tensor]:
        """The terms `cross_entropy` and `distillation`."""
        logits, distilled = _two_logits(model(images))
        teacher_BY = _answer(self._teacher, images)
        student = F.log_softmax(distilled.float() / self._temperature, dim=-1)
        wanted = F.log_softmax(teacher_BY.float() / self._temperature, dim=-1)
        divergence = F.kl_div(student, wanted, reduction="batchmean", log_target=True) * self._temperature**2
        if self._per_class:
            divergence = divergence / logits.shape[-1]
        return {
            "cross_entropy": (1 - self._alpha) * soft_cross_entropy(logits, targets_BY),
            "distillation": self._alpha * divergence,
        }


def _frozen(teacher: nn.Module) -> nn.Module:
    return teacher.eval().requires_grad_(False)


def _follow(teacher: nn.Module, images: Tensor) -> None:
    """Brings the teacher to where the images are, once."""
    if next(teacher.parameters()).device != images.device:
        teacher.to(images.device)


def _answer(teacher: nn.Module, images: Tensor) -> Tensor:
    _follow(teacher, images)
    with torch.no_grad():
        logits: Tensor = teacher(images)
    return logits


def _share(alpha: float) -> float:
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is the teacher's share of the loss, in [0, 1], got {alpha}")
    return alpha


def _two_logits(output: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits that learn from the labels and logits that learn from the teacher, which may be the same."""
    return output if isinstance(output, tuple) else (output, output)


def _tokens_and_logits(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Final-LayerNorm tokens and logits of one forward pass of a `VisionTransformer`."""
    if not isinstance(model, VisionTransformer):
        raise ValueError(
            f"token distillation needs a VisionTransformer, got {type(model).__name__}; leave token_weight out"
        )
    tokens = model.tokens(images)
    return tokens, model.head(tokens[:, 0])
