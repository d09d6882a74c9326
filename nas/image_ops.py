"""Operations on batches of images as bytes, each image with an argument of its own, on any device.

Every one gives what PIL gives for the same argument, within one level of rounding: tests hold them against it.
"""

# B images, C channels, H rows, W columns, L levels

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Table = Literal["AutoContrast", "Equalize", "Invert", "Posterize", "Solarize", "SolarizeAdd"]
Blend = Literal["Color", "Contrast", "Brightness", "Sharpness"]
NEAREST, BILINEAR, BICUBIC = 0, 1, 2


@lru_cache(maxsize=64)
def per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Values by channel as a tensor (C, 1, 1), made once a device: making one there waits for all that is under way."""
    return torch.tensor(values, device=device).view(-1, 1, 1)


def look_up(images: Tensor, tables_BCL: Tensor) -> Tensor:
    """Each byte replaced by the entry of its image's and channel's table."""
    indices = images.flatten(2).to(torch.int64)
    return tables_BCL.clamp(0, 255).to(torch.uint8).gather(2, indices).view_as(images)


def table(op: Table, images: Tensor, argument_B: Tensor) -> Tensor:
    """The table (B, C, 256) by which `op` replaces levels, as floats of whole numbers.

    Arguments: bits to keep (Posterize), the first inverted level (Solarize), what dark levels gain (SolarizeAdd).
    """
    levels = torch.arange(256.0, device=images.device).expand(*images.shape[:2], 256)
    argument = argument_B.view(-1, 1, 1)
    if op == "Invert":
        return 255 - levels
    if op == "Posterize":
        step = torch.exp2(8 - argument)
        return (levels / step).floor() * step
    if op == "Solarize":
        return torch.where(levels < argument, levels, 255 - levels)
    if op == "SolarizeAdd":
        return torch.where(levels < 128, levels + argument, levels)
    return _contrast_table(images, levels) if op == "AutoContrast" else _equal_table(images, levels)


def _contrast_table(images: Tensor, levels: Tensor) -> Tensor:
    planes = images.flatten(2)
    low, high = planes.amin(2, keepdim=True).float(), planes.amax(2, keepdim=True).float()
    stretched = ((levels - low) * 255 / (high - low)).floor()
    return torch.where(high > low, stretched, levels)


def _equal_table(images: Tensor, levels: Tensor) -> Tensor:
    """PIL's equalisation: the last level present is left out of the step between levels."""
    planes = images.flatten(2).to(torch.int64)
    counts = torch.zeros_like(levels, dtype=torch.int64).scatter_add_(2, planes, torch.ones_like(planes))
    last = counts.gather(2, planes.amax(2, keepdim=True))
    step = (planes.shape[2] - last) // 255
    before = counts.cumsum(2) - counts
    equal = (step // 2 + before) // step.clamp_min(1)
    return torch.where(step > 0, equal.float(), levels)


def blend(op: Blend, images: Tensor, factor_B: Tensor) -> Tensor:
    """PIL's ImageEnhance: from a plain picture at factor 0 through the image at 1 and beyond, cut off at 0 and 255."""
    levels = images.float()
    if op == "Brightness":
        plain = torch.zeros_like(levels)
    elif op == "Sharpness":
        plain = _smooth(levels)
    else:
        plain = _grey(images)
        if op == "Contrast":
            plain = (plain.mean((1, 2, 3), keepdim=True) + 0.5).floor()
    factor = factor_B.view(-1, 1, 1, 1)
    return (plain + factor * (levels - plain)).clamp(0, 255).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    """PIL's luminance (B, 1, H, W), in its fixed point of 16 bits."""
    red, green, blue = images.to(torch.int32).unbind(1)
    return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16).unsqueeze(1).float()


def _smooth(levels: Tensor) -> Tensor:
    """PIL's SMOOTH filter; the outermost pixels stay as they are."""
    kernel = torch.ones(1, 1, 3, 3, device=levels.device)
    kernel[0, 0, 1, 1] = 5
    smooth = levels.clone()
    inner = F.conv2d(levels.flatten(0, 1).unsqueeze(1), kernel) / 13  # whole numbers below 2^24: exact
    smooth[:, :, 1:-1, 1:-1] = (inner + 0.5).floor().view(*levels.shape[:2], *inner.shape[2:])
    return smooth


def affine(images: Tensor, matrix_B6: Tensor, interpolation_B: Tensor, outside_C11: Tensor) -> Tensor:
    """PIL's Image.transform(AFFINE): where each pixel comes from, by 6 numbers an image; `outside` if from outside.

    `interpolation_B` is NEAREST, BILINEAR or BICUBIC for each image.
    """
    count, channels, height, width = images.shape
    a, b, c, d, e, f = matrix_B6.view(-1, 6, 1, 1).unbind(1)
    x = torch.arange(width, device=images.device) + 0.5
    y = torch.arange(height, device=images.device).view(-1, 1) + 0.5
    from_x, from_y = a * x + b * y + c, d * x + e * y + f
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    way = interpolation_B.view(-1, 1, 1)
    columns, column_weights = _taps(from_x, way, width)
    rows, row_weights = _taps(from_y, way, height)
    planes = images.flatten(2).float()
    total = torch.zeros_like(planes)
    for row, row_weight in zip(rows, row_weights, strict=True):
        line = torch.zeros_like(planes)
        for column, weight in zip(columns, column_weights, strict=True):
            index = (row * width + column).view(count, 1, -1).expand(-1, channels, -1)
            line += planes.gather(2, index) * weight.view(count, 1, -1)
        total += line * row_weight.view(count, 1, -1)
    levels = (total + 1e-3).clamp(0, 255).to(torch.uint8).view_as(images)  # PIL cuts off; 1e-3 is our own rounding
    return torch.where(inside.unsqueeze(1), levels, outside_C11.to(torch.uint8))


def _taps(position: Tensor, way: Tensor, size: int) -> tuple[list[Tensor], list[Tensor]]:
    """The four pixels along one axis that make a value at `position`, and their weights (PIL's cubic here: a = -1)."""
    shifted = position - 0.5
    first = shifted.floor()
    t = shifted - first
    nearest = position.floor() - first  # 0 or 1: which of the two middle taps
    a = -1
    weights = []
    for tap in (-1, 0, 1, 2):
        far = (t - tap).abs()
        cubic = ((a + 2) * far - (a + 3)) * far * far + 1 if tap in (0, 1) else (((far - 5) * far + 8) * far - 4) * a
        linear = (1 - far).clamp_min(0)
        weights.append(
            torch.where(way == BICUBIC, cubic, torch.where(way == BILINEAR, linear, (nearest == tap).float()))
        )
    taps = [(first + tap).clamp(0, size - 1).to(torch.int64) for tap in (-1, 0, 1, 2)]
    return taps, weights


def resized_crop(images: Tensor, box_B4: Tensor, image_px: int, bicubic_B: Tensor) -> Tensor:
    """PIL's crop and resize of one box (top, left, height, width) an image, horizontally first, as bytes."""
    top, left, height, width = box_B4.unbind(1)
    across = _resize_weights(left, width, images.shape[3], image_px, bicubic_B)
    down = _resize_weights(top, height, images.shape[2], image_px, bicubic_B)
    count, channels, rows, columns = images.shape
    levels = _to_bytes(images.float().view(count, -1, columns).bmm(across.transpose(1, 2)))
    turned = levels.view(count, channels, rows, image_px).transpose(2, 3).reshape(count, -1, rows)
    turned = _to_bytes(turned.bmm(down.transpose(1, 2))).to(torch.uint8)
    return turned.view(count, channels, image_px, image_px).transpose(2, 3).contiguous()


def _to_bytes(levels: Tensor) -> Tensor:
    return (levels + 0.5).floor().clamp(0, 255)


def _resize_weights(start_B: Tensor, length_B: Tensor, size: int, wanted: int, bicubic_B: Tensor) -> Tensor:
    """Weights (B, wanted, size) by which PIL resizes the stretch from `start` to `wanted` pixels."""
    scale = (length_B / wanted).view(-1, 1, 1)
    wider = scale.clamp_min(1)  # smaller pictures are smoothed
    cubic = bicubic_B.view(-1, 1, 1)
    center = (torch.arange(wanted, device=start_B.device).view(1, -1, 1) + 0.5) * scale
    place = torch.arange(size, device=start_B.device).view(1, 1, -1) - start_B.view(-1, 1, 1)
    reach = torch.where(cubic, 2.0, 1.0) * wider
    low = (center - reach + 0.5).floor().clamp_min(0)
    high = torch.minimum((center + reach + 0.5).floor(), length_B.view(-1, 1, 1))
    far = ((place - center + 0.5) / wider).abs()
    near = ((1.5 * far - 2.5) * far * far) + 1  # PIL's cubic here: a = -0.5
    beyond = ((far - 5) * far + 8) * far * -0.5 + 2
    weights = torch.where(cubic, torch.where(far < 1, near, beyond * (far < 2)), (1 - far).clamp_min(0))
    weights = weights * ((place >= low) & (place < high))
    return weights / weights.sum(2, keepdim=True)


def shifted(images: Tensor, top_B: Tensor, left_B: Tensor) -> Tensor:
    """Each image moved up by `top` and left by `left` pixels (negative: down, right), zeros behind it."""
    height, width = images.shape[2:]
    rows = torch.arange(height, device=images.device) + top_B.view(-1, 1)
    columns = torch.arange(width, device=images.device) + left_B.view(-1, 1)
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    index = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]
    moved = images.flatten(2).gather(2, index.view(len(images), 1, -1).expand(-1, images.shape[1], -1))
    return moved.view_as(images) * inside.unsqueeze(1)
