"""Image sets: images of a part in memory or as files, three disjoint parts, and the names by which they are loaded.

Validation images serve every decision of a search; test images are read once, when a network is final.
"""

# B images, P pixels a side

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from nas.augmentation import Augmentation as Augmentation
from nas.image_ops import per_channel
from nas.splits import Split


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class ResidentPart:
    """Images in memory, on any device: (B, 3, P, P), bytes of 0..255 or floats in [0, 1], and integer labels."""

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        _demand_pairs(len(self.images), len(self.labels))

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, positions: Tensor) -> ResidentPart:
        """Only the images at these positions."""
        return ResidentPart(self.images[positions], self.labels[positions])

    def on(self, device: torch.device) -> ResidentPart:
        """The same images on `device`; itself where they are there."""
        if self.images.device == device:
            return self
        return ResidentPart(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, slots=True, eq=False)
class FilesPart:
    """Images that are read when they are needed: files below a folder, and their integer labels."""

    paths: Sequence[str]
    labels: Tensor

    def __post_init__(self) -> None:
        _demand_pairs(len(self.paths), len(self.labels))

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, positions: Tensor) -> FilesPart:
        """Only the images at these positions."""
        return FilesPart(tuple(self.paths[position] for position in positions.tolist()), self.labels[positions])


Part = ResidentPart | FilesPart


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels in three disjoint parts.

    `mean` and `std` are by channel, of levels in [0, 1]: published ones where a data set has them, else those of the
    training images. `split` says which training images `val` is, None where the data come with a part for it. Raises
    ValueError where a part is empty or a label is of no class.
    """

    name: str
    train: Part
    val: Part
    test: Part
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_px: int
    split: Split | None = None

    def __post_init__(self) -> None:
        for role, part in (("train", self.train), ("val", self.val), ("test", self.test)):
            if len(part) == 0:
                raise ValueError(f"{self.name}: {role} has no images")
            low, high = int(part.labels.min()), int(part.labels.max())
            if low < 0 or high >= len(self.class_names):
                raise ValueError(f"{self.name}: labels of {role} are {low}..{high} for {len(self.class_names)} classes")

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def normalise(self, images: Tensor) -> Tensor:
        """(levels - mean) / std as floats, of bytes or of levels in [0, 1]; on their device."""
        levels = images.float() / 255 if images.dtype == torch.uint8 else images
        return (levels - per_channel(self.mean, levels.device)) / per_channel(self.std, levels.device)

    @cached_property
    def train_images(self) -> Tensor:
        """All training images, normalised; only of a data set in memory."""
        return self._normalised(self.train)

    @cached_property
    def val_images(self) -> Tensor:
        """All validation images, normalised; only of a data set in memory."""
        return self._normalised(self.val)

    @cached_property
    def test_images(self) -> Tensor:
        """All test images, normalised; only of a data set in memory."""
        return self._normalised(self.test)

    @property
    def train_labels(self) -> Tensor:
        """Labels of the training images."""
        return self.train.labels

    @property
    def val_labels(self) -> Tensor:
        """Labels of the validation images."""
        return self.val.labels

    @property
    def test_labels(self) -> Tensor:
        """Labels of the test images."""
        return self.test.labels

    def _normalised(self, part: Part) -> Tensor:
        if isinstance(part, FilesPart):
            raise ValueError(f"{self.name} is too large to be one tensor; go through nas.loading.evaluation_batches")
        return self.normalise(part.images)


def load(name: str | Dataset, image_px: int = 32, split: Path | None = None) -> Dataset:
    """The data set called `name`, `image_px` pixels a side; a Dataset is itself.

    Names are KIND or KIND:PATH of `nas.datasets.DATASETS`, with `?val=25` for 25 validation images a class of the
    training images or `?val=0.1` for a tenth of them. `split` is a file with the split to take, see `nas.splits`.
    Raises ValueError naming what is known, or the path and what was expected there.
    """
    from nas.datasets import DATASETS, finish

    if isinstance(name, Dataset):
        return name
    source, _, asked = name.partition("?val=")
    kind, colon, path = source.partition(":")
    if kind not in DATASETS or DATASETS[kind].on_disk != bool(colon and path):
        nearest = difflib.get_close_matches(kind, DATASETS, n=1)
        hint = f"; did you mean {DATASETS[nearest[0]].form}?" if nearest else ""
        raise ValueError(f"unknown data set {name!r}{hint} Known: {', '.join(row.form for row in DATASETS.values())}")
    held_out = _held_out(name, asked)
    return finish(name, DATASETS[kind].read(Path(path), image_px), image_px, held_out, split)


def _held_out(name: str, asked: str) -> int | float | None:
    if not asked:
        return None
    try:
        return int(asked) if asked.isdecimal() else float(asked)
    except ValueError as error:
        raise ValueError(f"{name!r}: want ?val=25 (images a class) or ?val=0.1 (a fraction), got {asked!r}") from error


def _demand_pairs(images: int, labels: int) -> None:
    if images != labels:
        raise ValueError(f"{images} images and {labels} labels; want as many of each")
