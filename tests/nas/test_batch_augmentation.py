"""The batched form of a policy against its form of one picture: the same distribution of images."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torch import Tensor

from nas.augmentation import POLICIES, Policy
from nas.batch_augmentation import augment, drawn_crops
from nas.drawn_steps import drawn_steps

MEAN, STD = (0.5, 0.45, 0.4), (0.25, 0.24, 0.26)
DRAWS = 2000
# 12 comparisons for each of 13 policies: at 1e-4 one set of seeds in a hundred would fail, and the seeds are fixed.
REFUSED = 1e-4


def picture(px: int = 16) -> Tensor:
    """A smooth coloured image without symmetry."""
    coarse = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(5))
    smooth = torch.nn.functional.interpolate(coarse, size=px, mode="bicubic").clamp(0, 1)
    return (smooth[0] * 255).round().to(torch.uint8)


def drawn_by_picture(policy: Policy, px: int) -> Tensor:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    transform = policy.transform(px, MEAN, STD)
    source = Image.fromarray(picture().permute(1, 2, 0).numpy())
    return torch.stack([transform(source) for _ in range(DRAWS)])


def drawn_by_batch(policy: Policy, px: int) -> Tensor:
    torch.manual_seed(2)
    return augment(policy, picture().expand(DRAWS, -1, -1, -1), MEAN, STD, px)


STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {
    "red": lambda images: images[:, 0].mean((1, 2)),
    "blue": lambda images: images[:, 2].mean((1, 2)),
    "contrast": lambda images: images.std((1, 2, 3)),
    "left or right": lambda images: (images[..., :8] - images[..., 8:]).mean((1, 2, 3)),
    "top or bottom": lambda images: (images[:, :, :8] - images[:, :, 8:]).mean((1, 2, 3)),
    "roughness": lambda images: images.diff(dim=3).abs().mean((1, 2, 3)),
    "colour": lambda images: (images[:, 0] - images[:, 1]).abs().mean((1, 2)),
    "darkest": lambda images: images.flatten(1).quantile(0.1, dim=1),
    "lightest": lambda images: images.flatten(1).quantile(0.9, dim=1),
    "corner": lambda images: images[:, :, 0, 0].mean(1),
    "centre": lambda images: images[:, :, 8, 8].mean(1),
    "levels": lambda images: torch.tensor([float(len(image.unique())) for image in (images * 50).round()]),
}

ALONE = Policy(None, flip=0.0)
CASES = {
    **{name: POLICIES[name] for name in ("mpcvit-cifar10", "mpcvit-tiny-imagenet", "resnas", "uvc", "crop-flip")},
    "jitter": replace(ALONE, color_jitter=0.4),
    "crop": Policy((0.3, 1.0), interpolation="random", flip=0.0),
    "erase const": replace(ALONE, erase_probability=0.5, erase_mode="const"),
    "erase rand": replace(ALONE, erase_probability=0.5, erase_mode="rand"),
    "erase pixel": replace(ALONE, erase_probability=1.0),
    "rand": replace(ALONE, rand_augment="rand-m7-n3-mstd1-p0.7"),
    "svhn": replace(ALONE, auto_augment="svhn"),
    "cifar10": replace(ALONE, auto_augment="cifar10"),
}


@pytest.mark.parametrize("name", CASES)
def test_both_forms_of_a_policy_draw_from_one_distribution(name: str) -> None:
    one, many = drawn_by_picture(CASES[name], 16), drawn_by_batch(CASES[name], 16)
    for statistic, of in STATISTICS.items():
        # Rounding, which the two forms do differently by one level, must not make two values of what is one.
        ours, theirs = ((of(images) * 25).round() / 25 for images in (many, one))
        assert ks_2samp(ours.numpy(), theirs.numpy(), method="asymp").pvalue > REFUSED, statistic
    spread = (one.var(0) + many.var(0)).div(DRAWS).sqrt() + 1 / (255 * 0.24) / 4
    assert float(((one.mean(0) - many.mean(0)).abs() / spread).max()) < 5  # 768 pixels, each within its own error


def test_the_comparison_tells_a_weaker_policy() -> None:
    """The equality above would see a magnitude of 6 for 9, or erasing at 0.15 for 0.25."""
    policy = POLICIES["mpcvit-cifar10"]
    one = drawn_by_picture(policy, 16)
    for weaker in (replace(policy, rand_augment="rand-m6-mstd0.5-inc1"), replace(policy, erase_probability=0.15)):
        many = drawn_by_batch(weaker, 16)
        pairs = [(of(many).numpy(), of(one).numpy()) for of in STATISTICS.values()]
        assert min(float(ks_2samp(*pair, method="asymp").pvalue) for pair in pairs) < REFUSED


def test_images_of_a_batch_have_draws_of_their_own() -> None:
    images = drawn_by_batch(POLICIES["mpcvit-cifar10"], 16)[:200]
    assert len({image.numpy().tobytes() for image in images}) >= 180  # some few are neither cropped nor changed


def test_the_global_generator_decides_all() -> None:
    first, second = (drawn_by_batch(POLICIES["resnas"], 24) for _ in range(2))
    assert torch.equal(first, second)


def test_crops_are_within_the_image_and_of_the_area_asked_for() -> None:
    torch.manual_seed(0)
    top, left, height, width = drawn_crops(4000, 32, (0.5, 0.8), (0.75, 4 / 3)).unbind(1)
    assert int((top + height).max()) <= 32
    assert int((left + width).max()) <= 32
    assert min(int(top.min()), int(left.min())) == 0
    area = height * width / 32**2
    assert 0.47 < float(area.min()) < 0.5 < float(area.mean()) < 0.8 < float(area.max()) < 0.83


def test_a_crop_that_never_fits_is_the_whole_image() -> None:
    assert drawn_crops(3, 32, (1.0, 1.0), (2.0, 3.0)).tolist() == [[0, 0, 32, 32]] * 3


def test_a_word_without_a_form_for_batches_is_refused() -> None:
    for word in ("rand-m9-t3a", "rand-m9-tweights"):
        with pytest.raises(ValueError, match=r"no form for batches: it (has Desat|weighs)"):
            drawn_steps(replace(ALONE, rand_augment=word), 4, 16)
    with pytest.raises(ValueError, match="no word of timm's"):
        drawn_steps(replace(ALONE, rand_augment="rand-x9"), 4, 16)


def test_a_size_that_nothing_makes_is_refused() -> None:
    with pytest.raises(ValueError, match="set crop_scale"):
        drawn_by_batch(POLICIES["crop-flip"], 24)
