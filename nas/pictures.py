"""Trees of class folders as lists of files, and picture files as bytes in memory."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nas.data import FilesPart, ResidentPart


def class_names(folder: Path) -> tuple[str, ...]:
    """Names of the class folders in `folder`, sorted. Raises ValueError where there are none."""
    names = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir())) if folder.is_dir() else ()
    if not names:
        raise ValueError(f"{folder} is not a folder of class folders; expected {folder}/<class>/<image>.png or .jpg")
    return names


def class_tree(folder: Path, like: Path | None = None) -> FilesPart:
    """Every picture below `folder/<class>/`, sorted. Raises ValueError for an empty class, or others than in `like`."""
    from torchvision.datasets import ImageFolder

    names, expected = class_names(folder), class_names(like or folder)
    if names != expected:
        odd = ", ".join(sorted(set(names) ^ set(expected))[:3])
        raise ValueError(f"{folder} has other classes than {like}, for example {odd}")
    try:
        tree = ImageFolder(str(folder))
    except FileNotFoundError as error:
        raise ValueError(f"{folder}: {str(error).splitlines()[0]}") from error
    return FilesPart(tuple(file for file, _ in tree.samples), torch.tensor(tree.targets))


def read_picture(file: str) -> Image.Image:
    """A picture file in three channels. Raises ValueError naming a file that is missing, torn or no picture."""
    try:
        with Image.open(file) as picture:
            return picture.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:  # PIL's answers to a torn JPEG, PNG and TIFF
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{file} cannot be read as an image: {reason}; fetch it again") from error


def in_memory(part: FilesPart, image_px: int) -> ResidentPart:
    """The pictures of a part as bytes, `image_px` a side: 3 bytes a pixel, so that CIFAR-10 takes 0.2 GB."""
    images = np.empty((len(part), 3, image_px, image_px), dtype=np.uint8)
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # decoding and resizing leave Python's lock
        for index, levels in enumerate(threads.map(_levels, part.paths, repeat(image_px))):
            images[index] = levels
    return ResidentPart(torch.from_numpy(images), part.labels)


def resized(images: Tensor, image_px: int) -> Tensor:
    """Bytes (B, 3, P, P) at another side, smoothed where that is smaller."""
    from torchvision.transforms.v2.functional import InterpolationMode, resize

    if images.shape[-1] == image_px:
        return images
    enlarged: Tensor = resize(images, [image_px, image_px], interpolation=InterpolationMode.BICUBIC, antialias=True)
    return enlarged


def _levels(file: str, image_px: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    picture = read_picture(file)
    if picture.size != (image_px, image_px):
        picture = picture.resize((image_px, image_px))
    return np.asarray(picture).transpose(2, 0, 1)
