"""Which training images judge a search: a fixed choice, the same in every run, kept as a file that is checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_SPLIT_SEED = 0  # one split for every run: accuracies of different seeds are accuracies on the same images


@dataclass(frozen=True, slots=True)
class Split:
    """Validation images of a search, as sorted positions in the training images that a data set comes with.

    `held_out` is how many were asked for: a count a class, or a fraction. `fingerprint` is that of the images' labels,
    and of their file names where they have files: positions mean nothing for others.
    """

    held_out: int | float
    images: int
    fingerprint: str
    validation: tuple[int, ...]

    def parts(self) -> tuple[Tensor, Tensor]:
        """Positions to train on, and positions to validate on."""
        stays = torch.ones(self.images, dtype=torch.bool)
        validation = torch.tensor(self.validation, dtype=torch.int64)
        stays[validation] = False
        return stays.nonzero().flatten(), validation

    def keep(self, path: Path) -> None:
        """Write the split to `path`, or where it is there already, check that it is this one.

        Raises ValueError where the file holds another split: a run was begun on other images.
        """
        if path.exists():
            if read_split(path) != self:
                raise ValueError(f"{path} holds another split; take another folder, or the data it was begun with")
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(path.name + ".new")
        fresh.write_text(json.dumps({"schema": 1, "record": "split", **asdict(self)}) + "\n")
        fresh.replace(path)


def draw_split(labels: Tensor, held_out: int | float, names: Iterable[str] = ()) -> Split:
    """The split of images with these labels (and file names): always the same one for the same images.

    An int holds that many images of every class out, a float a fraction of all images in the class proportions.
    Raises ValueError where that leaves a class without training or validation images.
    """
    smallest = int(torch.bincount(labels).min())
    if isinstance(held_out, int):
        if not 0 < held_out < smallest:
            raise ValueError(f"{held_out} validation images a class asked for; the smallest class has {smallest}")
        chosen = _of_every_class(labels, held_out)
    else:
        if not 0 < held_out < 1:
            raise ValueError(f"the validation fraction must be between 0 and 1, got {held_out}")
        chosen = stratified_split(labels, max(int(labels.max()) + 1, round(held_out * len(labels))))[1]
    return Split(held_out, len(labels), _fingerprint(labels, names), tuple(chosen.tolist()))


def read_split(path: Path) -> Split:
    """The split in a file that `Split.keep` wrote. Raises ValueError naming the file where it holds none."""
    try:
        row = json.loads(path.read_text())
        if (row.pop("schema"), row.pop("record")) != (1, "split"):
            raise ValueError("not schema 1 of a split")
        return Split(**{**row, "validation": tuple(row["validation"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a split written here ({error}); remove it to draw one") from error


def demand_split_of(path: Path, labels: Tensor, names: Iterable[str] = ()) -> Split:
    """The split in `path`, which must be one of images with these labels and file names (ValueError)."""
    split = read_split(path)
    if (split.images, split.fingerprint) != (len(labels), _fingerprint(labels, names)):
        raise ValueError(f"{path} splits {split.images} other images; these are {len(labels)}: data have changed")
    return split


def stratified_split(labels: Tensor, held_out: int) -> tuple[Tensor, Tensor]:
    """Sorted positions of the images that stay and of `held_out` images in the class proportions; always the same ones.

    Raises ValueError where a class has fewer than 2 images or `held_out` is smaller than the number of classes.
    """
    from sklearn.model_selection import train_test_split

    everything = np.arange(len(labels))
    stay, out = train_test_split(everything, test_size=held_out, stratify=labels.numpy(), random_state=_SPLIT_SEED)
    return torch.from_numpy(np.sort(stay)), torch.from_numpy(np.sort(out))


def _of_every_class(labels: Tensor, count: int) -> Tensor:
    """Sorted positions of `count` random images of each class."""
    generator = np.random.RandomState(_SPLIT_SEED)  # its stream is the same in every release of numpy
    shuffled = torch.from_numpy(generator.permutation(len(labels)))
    by_class = shuffled[torch.argsort(labels[shuffled], stable=True)]
    sizes = torch.bincount(labels)
    starts = sizes.cumsum(0) - sizes
    return by_class[(starts[:, None] + torch.arange(count)).flatten()].sort().values


def _fingerprint(labels: Tensor, names: Iterable[str]) -> str:
    digest = hashlib.sha256(labels.to(torch.int64).numpy().tobytes())
    for name in names:
        digest.update(name.encode() + b"\0")
    return digest.hexdigest()[:16]
