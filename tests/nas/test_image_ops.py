from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import LEVEL_TO_ARG, NAME_TO_OP
from torch import Tensor
from torchvision.transforms import functional as pil
from torchvision.transforms.autoaugment import _apply_op as torchvision_op

from nas import image_ops
from nas.batch_augmentation import apply
from nas.drawn_steps import uniform_step

OUTSIDE = (125.0, 123.0, 114.0)


def pictures(px: int = 32) -> Tensor:
    """Smooth, noisy, dark, flat and two-level images: what operations on histograms and edges may trip over."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(2, 3, px, px, generator=generator)
    smooth = torch.nn.functional.interpolate(torch.rand(4, 3, 4, 4, generator=generator), size=px, mode="bicubic")
    flat = torch.full((1, 3, px, px), 0.3)
    two = (torch.rand(1, 3, px, px, generator=generator) > 0.02).float() * 0.5
    return (torch.cat([noise, smooth, smooth * 0.3, flat, two]).clamp(0, 1) * 255).round().to(torch.uint8)


def to_pil(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def from_pil(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)


def differing(ours: Tensor, theirs: Tensor, tolerance: int = 1) -> float:
    """Share of pixels that differ by more than rounding."""
    return float(((ours.int() - theirs.int()).abs() > tolerance).float().mean())


ENHANCE = [0.1, 0.55, 1.0, 1.45, 1.9]
CASES = [
    *[("AutoContrast", "AutoContrast", 0.0), ("Equalize", "Equalize", 0.0), ("Invert", "Invert", 0.0)],
    *[("Posterize", "PosterizeIncreasing", bits) for bits in (1.0, 2.0, 4.0)],
    *[("Solarize", "SolarizeIncreasing", threshold) for threshold in (0.0, 26.0, 100.0, 256.0)],
    *[("SolarizeAdd", "SolarizeAdd", gain) for gain in (0.0, 50.0, 110.0)],
    *[(op, op, factor) for op in ("Color", "Contrast", "Brightness", "Sharpness") for factor in ENHANCE],
]


@pytest.mark.parametrize(("op", "theirs", "argument"), CASES)
def test_changes_of_levels_are_those_of_pil(op: str, theirs: str, argument: float) -> None:
    images = pictures()
    without = op in ("AutoContrast", "Equalize", "Invert")
    whole = op in ("Posterize", "Solarize", "SolarizeAdd")
    arguments = () if without else (int(argument) if whole else argument,)
    expected = torch.stack([from_pil(NAME_TO_OP[theirs](to_pil(image), *arguments)) for image in images])
    ours = apply(uniform_step(op, argument, len(images)), images, torch.zeros(3, 1, 1))
    assert differing(ours, expected) == 0
    if op not in ("AutoContrast", "Color", "Contrast", "Brightness", "Sharpness"):  # whole numbers throughout
        assert torch.equal(ours, expected)


def test_no_bits_are_black() -> None:
    """What timm means at its full magnitude, and what Pillow did before it refused it."""
    images = pictures()
    assert not apply(uniform_step("Posterize", 0.0, len(images)), images, torch.zeros(3, 1, 1)).any()


MOVES = [
    *[(op, op, value) for op in ("ShearX", "ShearY") for value in (-0.27, 0.0, 0.13, 0.3)],
    *[("TranslateX", "TranslateXRel", value) for value in (-0.405, 0.0, 0.1, 0.45)],
    *[("TranslateY", "TranslateYRel", value) for value in (-0.405, 0.31)],
    *[("Rotate", "Rotate", value) for value in (-30.0, -7.3, 0.0, 12.5, 27.0)],
]


@pytest.mark.parametrize("way", [image_ops.BILINEAR, image_ops.BICUBIC])
@pytest.mark.parametrize(("op", "theirs", "value"), MOVES)
def test_moves_are_those_of_pil(op: str, theirs: str, value: float, way: int) -> None:
    images = pictures()
    settings = {
        "resample": Image.Resampling.BICUBIC if way == image_ops.BICUBIC else Image.Resampling.BILINEAR,
        "fillcolor": tuple(int(level) for level in OUTSIDE),
    }
    expected = torch.stack([from_pil(NAME_TO_OP[theirs](to_pil(image), value, **settings)) for image in images])
    argument = value * images.shape[-1] if op.startswith("Translate") else value
    ours = apply(uniform_step(op, argument, len(images), way), images, torch.tensor(OUTSIDE).view(-1, 1, 1))
    assert differing(ours, expected) <= 0.002  # a pixel on the very edge may fall either way


@pytest.mark.parametrize("op", ["ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"])
@pytest.mark.parametrize(
    "value", [-8 / 30, 5 / 30]
)  # of torchvision's magnitudes; at others, PIL rounds ties by its fixed point
def test_moves_to_the_nearest_pixel_are_those_of_torchvision(op: str, value: float) -> None:
    images = pictures()
    argument = {"T": math.trunc(value * 40), "R": value * 100, "S": value}[op[0]]
    expected = torch.stack(
        [from_pil(torchvision_op(to_pil(image), op, argument, pil.InterpolationMode.NEAREST, None)) for image in images]
    )
    ours = uniform_step(op, -argument if op.startswith("T") else argument, len(images), image_ops.NEAREST)
    assert differing(apply(ours, images, torch.zeros(3, 1, 1)), expected) <= 0.02


BOXES = [(0, 0, 32, 32), (3, 5, 29, 24), (10, 0, 9, 31), (20, 20, 4, 5), (1, 2, 31, 30)]


@pytest.mark.parametrize("px", [32, 24, 48])
@pytest.mark.parametrize("cubic", [True, False])
def test_resized_crops_are_those_of_pil(cubic: bool, px: int) -> None:
    images = pictures()[:6]
    way = pil.InterpolationMode.BICUBIC if cubic else pil.InterpolationMode.BILINEAR
    for box in BOXES:
        expected = torch.stack([from_pil(pil.resized_crop(to_pil(image), *box, [px, px], way)) for image in images])
        boxes = torch.tensor(box).float().repeat(len(images), 1)
        ours = image_ops.resized_crop(images, boxes, px, torch.full((len(images),), cubic))
        assert differing(ours, expected) < 0.001  # exact halves, which may fall either way, in both passes
        assert differing(ours, expected, tolerance=0) < 0.1


def test_a_shift_leaves_zeros_behind() -> None:
    images = pictures(8)
    top, left = torch.tensor([3, -2] * 5 + [0]), torch.tensor([-1, 4] * 5 + [0])
    count = min(len(images), len(top))
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4))
    expected = [
        padded[i, :, 4 + t : 12 + t, 4 + x : 12 + x]
        for i, (t, x) in enumerate(zip(top.tolist(), left.tolist(), strict=True))
        if i < count
    ]
    assert torch.equal(image_ops.shifted(images[:count], top[:count], left[:count]), torch.stack(expected))


def test_images_without_an_operation_stay_and_others_get_their_own() -> None:
    images = pictures()
    step = uniform_step("Invert", 0.0, len(images))
    step.code[::2] = -1
    ours = apply(step, images, torch.zeros(3, 1, 1))
    assert torch.equal(ours[::2], images[::2])
    assert torch.equal(ours[1::2], 255 - images[1::2])


@pytest.mark.parametrize("name", ["PosterizeIncreasing", "SolarizeIncreasing", "SolarizeAdd", "Posterize", "Solarize"])
def test_arguments_of_levels_are_timms(name: str) -> None:
    from nas.drawn_steps import _TIMM_OPS

    levels = torch.linspace(0, 10, 101)
    ours = _TIMM_OPS[name][1](levels, torch.ones(101), 32)
    theirs = [LEVEL_TO_ARG[name](level, {})[0] for level in levels.tolist()]
    assert ours.tolist() == theirs
