from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from models.spec import ViTSpec
from models.vit import VisionTransformer
from nas.losses import (
    CrossEntropy,
    Distillation,
    HardDistillation,
    PatchLabels,
    SoftDistillation,
    soft_cross_entropy,
)


class _Constant(nn.Module):
    """Answers the same logits to any image, and remembers how it was asked."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([logits]))
        self.seen: list[Tensor] = []
        self.modes: list[bool] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        self.modes.append(self.training)
        return self.logits.expand(len(images), -1)


def test_distillation_is_soft_cross_entropy_at_temperature_1_plus_the_hard_loss() -> None:
    # Student (ln 3, 0): p = (3/4, 1/4). Teacher (0, 0): p = (1/2, 1/2). Label: class 1.
    student, teacher = _Constant([math.log(3), 0.0]), _Constant([0.0, 0.0])
    terms = Distillation(teacher)(student, torch.zeros(2, 3, 4, 4), torch.tensor([[0.0, 1.0]] * 2))
    assert terms["distillation"].item() == pytest.approx(0.5 * math.log(4 / 3) + 0.5 * math.log(4))
    assert terms["cross_entropy"].item() == pytest.approx(math.log(4))
    assert set(terms) == {"cross_entropy", "distillation"}


def test_the_teachers_entropy_is_not_subtracted() -> None:
    student, teacher = _Constant([0.0, 0.0]), _Constant([0.0, 0.0])
    terms = Distillation(teacher)(student, torch.zeros(1, 3, 4, 4), torch.tensor([[1.0, 0.0]]))
    assert terms["distillation"].item() == pytest.approx(math.log(2))


def test_the_teacher_sees_the_same_batch_in_evaluation_mode_without_gradient() -> None:
    student, teacher = _Constant([1.0, 0.0]), _Constant([0.0, 1.0])
    images = torch.rand(2, 3, 4, 4)
    terms = Distillation(teacher.train())(student, images, torch.tensor([[0.0, 1.0]] * 2))
    sum(terms.values(), torch.zeros(())).backward()
    assert teacher.seen == [images]
    assert student.seen == [images]
    assert teacher.modes == [False]
    assert teacher.logits.grad is None
    assert student.logits.grad is not None


def test_token_distillation_adds_the_mean_squared_error_of_the_last_layer_norm(tiny_spec: ViTSpec) -> None:
    student, teacher = VisionTransformer(tiny_spec).eval(), VisionTransformer(tiny_spec).eval()
    images, targets = torch.rand(2, 3, 8, 8), torch.eye(3)[:2]
    terms = Distillation(teacher, token_weight=0.5)(student, images, targets)
    expected = 0.5 * (student.tokens(images) - teacher.tokens(images)).square().mean()
    torch.testing.assert_close(terms["token_distillation"], expected)
    without = Distillation(teacher)(student, images, targets)
    torch.testing.assert_close(terms["distillation"], without["distillation"])
    torch.testing.assert_close(terms["cross_entropy"], without["cross_entropy"])


def test_token_distillation_of_a_foreign_network_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a VisionTransformer"):
        Distillation(_Constant([0.0]), 1.0)(_Constant([0.0]), torch.zeros(1, 3, 4, 4), torch.ones(1, 1))


def test_soft_cross_entropy_equals_torchs() -> None:
    logits, targets = torch.randn(5, 4), torch.rand(5, 4).softmax(-1)
    torch.testing.assert_close(soft_cross_entropy(logits, targets), nn.functional.cross_entropy(logits, targets))
    assert set(CrossEntropy()(nn.Flatten(), logits, targets)) == {"cross_entropy"}


def test_hard_distillation_takes_the_teachers_likeliest_class_as_label() -> None:
    student, teacher = _Constant([math.log(3), 0.0]), _Constant([0.1, 0.2])  # p = (3/4, 1/4), the teacher says 1
    terms = HardDistillation(teacher, alpha=0.25)(student, torch.zeros(2, 3, 4, 4), torch.tensor([[1.0, 0.0]] * 2))
    assert terms["cross_entropy"].item() == pytest.approx(0.75 * math.log(4 / 3))
    assert terms["distillation"].item() == pytest.approx(0.25 * math.log(4))
    assert teacher.modes == [False]


def test_soft_distillation_is_the_divergence_at_the_temperature_times_its_square() -> None:
    # At T = 2: student (2 ln 3, 0) / 2 gives p = (3/4, 1/4), teacher q = (1/2, 1/2).
    student, teacher = _Constant([2 * math.log(3), 0.0]), _Constant([0.0, 0.0])
    images, targets = torch.zeros(3, 3, 4, 4), torch.tensor([[1.0, 0.0]] * 3)
    divergence = 4 * (0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))
    terms = SoftDistillation(teacher, alpha=0.5, temperature=2.0)(student, images, targets)
    assert terms["distillation"].item() == pytest.approx(0.5 * divergence)
    by_class = SoftDistillation(teacher, alpha=0.5, temperature=2.0, per_class=True)(student, images, targets)
    assert by_class["distillation"].item() == pytest.approx(0.5 * divergence / 2)


class _Two(nn.Module):
    """Answers two outputs, as networks with a distillation token or with patch logits do in training."""

    def __init__(self, first: Tensor, second: Tensor) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(first), nn.Parameter(second)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.first.expand(len(images), -1), self.second.expand(len(images), *self.second.shape[1:])


@pytest.mark.parametrize("kind", [HardDistillation, SoftDistillation])
def test_a_distillation_token_alone_learns_from_the_teacher(
    kind: type[HardDistillation] | type[SoftDistillation],
) -> None:
    student = _Two(torch.zeros(1, 2), torch.zeros(1, 2))
    terms = kind(_Constant([0.0, 1.0]), 0.5)(student, torch.zeros(2, 3, 4, 4), torch.tensor([[1.0, 0.0]] * 2))
    (labels_only,) = torch.autograd.grad(terms["cross_entropy"], student.first, retain_graph=True)
    (teacher_only,) = torch.autograd.grad(terms["distillation"], student.second)
    assert labels_only[0, 0] < 0 < teacher_only[0, 0]
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(terms["cross_entropy"], student.second)


def test_patch_labels_are_the_mean_over_all_parts_beside_the_image() -> None:
    # the class head says (3/4, 1/4), the two parts (1/2, 1/2) and (1/4, 3/4)
    student = _Two(torch.tensor([[math.log(3), 0.0]]), torch.tensor([[[0.0, 0.0], [0.0, math.log(3)]]]))
    images = torch.zeros(2, 3, 4, 4)
    targets_BTY = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]] * 2)
    terms = PatchLabels()(student, images, targets_BTY)
    assert terms["cross_entropy"].item() == pytest.approx(math.log(4 / 3))
    assert terms["patch_cross_entropy"].item() == pytest.approx((math.log(2) + math.log(4)) / 2)
    unmixed = PatchLabels()(student, images, torch.tensor([[0.0, 1.0]] * 2))  # every part is what its image is
    assert unmixed["patch_cross_entropy"].item() == pytest.approx((math.log(2) + math.log(4 / 3)) / 2)


def test_patch_labels_say_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="need a network with patch logits"):
        PatchLabels()(_Constant([0.0, 0.0]), torch.zeros(1, 3, 4, 4), torch.ones(1, 2))
    with pytest.raises(ValueError, match="labels 2 parts of an image and the targets 1"):
        student = _Two(torch.zeros(1, 2), torch.zeros(1, 2, 2))
        PatchLabels()(student, torch.zeros(1, 3, 4, 4), torch.ones(1, 2, 2))


@pytest.mark.parametrize(("alpha", "temperature"), [(1.5, 1.0), (0.5, 0.0)])
def test_a_distillation_that_means_nothing_is_refused(alpha: float, temperature: float) -> None:
    with pytest.raises(ValueError, match=r"alpha is the teacher's share|temperature must be"):
        SoftDistillation(_Constant([0.0]), alpha, temperature)
