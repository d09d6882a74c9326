"""How training images are varied: the demo's small affine maps, and the recipes of the papers as one policy each."""

# B images, P pixels a side

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

Interpolation = Literal["bilinear", "bicubic", "random"]
EraseMode = Literal["const", "rand", "pixel"]
TORCHVISION_POLICIES = ("imagenet", "cifar10", "svhn")


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Random shifts, rotations and zooms, one draw for each image, applied to a whole batch at once."""

    shift_px: float = 2.0
    rotate_degrees: float = 10.0
    zoom: float = 0.1
    flip: bool = False

    def __call__(self, images: Tensor) -> Tensor:
        """The batch after one random affine map an image, drawn from the global generator; borders are extended."""
        count, side_px = len(images), images.shape[-1]
        draws = (torch.rand(4, count) * 2 - 1).to(images)
        angle = draws[0] * (self.rotate_degrees * torch.pi / 180)
        scale = 1 + draws[1] * self.zoom
        cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
        mirror = torch.where(torch.rand(count).to(images) < 0.5, -1.0, 1.0) if self.flip else torch.ones_like(angle)
        shift_x, shift_y = draws[2:] * (2 * self.shift_px / side_px)
        rows = torch.stack(
            [cos * mirror, -sin, shift_x, sin * mirror, cos, shift_y], dim=1
        )  # the first column mirrors x
        grid = F.affine_grid(rows.view(count, 2, 3), list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


@dataclass(frozen=True, slots=True)
class Policy:
    """A recipe's augmentation, in timm's order: crop, flip, RandAugment or AutoAugment or jitter, normalise, erase.

    `crop_scale` is the range of a random resized crop's area, None for none; `crop_padding_px` instead shifts images
    in a border of zeros. `rand_augment` is timm's word, such as "rand-m9-mstd0.5-inc1"; `auto_augment` names one of
    torchvision's policies. As in timm, `color_jitter` has a say only where neither is on. `erase_mode` is timm's:
    boxes of zeros ("const", after normalising: the mean), of one random colour ("rand"), of noise ("pixel").
    `interpolation` "random" draws bilinear or bicubic for each image.
    Raises ValueError for what could not be drawn.
    """

    crop_scale: tuple[float, float] | None = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    crop_padding_px: int = 0
    interpolation: Interpolation = "bicubic"
    flip: float = 0.5
    rand_augment: str | None = None
    auto_augment: str | None = None
    color_jitter: float = 0.0
    erase_probability: float = 0.0
    erase_mode: EraseMode = "pixel"

    def __post_init__(self) -> None:
        for field in ("crop_scale", "crop_ratio"):  # a recipe file has lists
            if isinstance(value := getattr(self, field), list):
                object.__setattr__(self, field, tuple(value))
        if self.crop_scale is not None and not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale must rise within (0, 1], got {self.crop_scale}")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"crop_ratio must rise from above 0, got {self.crop_ratio}")
        if self.crop_padding_px < 0 or (self.crop_padding_px and self.crop_scale is not None):
            raise ValueError(
                "crop_padding_px must be >= 0 and takes the place of a resized crop: set crop_scale to None"
            )
        if not (0 <= self.flip <= 1 and 0 <= self.erase_probability <= 1 and 0 <= self.color_jitter <= 1):
            raise ValueError("flip, erase_probability and color_jitter must be within 0 and 1")
        for value, known in ((self.interpolation, get_args(Interpolation)), (self.erase_mode, get_args(EraseMode))):
            if value not in known:
                raise ValueError(f"unknown {value!r}; known: {', '.join(known)}")
        if self.rand_augment is not None and self.auto_augment is not None:
            raise ValueError("rand_augment and auto_augment stand in each other's place; set one of them to None")
        if self.rand_augment is not None and not self.rand_augment.startswith("rand"):
            raise ValueError(f"rand_augment is timm's word, such as rand-m9-mstd0.5-inc1; got {self.rand_augment!r}")
        if self.auto_augment is not None and self.auto_augment not in TORCHVISION_POLICIES:
            raise ValueError(f"unknown auto_augment {self.auto_augment!r}; known: {', '.join(TORCHVISION_POLICIES)}")

    @property
    def jitter(self) -> float:
        """The strength of colour jitter that is in effect: 0 where RandAugment or AutoAugment takes its place."""
        return 0.0 if self.rand_augment or self.auto_augment else self.color_jitter

    def transform(
        self, image_px: int, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> Callable[[Image.Image], Tensor]:
        """The policy for one picture on a CPU, made of timm's and torchvision's own transforms; normalised floats.

        Draws from the global generators of torch, numpy and Python.
        """
        from timm.data.transforms_factory import create_transform
        from torchvision.transforms import AutoAugment, AutoAugmentPolicy, Compose

        parts: Any = create_transform(
            (3, image_px, image_px),
            is_training=True,
            scale=self.crop_scale,
            ratio=self.crop_ratio,
            hflip=self.flip,
            color_jitter=self.jitter or None,  # type: ignore[arg-type]
            auto_augment=self.rand_augment,
            interpolation=self.interpolation,
            mean=mean,
            std=std,
            re_prob=self.erase_probability,
            re_mode=self.erase_mode,
            separate=True,
        )
        first, second, last = parts
        for op in (op for step in second.transforms for op in getattr(step, "ops", ()) if "Posterize" in op.name):
            op.aug_fn = _posterize
        if self.crop_scale is None:
            first = Compose(self._whole_crop(image_px))
        if self.auto_augment:
            second = AutoAugment(AutoAugmentPolicy(self.auto_augment))
        return Compose([first, second, last])  # type: ignore[no-any-return]

    def _whole_crop(self, image_px: int) -> list[Callable[[Image.Image], Image.Image]]:
        """The first steps where the crop is not a resized one: the whole picture, shifted in a border of zeros."""
        from torchvision.transforms import InterpolationMode, RandomCrop, RandomHorizontalFlip, Resize

        steps: list[Callable[[Image.Image], Image.Image]] = [
            Resize((image_px, image_px), InterpolationMode.BICUBIC),
            RandomHorizontalFlip(self.flip),
        ]
        if self.crop_padding_px:
            steps.insert(1, RandomCrop(image_px, padding=self.crop_padding_px))
        return steps


def _posterize(picture: Image.Image, bits: int, **_: object) -> Image.Image:
    """timm's, which asks Pillow for 0 bits at full magnitude: black, until Pillow 13, which refuses."""
    from PIL import ImageOps

    return ImageOps.posterize(picture, bits) if bits > 0 else picture.point(lambda level: 0)


_RAND_AUGMENT = "rand-m9-mstd0.5-inc1"  # that of all four papers

# The configurations of MPCViT (specs: A1.9); they do not say how crops are interpolated, hence timm's default. Their
# colour jitter of 0.4 is not in effect beside RandAugment.
_MPCVIT = Policy(
    (0.8, 1.0), interpolation="random", rand_augment=_RAND_AUGMENT, color_jitter=0.4, erase_probability=0.25
)
# DeiT's, which ViTAS retrains with (B1.7) and ViT-ResNAS trains everything with (B.9).
_DEIT = Policy(rand_augment=_RAND_AUGMENT, color_jitter=0.4, erase_probability=0.25)

POLICIES: dict[str, Policy] = {
    "mpcvit-cifar10": _MPCVIT,
    "mpcvit-cifar100": _MPCVIT,
    # Images keep their 64 pixels; erased boxes are zero (A1.9).
    "mpcvit-tiny-imagenet": Policy(None, auto_augment="imagenet", erase_probability=0.25, erase_mode="const"),
    "mpcvit-imagenet": replace(_MPCVIT, crop_scale=(0.08, 1.0)),
    "vitas-weak": Policy(erase_probability=0.25),  # `deit_xaa_xcj`, for the supernet (B1.4)
    "vitas-strong": _DEIT,
    "resnas": _DEIT,
    "uvc": Policy(),  # a resized crop and a flip
    "crop-flip": Policy(None, crop_padding_px=4),  # what small images are mostly trained with
}
