"""Batches for training and evaluation: from memory on any device, or streamed from files by worker processes.

What a batch holds depends on seed, epoch and its number alone, never on how many workers read it or where a run went
on; of several processes each takes its share of every batch.
"""

# B images, P pixels a side

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from nas.augmentation import Augmentation, Policy
from nas.batch_augmentation import augment, placed
from nas.data import Dataset, FilesPart, Part, ResidentPart
from nas.pictures import read_picture

Batches = Iterator[tuple[Tensor, Tensor]]
_CENTRE_CROP = 0.875  # evaluation enlarges to 256 for 224 and takes the centre: DeiT's and ViTAS's (B1.7)
_on_device: WeakKeyDictionary[ResidentPart, dict[torch.device, ResidentPart]] = WeakKeyDictionary()


def updates_per_epoch(dataset: Dataset, batch: int, world: int = 1) -> int:
    """Whole batches in an epoch, `batch` images on each of `world` processes; ValueError where there is none."""
    updates = len(dataset.train) // (batch * world)
    if updates == 0:
        raise ValueError(f"{dataset.name}: {len(dataset.train)} training images make no batch of {world} x {batch}")
    return updates


def training_batches(
    dataset: Dataset,
    augmentation: Augmentation | Policy | None,
    *,
    batch: int,
    seed: int,
    epoch: int,
    device: torch.device,
    rank: int = 0,
    world: int = 1,
    start: int = 0,
    workers: int | None = None,
) -> Batches:
    """This process's part of every batch of one epoch: augmented, normalised images and labels, on `device`.

    Batch k is the k-th slice of `world * batch` images of an order that (seed, epoch) fixes, of which `rank` takes its
    share; a different rest is left out each epoch. Batches before `start` are not loaded. Images in memory are
    augmented on the device by the global generators; files by `workers` (default: as many as cores), each image by its
    own seed, (seed, epoch, which image).
    """
    updates = updates_per_epoch(dataset, batch, world)
    order = epoch_order(len(dataset.train), seed, epoch)[: updates * world * batch]
    shares = order.view(updates, world, batch)[start:, rank]
    if isinstance(dataset.train, ResidentPart):
        return _resident_batches(dataset, dataset.train, augmentation, shares, device)
    return _streamed_batches(dataset, dataset.train, augmentation, shares.tolist(), device, workers, (seed, epoch))


def evaluation_batches(
    part: Part,
    dataset: Dataset,
    batch: int,
    device: torch.device,
    rank: int = 0,
    world: int = 1,
    workers: int | None = None,
) -> Batches:
    """Images of a part once each, as they are, normalised, on `device`: every `world`-th of them, from `rank` on."""
    shares = torch.split(torch.arange(rank, len(part), world), batch)
    if isinstance(part, ResidentPart):
        return _resident_batches(dataset, part, None, shares, device)
    return _streamed_batches(dataset, part, None, [share.tolist() for share in shares], device, workers, None)


def epoch_order(images: int, seed: int, epoch: int) -> Tensor:
    """The order of the training images in one epoch."""
    state = np.random.SeedSequence([seed, epoch]).generate_state(2, np.uint32)
    return torch.randperm(images, generator=torch.Generator().manual_seed(int(state[0]) << 31 | int(state[1]) >> 1))


def _resident_batches(
    dataset: Dataset,
    part: ResidentPart,
    augmentation: Augmentation | Policy | None,
    shares: Sequence[Tensor] | Tensor,
    device: torch.device,
) -> Batches:
    there = _moved_once(part, device)
    for share in shares:
        places = placed(share, device)
        images, labels = there.images[places], there.labels[places]
        if isinstance(augmentation, Policy):
            yield augment(augmentation, as_bytes(images), dataset.mean, dataset.std, dataset.image_px), labels
        else:
            yield _varied(augmentation, dataset.normalise(images)), labels


def _varied(augmentation: Augmentation | None, images: Tensor) -> Tensor:
    return augmentation(images) if augmentation else images


def as_bytes(images: Tensor) -> Tensor:
    """Levels in [0, 1] as bytes, rounded; bytes as they are."""
    return images if images.dtype == torch.uint8 else (images * 255).round().clamp(0, 255).to(torch.uint8)


def _moved_once(part: ResidentPart, device: torch.device) -> ResidentPart:
    """The part on `device`, sent there once for as long as it lives."""
    if part.images.device == device:
        return part
    copies = _on_device.setdefault(part, {})
    if device not in copies:
        copies[device] = part.on(device)
    return copies[device]


@dataclass(frozen=True, slots=True)
class _Pictures:
    """What a worker reads: the image at a position, seeded by it; a broken file comes back as what is wrong with it."""

    part: FilesPart
    transform: Callable[[Image.Image], Tensor]
    seeds: tuple[int, int] | None

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, position: int) -> tuple[Tensor, int] | str:
        try:
            picture = read_picture(self.part.paths[position])
        except ValueError as error:
            return str(error)
        with _seeded(None if self.seeds is None else (*self.seeds, position)):
            return self.transform(picture), int(self.part.labels[position])


@contextmanager
def _seeded(seeds: tuple[int, int, int] | None) -> Iterator[None]:
    """Python's, numpy's and torch's generators as `seeds` set them; in a training process, afterwards as before."""
    if seeds is None:
        yield
        return
    kept = (random.getstate(), np.random.get_state(), torch.get_rng_state()) if get_worker_info() is None else None
    state = [int(word) for word in np.random.SeedSequence(seeds).generate_state(3)]
    random.seed(state[0])
    np.random.seed(state[1])
    torch.default_generator.manual_seed(state[2])
    try:
        yield
    finally:
        if kept:
            random.setstate(kept[0])
            np.random.set_state(kept[1])
            torch.set_rng_state(kept[2])


def _streamed_batches(
    dataset: Dataset,
    part: FilesPart,
    augmentation: Augmentation | Policy | None,
    shares: list[list[int]],
    device: torch.device,
    workers: int | None,
    seeds: tuple[int, int] | None,
) -> Batches:
    policy, after = (augmentation, None) if isinstance(augmentation, Policy) else (None, augmentation)
    transform = policy.transform(dataset.image_px, dataset.mean, dataset.std) if policy else _evaluation(dataset)
    loader: DataLoader[tuple[Tensor, Tensor] | str] = DataLoader(
        _Pictures(part, transform, seeds),  # type: ignore[arg-type]
        batch_sampler=shares,
        num_workers=_spare_cores() if workers is None else workers,
        collate_fn=_collated,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # else it would draw from the global one
    )
    for loaded in loader:
        if isinstance(loaded, str):
            raise ValueError(loaded)
        images, labels = (values.to(device, non_blocking=True) for values in loaded)
        yield _varied(after, images), labels


def _spare_cores() -> int:
    """Cores for each of the training processes that torchrun started on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _collated(items: list[tuple[Tensor, int] | str]) -> tuple[Tensor, Tensor] | str:
    good = []
    for item in items:
        if isinstance(item, str):
            return item
        good.append(item)
    return torch.stack([image for image, _ in good]), torch.tensor([label for _, label in good])


def _evaluation(dataset: Dataset) -> Callable[[Image.Image], Tensor]:
    from timm.data.transforms_factory import create_transform

    transform: Callable[[Image.Image], Tensor] = create_transform(
        (3, dataset.image_px, dataset.image_px),
        interpolation="bicubic",
        mean=dataset.mean,
        std=dataset.std,
        crop_pct=_CENTRE_CROP,
    )
    return transform
