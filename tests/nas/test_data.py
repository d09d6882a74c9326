from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from nas.data import Augmentation, digits, image_folder, load, stratified_split


def test_digits_are_1200_237_360_normalised_images_of_32_px() -> None:
    data = digits()
    assert [len(part) for part in (data.train_labels, data.val_labels, data.test_labels)] == [1200, 237, 360]
    assert data.train_images.shape == (1200, 3, 32, 32)
    assert (data.classes, data.image_px) == (10, 32)
    torch.testing.assert_close(data.train_images.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(data.train_images.std(dim=(0, 2, 3)), torch.ones(3), atol=1e-4, rtol=0)


def test_digits_come_in_the_size_that_is_asked_for() -> None:
    assert load("digits", 16).image_px == 16
    assert load("digits").image_px == 32


def test_digits_parts_hold_every_image_once() -> None:
    data = digits()
    parts = torch.cat([data.train_images, data.val_images, data.test_images])
    grey = parts[:, 0] * data.std[0] + data.mean[0]
    blocks = grey.view(-1, 8, 4, 8, 4).mean(dim=(2, 4))  # sorted block means name an image
    original = torch.tensor(load_digits().images, dtype=torch.float32)
    enlarged = torch.nn.functional.interpolate(original[:, None] / 16, size=(32, 32), mode="bilinear")[:, 0]
    expected = enlarged.view(-1, 8, 4, 8, 4).mean(dim=(2, 4))
    ours = sorted(tuple(row) for row in (blocks.flatten(1) * 1000).round().int().tolist())
    theirs = sorted(tuple(row) for row in (expected.flatten(1) * 1000).round().int().tolist())
    differing = sum(a != b for a, b in zip(ours, theirs, strict=True))
    assert differing <= 20  # rounding at the third decimal; a doubled or lost part would be hundreds


def test_digits_parts_are_stratified() -> None:
    data = digits()
    share = torch.bincount(torch.tensor(load_digits().target)).double() / 1797
    for labels in (data.train_labels, data.val_labels, data.test_labels):
        assert (torch.bincount(labels, minlength=10) - share * len(labels)).abs().max() <= 1.5


def test_a_split_is_disjoint_whole_and_always_the_same() -> None:
    labels = torch.arange(100) % 4
    stay, out = stratified_split(labels, 20)
    assert sorted(torch.cat([stay, out]).tolist()) == list(range(100))
    assert torch.bincount(labels[out]).tolist() == [5, 5, 5, 5]
    assert all(torch.equal(a, b) for a, b in zip((stay, out), stratified_split(labels, 20), strict=True))


def test_an_augmentation_of_nothing_is_the_identity() -> None:
    images = torch.rand(3, 3, 8, 8)
    torch.testing.assert_close(Augmentation(0, 0, 0)(images), images)


def test_an_augmentation_moves_by_at_most_its_shift() -> None:
    images = torch.zeros(64, 1, 16, 16)
    images[:, :, 8, 8] = 1
    moved = Augmentation(shift_px=2, rotate_degrees=0, zoom=0)(images)
    assert not torch.equal(moved, images)
    rows = (moved.sum(dim=(1, 3)) * torch.arange(16)).sum(-1)
    assert float((rows - 8).abs().max()) <= 2.0001
    assert float((rows - 8).abs().max()) > 1


def test_a_flip_mirrors_left_and_right_only() -> None:
    torch.manual_seed(0)
    images = torch.rand(20, 1, 4, 4)
    flipped = Augmentation(0, 0, 0, flip=True)(images)
    mirrored = [torch.allclose(a, b.flip(-1), atol=1e-5) for a, b in zip(flipped, images, strict=True)]
    same = [torch.allclose(a, b, atol=1e-5) for a, b in zip(flipped, images, strict=True)]
    assert all(m or s for m, s in zip(mirrored, same, strict=True))
    assert any(mirrored)
    assert any(same)


def _tree(root: Path, classes: dict[str, dict[str, int]]) -> Path:
    rng = np.random.default_rng(0)
    for part, counts in classes.items():
        for name, count in counts.items():
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                Image.fromarray(rng.integers(0, 255, (10, 10, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return root


def test_a_tree_of_class_folders_is_read_resized_and_split(tmp_path: Path) -> None:
    data = load(
        f"folder:{_tree(tmp_path, {'train': {'cat': 20, 'dog': 20}, 'test': {'cat': 3, 'dog': 3}})}", image_px=16
    )
    assert data.class_names == ("cat", "dog")
    assert data.train_images.shape == (36, 3, 16, 16)
    assert sorted(data.val_labels.tolist()) == [0, 0, 1, 1]
    assert data.test_labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_an_own_validation_folder_is_used(tmp_path: Path) -> None:
    parts = {"train": {"cat": 4, "dog": 4}, "val": {"cat": 1, "dog": 1}, "test": {"cat": 2, "dog": 2}}
    data = image_folder(_tree(tmp_path, parts), image_px=10)
    assert (len(data.train_labels), len(data.val_labels), len(data.test_labels)) == (8, 2, 4)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, r"train is not a folder of class folders; expected .*<class>"),
        ({"train": {"cat": 2}}, r"test is not a folder of class folders"),
        ({"train": {"cat": 2}, "test": {"dog": 2}}, r"other classes than .*cat, dog"),
        ({"train": {"cat": 2, "dog": 0}, "test": {"cat": 2, "dog": 1}}, r"train: .*dog"),
    ],
)
def test_a_wrong_tree_says_what_was_expected(tmp_path: Path, parts: dict[str, dict[str, int]], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        image_folder(_tree(tmp_path, parts))
    assert "\n" not in str(caught.value)


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    root = _tree(tmp_path, {"train": {"cat": 2}, "test": {"cat": 1}})
    (root / "train" / "cat" / "1.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"1\.png cannot be read as an image"):
        image_folder(root)


def test_an_unknown_data_set_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean digits"):
        load("digit")
