"""A policy on a batch of images, on their device: each image has its own draws, those of one operation go together.

Equal in distribution to the form of one picture on a CPU (`Policy.transform`). All decisions are drawn on the CPU from
torch's global generator, so that no GPU is waited for and every device decides alike; only the noise of erased boxes is
drawn where the images are.
"""

# B images (of a batch, or those of it that share something), C channels, P pixels a side

from __future__ import annotations

import math

import torch
from torch import Tensor

from nas.augmentation import Policy
from nas.drawn_steps import BLENDS, MOVES, TABLES, Step, drawn_steps
from nas.image_ops import affine, blend, look_up, per_channel, resized_crop, shifted, table

_ATTEMPTS = 10  # timm's, for a box that fits
_ERASED_AREA, _ERASED_RATIO = (0.02, 1 / 3), (0.3, 1 / 0.3)  # timm's RandomErasing


def augment(policy: Policy, images: Tensor, mean: tuple[float, ...], std: tuple[float, ...], image_px: int) -> Tensor:
    """Bytes (B, 3, P, P) to augmented, normalised floats (B, 3, image_px, image_px), on the same device.

    Raises ValueError for a word of RandAugment whose operations have no form for batches.
    """
    device = images.device
    images = _cropped(policy, images, image_px)
    flip = placed(torch.rand(len(images)) < policy.flip, device).view(-1, 1, 1, 1)
    images = torch.where(flip, images.flip(-1), images)
    outside = (0.0,) * 3 if policy.auto_augment else tuple(min(255.0, float(round(255 * value))) for value in mean)
    for step in drawn_steps(policy, len(images), image_px):
        images = apply(step, images, per_channel(outside, device))
    levels = (images.float() / 255 - per_channel(mean, device)) / per_channel(std, device)
    return _erased(policy, levels)


def apply(step: Step, images: Tensor, outside_C11: Tensor) -> Tensor:
    """The batch after one step; images without an operation stay as they are, what comes from outside is `outside`."""
    images = images.clone()
    for ops, change in ((TABLES, _tabled), (BLENDS, _blended), (MOVES, _moved)):
        chosen = step.among(ops)
        if len(chosen):
            places = placed(chosen, images.device)
            images.index_copy_(0, places, change(step.take(chosen), images[places], outside_C11))
    return images


def _tabled(step: Step, images: Tensor, _: Tensor) -> Tensor:
    tables = torch.empty(*images.shape[:2], 256, device=images.device)
    for op in TABLES:
        chosen = step.among((op,))
        if len(chosen):
            places, argument = placed(chosen, images.device), placed(step.argument[chosen], images.device)
            tables.index_copy_(0, places, table(op, images[places], argument))
    return look_up(images, tables)


def _blended(step: Step, images: Tensor, _: Tensor) -> Tensor:
    result = torch.empty_like(images)
    for op in BLENDS:
        chosen = step.among((op,))
        if len(chosen):
            places, factor = placed(chosen, images.device), placed(step.argument[chosen], images.device)
            result.index_copy_(0, places, blend(op, images[places], factor))
    return result


def _moved(step: Step, images: Tensor, outside_C11: Tensor) -> Tensor:
    matrix = placed(_matrices(step, images.shape[-1]), images.device)
    return affine(images, matrix, placed(step.interpolation, images.device), outside_C11)


def _matrices(step: Step, image_px: int) -> Tensor:
    """Where each pixel comes from (B, 6), as PIL's affine transforms take it: a rotation is about the centre."""
    identity = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    matrix = identity.repeat(len(step.argument), 1)
    for op, place in (("ShearX", 1), ("TranslateX", 2), ("ShearY", 3), ("TranslateY", 5)):
        chosen = step.among((op,))
        matrix[chosen, place] = step.argument[chosen].double()
    turned = step.among(("Rotate",))
    angle = -torch.deg2rad(step.argument[turned].double())
    cos, sin, middle = angle.cos(), angle.sin(), image_px / 2
    rows = [cos, sin, middle - middle * (cos + sin), -sin, cos, middle - middle * (cos - sin)]
    matrix[turned] = torch.stack(rows, 1)
    return matrix.float()


def _cropped(policy: Policy, images: Tensor, image_px: int) -> Tensor:
    device, count, padding = images.device, len(images), policy.crop_padding_px
    if policy.crop_scale is not None:
        bicubic = torch.rand(count) < 0.5 if policy.interpolation == "random" else torch.ones(count, dtype=torch.bool)
        if policy.interpolation == "bilinear":
            bicubic = ~bicubic
        box = drawn_crops(count, images.shape[-1], policy.crop_scale, policy.crop_ratio)
        return resized_crop(images, placed(box, device), image_px, placed(bicubic, device))
    if images.shape[-1] != image_px:
        raise ValueError(f"images of {images.shape[-1]} px and no crop that makes them {image_px} px; set crop_scale")
    if not padding:
        return images
    top, left = torch.randint(-padding, padding + 1, (2, count))
    return shifted(images, placed(top, device), placed(left, device))


def drawn_crops(count: int, side_px: int, scale: tuple[float, float], ratio: tuple[float, float]) -> Tensor:
    """Boxes (top, left, height, width) of random area and shape, the whole image where ten attempts do not fit.

    Unlike timm's, the box of last resort is that of a square image.
    """
    width, height = _drawn_sides(count, side_px, scale, ratio)
    fits = (width <= side_px) & (height <= side_px)
    first, found = fits.to(torch.uint8).argmax(0, keepdim=True), fits.any(0)
    width, height = (torch.where(found, sides.gather(0, first)[0], side_px) for sides in (width, height))
    top, left = ((torch.rand(count) * (side_px - sides + 1)).floor() for sides in (height, width))
    return torch.stack([top, left, height, width], 1)


def _drawn_sides(
    count: int, side_px: int, area: tuple[float, float], ratio: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Ten attempts at boxes (10, B) of an area uniform as a share, and a shape whose logarithm is uniform."""
    areas, shapes = torch.rand(2, _ATTEMPTS, count)
    areas = (area[0] + areas * (area[1] - area[0])) * side_px**2
    shapes = (math.log(ratio[0]) + shapes * math.log(ratio[1] / ratio[0])).exp()
    return (areas * shapes).sqrt().round(), (areas / shapes).sqrt().round()


def _erased(policy: Policy, levels: Tensor) -> Tensor:
    """timm's RandomErasing: a box of noise, colour or zeros in some normalised images; changes them in place."""
    if policy.erase_probability == 0:
        return levels
    count, device, side_px = len(levels), levels.device, levels.shape[-1]
    height, width = _drawn_sides(count, side_px, _ERASED_AREA, _ERASED_RATIO)
    fits = (width < side_px) & (height < side_px)
    first = fits.to(torch.uint8).argmax(0, keepdim=True)
    width, height = width.gather(0, first)[0], height.gather(0, first)[0]
    top, left = ((torch.rand(count) * (side_px - sides + 1)).floor() for sides in (height, width))
    chosen = ((torch.rand(count) < policy.erase_probability) & fits.any(0)).nonzero().flatten()
    box = placed(torch.stack([top, top + height, left, left + width])[:, chosen], device).unsqueeze(2)
    places, line = placed(chosen, device), torch.arange(side_px, device=device)
    rows, columns = (line >= box[0]) & (line < box[1]), (line >= box[2]) & (line < box[3])
    within = (rows[:, :, None] & columns[:, None, :]).unsqueeze(1)
    shape = (len(chosen), levels.shape[1], *((side_px, side_px) if policy.erase_mode == "pixel" else (1, 1)))
    fresh = torch.zeros(shape, device=device) if policy.erase_mode == "const" else torch.randn(shape, device=device)
    return levels.index_copy_(0, places, torch.where(within, fresh, levels[places]))


def placed(values: Tensor, device: torch.device) -> Tensor:
    """The same values on `device`, without waiting for what is under way there."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values
