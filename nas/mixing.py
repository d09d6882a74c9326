"""Labels as soft targets, with images mixed: label smoothing, timm's Mixup and CutMix, ViT-ResNAS's patch labels."""

# B images, P pixels a side, G cells a side, T targets of an image (its own, then those of its cells), Y classes

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nas.settings import PatchMixing, TrainSettings

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def mixer(classes: int, settings: TrainSettings, epoch: int) -> Mix:
    """From images and labels to images and targets, drawn from numpy's global generator; may write into the images.

    Targets are B Y, or B T Y under `PatchMixing`.
    """
    mixing, smoothing = settings.mixing, settings.label_smoothing
    if mixing is None or 0 < mixing.off_epoch <= epoch:
        return lambda images, labels: (images, _smoothed(labels, classes, smoothing))
    if isinstance(mixing, PatchMixing):
        patches = mixing
        return lambda images, labels: patch_mix(images, _smoothed(labels, classes, smoothing), patches)
    from timm.data.mixup import Mixup

    mixup: Mix = Mixup(  # type: ignore[no-untyped-call]
        mixup_alpha=mixing.mixup_alpha,
        cutmix_alpha=mixing.cutmix_alpha,
        prob=mixing.probability,
        switch_prob=mixing.switch_probability,
        label_smoothing=smoothing,
        num_classes=classes,
    )
    return mixup


def patch_mix(images: Tensor, targets_BY: Tensor, mixing: PatchMixing) -> tuple[Tensor, Tensor]:
    """ViT-ResNAS's SwitchTokenMix: first half of the batch by CutMix in whole cells, second half by Mixup.

    A cell's target is that of the image it came from, or the mixed one. Raises ValueError where the image does not
    divide into cells. Unlike the paper's text, which chooses one per update, and like its code.
    """
    grid, side_px = mixing.cells, images.shape[-1]
    if side_px % grid:
        raise ValueError(f"images of {side_px} px do not divide into {grid} cells a side")
    half = len(images) // 2
    targets_BTY = targets_BY.unsqueeze(1).expand(-1, 1 + grid * grid, -1)
    cut = _cut_cells(images[:half], targets_BTY[:half], mixing)
    share = float(np.random.beta(mixing.mixup_alpha, mixing.mixup_alpha))
    other = torch.from_numpy(np.random.permutation(len(images) - half)).to(images.device)
    blended = (
        images[half:] * share + images[half:][other] * (1 - share),
        targets_BTY[half:] * share + targets_BTY[half:][other] * (1 - share),
    )
    return torch.cat([cut[0], blended[0]]), torch.cat([cut[1], blended[1]])


def _cut_cells(images: Tensor, targets_BTY: Tensor, mixing: PatchMixing) -> tuple[Tensor, Tensor]:
    """One box of cells taken from a permuted partner, at the same place in all images."""
    grid = mixing.cells
    other = torch.from_numpy(np.random.permutation(len(images))).to(images.device)
    top, left, height, width = _box(grid, mixing.cutmix_alpha)
    taken_GG = torch.zeros(grid, grid, dtype=torch.bool)
    taken_GG[top : top + height, left : left + width] = True
    cell_px = images.shape[-1] // grid
    taken_PP = taken_GG.repeat_interleave(cell_px, 0).repeat_interleave(cell_px, 1).to(images.device)
    share = height * width / (grid * grid)
    weights_T = torch.cat([torch.tensor([share]), taken_GG.flatten().float()]).to(images.device)[:, None]
    targets = targets_BTY * (1 - weights_T) + targets_BTY[other] * weights_T
    return torch.where(taken_PP, images[other], images), targets


def _box(grid: int, alpha: float) -> tuple[int, int, int, int]:
    """Top, left, height and width of a box of cells: about a Beta-drawn share of the grid."""
    cells = int(grid * grid * float(np.random.beta(alpha, alpha)))
    height = int(np.random.randint(1, max(1, min(grid, cells) - 2) + 1))
    width = cells // height
    if width > grid:
        width, height = grid, cells // grid
    top, left = (int(np.random.randint(0, grid - extent + 1)) for extent in (height, width))
    return top, left, height, width


def _smoothed(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    return F.one_hot(labels, classes).float() * (1 - smoothing) + smoothing / classes
