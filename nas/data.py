"""Image sets as tensors: the embedded digits, and trees of class folders such as CIFAR-10.

Validation images serve every decision of a search; test images are read once, when a network is final.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# B images, C channels, P pixels a side

_SPLIT_SEED = 0  # one split for every run: accuracies of different seeds are accuracies on the same images


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Normalised float images (B, 3, P, P) and integer labels, in three disjoint parts.

    `mean` and `std` are those of the training images, by channel: `images * std + mean` is in [0, 1] again.
    Raises ValueError where images and labels disagree or a part is empty.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    val_images: Tensor
    val_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        for part in ("train", "val", "test"):
            images, labels = getattr(self, f"{part}_images"), getattr(self, f"{part}_labels")
            if len(images) == 0 or len(images) != len(labels):
                raise ValueError(
                    f"{self.name}: {part} has {len(images)} images and {len(labels)} labels; want equal and > 0"
                )

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def image_px(self) -> int:
        """Pixels along one side of an image."""
        return int(self.train_images.shape[-1])


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


@lru_cache(maxsize=1)
def digits(image_px: int = 32) -> Dataset:
    """scikit-learn's 1,797 handwritten digits (8x8), enlarged, in 3 equal channels: 1,200 train, 237 val, 360 test."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16  # grey levels are 0..16
    images = F.interpolate(images, size=(image_px, image_px), mode="bilinear", align_corners=False).expand(
        -1, 3, -1, -1
    )
    labels = torch.tensor(bunch.target, dtype=torch.int64)
    rest, test = stratified_split(labels, 360)
    train, val = (rest[part] for part in stratified_split(labels[rest], 237))
    parts = [(images[index], labels[index]) for index in (train, val, test)]
    return _normalised("digits", parts, tuple(str(name) for name in bunch.target_names))


def image_folder(path: Path, image_px: int = 32, val_fraction: float = 0.1) -> Dataset:
    """A tree `train/<class>/*`, `test/<class>/*` (and `val/<class>/*` if it exists), resized to `image_px`, in memory.

    Without `val/`, a stratified `val_fraction` of the training images is held out. Takes 12 bytes a pixel: CIFAR-10
    needs 0.7 GB. Raises ValueError naming the path and what was expected there.
    """
    names = _class_names(path / "train")
    for part in ("test", "val"):
        if part != "val" or (path / part).is_dir():
            found = _class_names(path / part)
            if found != names:
                odd = sorted(set(found) ^ set(names))[:3]
                raise ValueError(f"{path / part} has other classes than {path / 'train'}, for example {', '.join(odd)}")
    train, test = _read(path / "train", image_px), _read(path / "test", image_px)
    if (path / "val").is_dir():
        val = _read(path / "val", image_px)
    else:
        keep, held_out = stratified_split(train[1], max(len(names), round(val_fraction * len(train[1]))))
        train, val = (train[0][keep], train[1][keep]), (train[0][held_out], train[1][held_out])
    return _normalised(f"folder:{path}", [train, val, test], names)


DATASETS: dict[str, Callable[[int], Dataset]] = {"digits": digits}


def load(name: str | Dataset, image_px: int = 32) -> Dataset:
    """The data set called `name`: one of DATASETS, or `folder:PATH` for a tree of class folders; a Dataset is itself.

    Raises ValueError naming the known ones.
    """
    if isinstance(name, Dataset):
        return name
    if name in DATASETS:
        return DATASETS[name](image_px)
    if name.startswith("folder:"):
        return image_folder(Path(name.removeprefix("folder:")), image_px)
    nearest = difflib.get_close_matches(name, DATASETS, n=1)
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    raise ValueError(f"unknown data set {name!r}{hint} Known: {', '.join(DATASETS)}, or folder:PATH")


def stratified_split(labels: Tensor, held_out: int) -> tuple[Tensor, Tensor]:
    """Sorted indices of the images that stay and of `held_out` images in the class proportions; always the same ones.

    Raises ValueError where a class has fewer than 2 images or `held_out` is smaller than the number of classes.
    """
    from sklearn.model_selection import train_test_split

    everything = np.arange(len(labels))
    stay, out = train_test_split(everything, test_size=held_out, stratify=labels.numpy(), random_state=_SPLIT_SEED)
    return torch.from_numpy(np.sort(stay)), torch.from_numpy(np.sort(out))


def _normalised(name: str, parts: list[tuple[Tensor, Tensor]], class_names: tuple[str, ...]) -> Dataset:
    std, mean = torch.std_mean(parts[0][0], dim=(0, 2, 3))
    std = std.clamp_min(1e-6)  # a channel that never changes
    (train, val, test) = [((x - mean.view(-1, 1, 1)) / std.view(-1, 1, 1), y) for x, y in parts]
    return Dataset(name, *train, *val, *test, class_names, tuple(mean.tolist()), tuple(std.tolist()))


def _class_names(folder: Path) -> tuple[str, ...]:
    names = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir())) if folder.is_dir() else ()
    if not names:
        raise ValueError(f"{folder} is not a folder of class folders; expected {folder}/<class>/<image>.png or .jpg")
    return names


def _read(folder: Path, image_px: int) -> tuple[Tensor, Tensor]:
    """Images in [0, 1] and labels below `folder`, in sorted order."""
    from torchvision.datasets import ImageFolder

    try:
        tree = ImageFolder(str(folder))
    except FileNotFoundError as error:
        raise ValueError(f"{folder}: {str(error).splitlines()[0]}") from error
    images = np.empty((len(tree), image_px, image_px, 3), dtype=np.uint8)
    for index, (file, _) in enumerate(tree.samples):
        try:
            picture = tree.loader(file)
        except OSError as error:
            raise ValueError(f"{file} cannot be read as an image: {error}") from error
        images[index] = np.asarray(
            picture if picture.size == (image_px, image_px) else picture.resize((image_px, image_px))
        )
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255, torch.tensor(tree.targets)
