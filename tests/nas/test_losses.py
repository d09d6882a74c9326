from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from models.spec import ViTSpec
from models.vit import VisionTransformer
from nas.losses import CrossEntropy, Distillation, soft_cross_entropy


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
