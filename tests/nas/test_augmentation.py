from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from nas.augmentation import POLICIES, Augmentation, Policy


def test_an_augmentation_of_nothing_is_the_identity() -> None:
    images = torch.rand(3, 3, 8, 8)
    torch.testing.assert_close(Augmentation(0, 0, 0)(images), images)


def test_an_augmentation_moves_by_at_most_its_shift() -> None:
    images = torch.zeros(64, 1, 16, 16)
    images[:, :, 8, 8] = 1
    moved = Augmentation(shift_px=2, rotate_degrees=0, zoom=0)(images)
    assert not torch.equal(moved, images)
    rows = (moved.sum(dim=(1, 3)) * torch.arange(16)).sum(-1)
    assert float((rows - 8).abs().max()) <= 2.0001
    assert float((rows - 8).abs().max()) > 1


def test_a_flip_mirrors_left_and_right_only() -> None:
    torch.manual_seed(0)
    images = torch.rand(20, 1, 4, 4)
    flipped = Augmentation(0, 0, 0, flip=True)(images)
    mirrored = [torch.allclose(a, b.flip(-1), atol=1e-5) for a, b in zip(flipped, images, strict=True)]
    same = [torch.allclose(a, b, atol=1e-5) for a, b in zip(flipped, images, strict=True)]
    assert all(m or s for m, s in zip(mirrored, same, strict=True))
    assert any(mirrored)
    assert any(same)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"crop_scale": (0.5, 0.4)}, "crop_scale must rise"),
        ({"crop_scale": (0.0, 0.4)}, "crop_scale must rise"),
        ({"crop_ratio": (2.0, 1.0)}, "crop_ratio must rise"),
        ({"crop_padding_px": 4}, "set crop_scale to None"),
        ({"flip": 1.5}, "within 0 and 1"),
        ({"erase_mode": "noise"}, "unknown 'noise'; known: const, rand, pixel"),
        ({"interpolation": "nearest"}, "known: bilinear, bicubic, random"),
        ({"rand_augment": "rand-m9", "auto_augment": "imagenet"}, "in each other's place"),
        ({"rand_augment": "augmix-m3"}, "timm's word, such as rand-m9-mstd0.5-inc1"),
        ({"auto_augment": "original"}, "known: imagenet, cifar10, svhn"),
    ],
)
def test_a_policy_that_could_not_be_drawn_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Policy(**fields)


def test_a_recipe_may_write_ranges_as_lists() -> None:
    fields: dict[str, Any] = {"crop_scale": [0.8, 1.0], "crop_ratio": [0.75, 1.25]}
    assert Policy(**fields) == Policy((0.8, 1.0), (0.75, 1.25))


def test_jitter_gives_way_to_rand_augment() -> None:
    assert Policy(color_jitter=0.4).jitter == 0.4
    assert Policy(color_jitter=0.4, rand_augment="rand-m9").jitter == 0
    assert Policy(color_jitter=0.4, auto_augment="svhn").jitter == 0


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_makes_normalised_images_of_the_size_asked_for(name: str) -> None:
    picture = Image.new("RGB", (80, 64), (255, 0, 128))
    image = POLICIES[name].transform(48, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))(picture)
    assert (image.shape, image.dtype) == ((3, 48, 48), torch.float32)


def test_the_transforms_are_timms_and_torchvisions() -> None:
    def parts(policy: Policy) -> str:
        return str(policy.transform(32, (0.5,) * 3, (0.5,) * 3))

    rand = parts(POLICIES["mpcvit-cifar10"])
    assert "RandomResizedCropAndInterpolation(size=(32, 32), scale=(0.8, 1.0)" in rand
    assert "RandAugment(n=2" in rand
    assert "m=9, mstd=0.5" in rand
    assert "RandomErasing(p=0.25, mode=pixel" in rand
    assert "ColorJitter" not in rand
    tiny = parts(POLICIES["mpcvit-tiny-imagenet"])
    assert "AutoAugment(policy=AutoAugmentPolicy.IMAGENET" in tiny
    assert "RandomErasing(p=0.25, mode=const" in tiny
    assert "Crop" not in tiny
    assert "ColorJitter" in parts(Policy(color_jitter=0.4))
    assert "RandomCrop(size=(32, 32), padding=4" in parts(POLICIES["crop-flip"])


def test_full_magnitude_posterises_to_black_whatever_pillow_says() -> None:
    policy = replace(Policy(None, flip=0), rand_augment="rand-m10-p1-inc1-n1")
    transform = policy.transform(8, (0.0,) * 3, (1.0,) * 3)
    [_, rand, _] = transform.transforms  # type: ignore[attr-defined]
    rand.transforms[0].ops = [op for op in rand.transforms[0].ops if op.name == "PosterizeIncreasing"]
    assert not transform(Image.new("RGB", (8, 8), (255, 255, 255))).any()
