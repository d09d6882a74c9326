from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from nas.augmentation import POLICIES, Augmentation, Policy
from nas.data import Dataset, FilesPart, load
from nas.loading import as_bytes, epoch_order, evaluation_batches, training_batches, updates_per_epoch
from tests.nas.picture_trees import write_tree

CPU = torch.device("cpu")
POLICY = POLICIES["mpcvit-cifar10"]


@pytest.fixture
def files(tmp_path: Path) -> Dataset:
    """20 training pictures of 12 px on disk, 2 to validate, 6 to judge."""
    tree = write_tree(tmp_path / "data", {"train": {"a": 11, "b": 11}, "val": {"a": 3, "b": 3}}, px=12)
    return load(f"imagenet:{tree}?val=1", 12)


def loaded(
    dataset: Dataset, augmentation: Augmentation | Policy | None, reseed: bool = True, **others: int
) -> list[tuple[Tensor, Tensor]]:
    """Batches of 4 as the training loop asks for them: global generators are seeded before each."""
    arguments = {"batch": 4, "seed": 1, "epoch": 2, "workers": 0, **others}
    batches = training_batches(dataset, augmentation, device=CPU, **arguments)  # type: ignore[arg-type]
    result: list[tuple[Tensor, Tensor]] = []
    number = others.get("start", 0)
    while True:
        if reseed:
            for seed in (torch.manual_seed, np.random.seed, random.seed):
                seed(1000 + number)
        try:
            result.append(next(batches))
        except StopIteration:
            return result
        number += 1


def same(first: list[tuple[Tensor, Tensor]], second: list[tuple[Tensor, Tensor]]) -> bool:
    pairs = zip(first, second, strict=True)
    return all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in pairs)


AUGMENTATIONS = [None, Augmentation(1, 5, 0.1), POLICY]


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_going_on_from_a_batch_is_as_if_never_stopped(
    tiny_data: Dataset, files: Dataset, augmentation: Augmentation | Policy | None
) -> None:
    for dataset in (tiny_data, files):
        whole = loaded(dataset, augmentation)
        assert same(loaded(dataset, augmentation, start=3), whole[3:])
        assert loaded(dataset, augmentation, start=len(whole)) == []


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_the_number_of_workers_changes_nothing(files: Dataset, augmentation: Augmentation | Policy | None) -> None:
    assert same(loaded(files, augmentation, workers=2), loaded(files, augmentation, workers=0))


def test_an_epoch_holds_every_image_once_in_an_order_of_seed_and_epoch_alone(tiny_data: Dataset) -> None:
    def labels(**others: int) -> list[int]:
        return [int(label) for _, part in loaded(tiny_data, None, reseed=False, **others) for label in part]

    torch.manual_seed(int(torch.seed() % 1000))
    assert labels() == tiny_data.train_labels[epoch_order(24, 1, 2)].tolist()
    assert sorted(epoch_order(24, 1, 2).tolist()) == list(range(24))
    assert labels(epoch=3) != labels() != labels(seed=2)


def test_processes_share_each_batch_of_the_run_with_one(tiny_data: Dataset, files: Dataset) -> None:
    for dataset in (tiny_data, files):
        together = loaded(dataset, None, batch=8)
        first, second = (loaded(dataset, None, batch=4, rank=rank, world=2) for rank in (0, 1))
        joined = [(torch.cat([a, c]), torch.cat([b, d])) for (a, b), (c, d) in zip(first, second, strict=True)]
        assert same(joined, together)


def test_a_rest_is_left_out_and_no_batch_at_all_is_refused(tiny_data: Dataset) -> None:
    assert updates_per_epoch(tiny_data, 5) == 4 == len(loaded(tiny_data, None, batch=5))
    assert updates_per_epoch(tiny_data, 5, world=2) == 2
    with pytest.raises(ValueError, match="24 training images make no batch of 2 x 13"):
        updates_per_epoch(tiny_data, 13, world=2)


def test_every_image_has_its_own_draws_in_each_epoch(files: Dataset) -> None:
    def by_image(epoch: int) -> dict[int, bytes]:
        images = torch.cat([images for images, _ in loaded(files, POLICY, epoch=epoch)])
        order = epoch_order(20, 1, epoch).tolist()
        return {place: image.numpy().tobytes() for place, image in zip(order, images, strict=True)}

    first, second = by_image(0), by_image(1)
    assert len(set(first.values())) == 20
    assert not set(first.values()) & set(second.values())


def test_streaming_in_the_loops_own_process_leaves_its_generators_alone(files: Dataset) -> None:
    def states() -> tuple[object, ...]:
        return torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()

    before = states()
    loaded(files, POLICY, reseed=False)
    list(evaluation_batches(files.test, files, 4, CPU, workers=0))
    assert states() == before


def test_a_broken_file_is_named_in_one_line_whoever_reads_it(files: Dataset) -> None:
    assert isinstance(files.train, FilesPart)
    Path(files.train.paths[3]).write_bytes(b"torn")
    for workers in (0, 2):
        with pytest.raises(ValueError, match=r"\.png cannot be read as an image") as caught:
            loaded(files, POLICY, workers=workers)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_evaluation_meets_every_image_once(tiny_data: Dataset, files: Dataset, world: int) -> None:
    for dataset in (tiny_data, files):
        labels = [
            [
                int(label)
                for _, part in evaluation_batches(dataset.test, dataset, 2, CPU, rank, world, 0)
                for label in part
            ]
            for rank in range(world)
        ]
        assert labels == [dataset.test_labels[rank::world].tolist() for rank in range(world)]


def test_evaluation_takes_images_as_they_are(tiny_data: Dataset, files: Dataset) -> None:
    images = torch.cat([images for images, _ in evaluation_batches(tiny_data.test, tiny_data, 4, CPU)])
    assert torch.equal(images, tiny_data.test_images)
    first, second = (
        torch.cat([images for images, _ in evaluation_batches(files.test, files, 4, CPU, workers=workers)])
        for workers in (0, 1)
    )
    assert torch.equal(first, second)
    assert first.shape == (6, 3, 12, 12)


def test_images_in_memory_are_augmented_as_the_policy_says(tiny_data: Dataset) -> None:
    data = load("synthetic", 16)
    plain, flipped = loaded(data, None)[0], loaded(data, Policy(None, flip=1.0))[0]
    torch.testing.assert_close(flipped[0], plain[0].flip(-1))
    digits = load("digits", 16)  # held as levels, not bytes
    images = loaded(digits, Policy(None, flip=0.0))[0][0]
    torch.testing.assert_close(images, loaded(digits, None)[0][0], atol=0.5 / 255 / digits.std[0] + 1e-6, rtol=0)
    assert as_bytes(torch.tensor([0.0, 0.5, 1.0])).tolist() == [0, 128, 255]
    assert replace(POLICY) == POLICY
