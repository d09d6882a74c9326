"""A network and a data set small enough for many trainings in a test."""

from __future__ import annotations

import pytest
import torch

from models.spec import BlockSpec, ViTSpec
from nas.data import Dataset, ResidentPart


@pytest.fixture
def tiny_spec() -> ViTSpec:
    """2 layers of 2 heads, 8 wide, 5 tokens, 3 classes."""
    return ViTSpec(8, 4, 8, 3, (BlockSpec(("relu_softmax", "scaling"), 4, 8),) * 2)


@pytest.fixture
def tiny_data() -> Dataset:
    """24 training images of 8 px in 3 classes that differ in brightness."""
    generator = torch.Generator().manual_seed(0)

    def part(count: int) -> ResidentPart:
        labels = torch.arange(count) % 3
        images = torch.randn(count, 3, 8, 8, generator=generator) * 0.3 + (labels - 1.0).view(-1, 1, 1, 1)
        return ResidentPart(images, labels)

    return Dataset("tiny", part(24), part(6), part(9), ("a", "b", "c"), (0.0,) * 3, (1.0,) * 3, 8)
