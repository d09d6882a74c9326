"""The layouts that data sets have on disk, one function and one row each, and the two that need no disk."""

# B images, C channels, P pixels a side

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nas.array_files import cifar_pickle, cifar_pickle_names, idx_array
from nas.data import Dataset, FilesPart, Part, ResidentPart
from nas.pictures import class_names, class_tree, in_memory, resized
from nas.splits import demand_split_of, draw_split, stratified_split

_IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Of the CIFAR and Tiny-ImageNet configurations of MPCViT (specs: A1.9).
_CIFAR10_STATISTICS = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
_CIFAR100_STATISTICS = ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
_TINY_STATISTICS = ((0.480, 0.448, 0.397), (0.272, 0.265, 0.274))

Statistics = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class Source:
    """What a layout holds, before validation images are held out and pictures are read into memory.

    Without `statistics` those of the training images are taken. `streamed` leaves pictures on disk. `held_out` is how
    many training images validate where no one asks for another number and there is no `val`.
    """

    train: Part
    test: Part
    class_names: tuple[str, ...]
    statistics: Statistics | None = None
    val: Part | None = None
    streamed: bool = False
    held_out: int | float = 0.1


def finish(name: str, source: Source, image_px: int, held_out: int | float | None, split_file: Path | None) -> Dataset:
    """The data set of a source: split as `split_file` says, else as asked, else by its own part or number."""
    train, val, split = source.train, source.val, None
    if val is not None and (held_out is not None or split_file is not None):
        raise ValueError(f"{name} comes with validation images of its own; leave out ?val and the split file")
    if val is None:
        files = [_below_class(path) for path in train.paths] if isinstance(train, FilesPart) else []
        if split_file is not None:
            split = demand_split_of(split_file, train.labels, files)
        else:
            split = draw_split(train.labels, source.held_out if held_out is None else held_out, files)
        train, val = (train.take(positions) for positions in split.parts())
    parts = [part if source.streamed else _resident(part, image_px) for part in (train, val, source.test)]
    mean, std = source.statistics or _statistics(parts[0])
    return Dataset(name, parts[0], parts[1], parts[2], source.class_names, mean, std, image_px, split)


def _below_class(path: str) -> str:
    return "/".join(Path(path).parts[-2:])


def _resident(part: Part, image_px: int) -> Part:
    if isinstance(part, FilesPart):
        return in_memory(part, image_px)
    return ResidentPart(resized(part.images, image_px), part.labels)


def _statistics(part: Part) -> Statistics:
    if isinstance(part, FilesPart):
        raise ValueError("a source that is streamed states its mean and std")
    if part.images.dtype != torch.uint8:
        std, mean = torch.std_mean(part.images, dim=(0, 2, 3))
    else:
        counts = torch.stack([torch.bincount(plane.flatten(), minlength=256) for plane in part.images.unbind(1)])
        levels, share = torch.arange(256) / 255, counts.double() / counts.sum(1, keepdim=True)
        mean = (share * levels).sum(1)
        std = ((share * levels.square()).sum(1) - mean.square()).clamp_min(0).sqrt()
    std = std.clamp_min(1e-6)  # a channel that never changes
    return tuple(mean.tolist()), tuple(std.tolist())


@lru_cache(maxsize=1)
def _digits(_: Path, image_px: int) -> Source:
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
    parts = [ResidentPart(images[positions], labels[positions]) for positions in (train, val, test)]
    return Source(parts[0], parts[2], tuple(str(name) for name in bunch.target_names), val=parts[1])


def _synthetic(_: Path, image_px: int) -> Source:
    """10 classes of coloured patterns, each moved at random and under noise: 2,000 train, 500 val, 500 test."""
    generator = np.random.RandomState(0)  # its stream is the same in every release of numpy
    coarse = torch.from_numpy(generator.uniform(size=(10, 3, 4, 4))).float()
    patterns = F.interpolate(coarse, size=(image_px, image_px), mode="bilinear", align_corners=False)
    parts = []
    for count in (2000, 500, 500):
        labels = torch.arange(count) % 10
        shifts = generator.randint(-(image_px // 8), image_px // 8 + 1, size=(count, 2)).tolist()
        moved = torch.stack(
            [patterns[label].roll(shift, dims=(1, 2)) for label, shift in zip(labels.tolist(), shifts, strict=True)]
        )
        noise = torch.from_numpy(generator.normal(scale=0.2, size=moved.shape)).float()
        parts.append(ResidentPart(((moved + noise).clamp(0, 1) * 255).round().to(torch.uint8), labels))
    return Source(parts[0], parts[2], tuple(f"pattern {index}" for index in range(10)), val=parts[1])


def _folder(path: Path, _: int) -> Source:
    """`train/<class>/*`, `test/<class>/*`, and `val/<class>/*` if it exists."""
    train = class_tree(path / "train")
    val = class_tree(path / "val", like=path / "train") if (path / "val").is_dir() else None
    return Source(train, class_tree(path / "test", like=path / "train"), class_names(path / "train"), val=val)


def _cifar10(path: Path, image_px: int) -> Source:
    return _cifar(path, image_px, "cifar-10-batches-py", 10, _CIFAR10_STATISTICS)


def _cifar100(path: Path, image_px: int) -> Source:
    return _cifar(path, image_px, "cifar-100-python", 100, _CIFAR100_STATISTICS)


def _cifar(path: Path, image_px: int, folder: str, classes: int, statistics: Statistics) -> Source:
    """The pickles in `path` or `path/<folder>`, else a tree of class folders."""
    within = path / folder if (path / folder).is_dir() else path
    if (within / ("batches.meta" if classes == 10 else "meta")).is_file():
        train_files = [f"data_batch_{index}" for index in range(1, 6)] if classes == 10 else ["train"]
        test_file = "test_batch" if classes == 10 else "test"
        batches = [cifar_pickle(within / file, classes) for file in train_files]
        train = ResidentPart(torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches]))
        return Source(
            train,
            ResidentPart(*cifar_pickle(within / test_file, classes)),
            cifar_pickle_names(within, classes),
            statistics,
        )
    if not (path / "train").is_dir():
        raise ValueError(f"{path} holds no CIFAR-{classes}; expected {folder}/ with its pickles, or train/ and test/")
    tree = _folder(path, image_px)
    if len(tree.class_names) != classes:
        raise ValueError(f"{path / 'train'} has {len(tree.class_names)} class folders; CIFAR-{classes} has {classes}")
    return Source(tree.train, tree.test, tree.class_names, statistics, val=tree.val)


def _tiny_imagenet(path: Path, _: int) -> Source:
    """`wnids.txt`, `train/<wnid>/images/*`, `val/images/*` under `val/val_annotations.txt`; its val is our test."""
    if not (path / "wnids.txt").is_file():
        raise ValueError(f"{path} holds no Tiny-ImageNet; expected wnids.txt, train/, val/val_annotations.txt")
    listed = sorted((path / "wnids.txt").read_text().split())
    train, names = class_tree(path / "train"), class_names(path / "train")
    if list(names) != listed:
        odd = ", ".join(sorted(set(names) ^ set(listed))[:3])
        raise ValueError(f"{path / 'train'} has other classes than {path / 'wnids.txt'}, for example {odd}")
    return Source(train, _annotated(path / "val", names), names, _TINY_STATISTICS)


def _annotated(folder: Path, names: tuple[str, ...]) -> FilesPart:
    """The pictures in `folder/images`, each with its line in `folder/val_annotations.txt`."""
    annotations = folder / "val_annotations.txt"
    if not annotations.is_file():
        raise ValueError(f"{annotations} is missing; expected a line <image> <wnid> ... for each picture in images/")
    labels = {}
    for number, line in enumerate(annotations.read_text().splitlines(), 1):
        words = line.split()
        if len(words) < 2 or words[1] not in names:
            raise ValueError(f"{annotations}, line {number}: expected <image> <wnid of train/> ..., got {line!r}")
        labels[words[0]] = names.index(words[1])
    pictures = sorted(entry.name for entry in (folder / "images").iterdir()) if (folder / "images").is_dir() else []
    if set(pictures) != set(labels):
        odd = sorted(set(pictures) ^ set(labels))
        raise ValueError(
            f"{folder / 'images'} and {annotations} name different pictures: {len(odd)}, for example {odd[0]}"
        )
    return FilesPart(
        tuple(str(folder / "images" / name) for name in pictures), torch.tensor([labels[name] for name in pictures])
    )


def _imagenet(path: Path, _: int) -> Source:
    """`train/<wnid>/*` and `val/<wnid>/*`, read while training; its val is our test, 25 a class validate (B.6)."""
    train = class_tree(path / "train")
    test = class_tree(path / "val", like=path / "train")
    return Source(train, test, class_names(path / "train"), _IMAGENET_STATISTICS, streamed=True, held_out=25)


def _idx(path: Path, _: int) -> Source:
    """`train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-...`, each plain or .gz, as MNIST and its likes."""
    train, test = (_idx_part(path, part) for part in ("train", "t10k"))
    classes = int(train.labels.max()) + 1
    return Source(train, test, tuple(str(index) for index in range(classes)))


def _idx_part(path: Path, part: str) -> ResidentPart:
    images, labels = idx_array(path / f"{part}-images-idx3-ubyte", 3), idx_array(path / f"{part}-labels-idx1-ubyte", 1)
    if len(images) != len(labels) or images.shape[1] != images.shape[2]:
        shape = tuple(images.shape)
        raise ValueError(f"{path}: {part} has images of shape {shape} and {len(labels)} labels; want square, as many")
    return ResidentPart(_three_channels(images), labels.long())


def _three_channels(images: Tensor) -> Tensor:
    return images.unsqueeze(1).expand(-1, 3, -1, -1).contiguous()


@dataclass(frozen=True, slots=True)
class _Row:
    form: str
    read: Callable[[Path, int], Source]

    @property
    def on_disk(self) -> bool:
        return self.form.endswith(":PATH")


DATASETS: dict[str, _Row] = {
    "digits": _Row("digits", _digits),
    "synthetic": _Row("synthetic", _synthetic),
    "cifar10": _Row("cifar10:PATH", _cifar10),
    "cifar100": _Row("cifar100:PATH", _cifar100),
    "tiny-imagenet": _Row("tiny-imagenet:PATH", _tiny_imagenet),
    "imagenet": _Row("imagenet:PATH", _imagenet),
    "idx": _Row("idx:PATH", _idx),
    "folder": _Row("folder:PATH", _folder),
}
