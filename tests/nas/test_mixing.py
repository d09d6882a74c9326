from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from nas.mixing import mixer, patch_mix
from nas.settings import Mixing, PatchMixing, TrainSettings

SETTINGS = TrainSettings(epochs=4, batch=8, lr=1e-3, label_smoothing=0.1)


def test_labels_are_smoothed_without_mixing() -> None:
    images = torch.rand(2, 3, 4, 4)
    same, targets = mixer(5, SETTINGS, 0)(images, torch.tensor([0, 3]))
    assert same is images
    torch.testing.assert_close(targets[1], torch.tensor([0.02, 0.02, 0.02, 0.92, 0.02]))


def test_mixing_ends_at_its_epoch() -> None:
    settings = replace(SETTINGS, mixing=Mixing(off_epoch=2))
    images, labels = torch.rand(8, 3, 4, 4), torch.arange(8) % 4
    np.random.seed(0)
    mixed, _ = mixer(4, settings, 1)(images.clone(), labels)
    after, _ = mixer(4, settings, 2)(images.clone(), labels)
    assert not torch.equal(mixed, images)
    assert torch.equal(after, images)


def test_every_cell_of_the_first_half_keeps_the_label_of_the_image_it_shows() -> None:
    # image i is the number i everywhere, and its label is i: pixels say where they came from
    count, grid = 8, 4
    images = torch.arange(count).float().view(-1, 1, 1, 1).expand(-1, 3, 16, 16).clone()
    for seed in range(20):
        np.random.seed(seed)
        mixed, targets_BTY = patch_mix(images, torch.eye(count), PatchMixing(cells=grid))
        shown = mixed[: count // 2, 0].unfold(1, 4, 4).unfold(2, 4, 4)  # B G G 4 4
        assert bool((shown == shown[..., :1, :1]).all())  # whole cells
        labels_BGG = targets_BTY[: count // 2, 1:].argmax(-1).view(-1, grid, grid)
        assert torch.equal(shown[..., 0, 0], labels_BGG.float())
        torch.testing.assert_close(targets_BTY[: count // 2, 0], targets_BTY[: count // 2, 1:].mean(1))


def test_the_second_half_is_blended_and_all_its_cells_have_the_blended_label() -> None:
    images = torch.arange(8).float().view(-1, 1, 1, 1).expand(-1, 3, 16, 16).clone()
    np.random.seed(1)
    mixed, targets_BTY = patch_mix(images, torch.eye(8), PatchMixing(cells=4))
    assert torch.equal(targets_BTY[4:], targets_BTY[4:, :1].expand(-1, 17, -1))
    torch.testing.assert_close(mixed[4:, 0, 0, 0], targets_BTY[4:, 0] @ torch.arange(8.0))


def test_a_grid_that_does_not_divide_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match="16 px do not divide into 5 cells"):
        patch_mix(torch.zeros(4, 3, 16, 16), torch.eye(4), PatchMixing(cells=5))
