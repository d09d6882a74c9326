from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits

from nas.data import Dataset, FilesPart, ResidentPart, load


def test_digits_are_1200_237_360_normalised_images_of_32_px() -> None:
    data = load("digits")
    assert [len(part) for part in (data.train, data.val, data.test)] == [1200, 237, 360]
    assert data.train_images.shape == (1200, 3, 32, 32)
    assert (data.classes, data.image_px) == (10, 32)
    torch.testing.assert_close(data.train_images.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(data.train_images.std(dim=(0, 2, 3)), torch.ones(3), atol=1e-4, rtol=0)


def test_digits_come_in_the_size_that_is_asked_for() -> None:
    assert load("digits", 16).image_px == load("digits", 16).train_images.shape[-1] == 16
    assert load("digits").image_px == 32


def test_digits_parts_hold_every_image_once() -> None:
    data = load("digits")
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
    data = load("digits")
    share = torch.bincount(torch.tensor(load_digits().target)).double() / 1797
    for labels in (data.train_labels, data.val_labels, data.test_labels):
        assert (torch.bincount(labels, minlength=10) - share * len(labels)).abs().max() <= 1.5


def test_bytes_and_levels_are_normalised_alike() -> None:
    levels = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)
    part = ResidentPart(levels, torch.arange(4) % 2)
    data = Dataset("x", part, part, part, ("a", "b"), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 8)
    expected = (levels[:, 2] / 255 - 0.3) / 0.6
    torch.testing.assert_close(data.normalise(levels)[:, 2], expected)
    torch.testing.assert_close(data.normalise(levels / 255), data.normalise(levels))
    assert data.val_images is data.val_images  # made once


def test_images_on_disk_are_not_one_tensor() -> None:
    part = FilesPart(("a.png",), torch.zeros(1, dtype=torch.int64))
    data = Dataset("large", part, part, part, ("a",), (0.5,) * 3, (0.5,) * 3, 8)
    with pytest.raises(ValueError, match="large is too large"):
        _ = data.train_images


@pytest.mark.parametrize(("count", "labels"), [(3, [0, 1]), (0, []), (2, [0, 2]), (2, [-1, 0])])
def test_labels_that_do_not_fit_are_refused(count: int, labels: list[int]) -> None:
    with pytest.raises(ValueError, match=r"3 images and 2 labels|no images|labels of train are (0\.\.2|-1\.\.0)"):
        part = ResidentPart(torch.zeros(count, 3, 2, 2), torch.tensor(labels, dtype=torch.int64))
        Dataset("x", part, part, part, ("a", "b"), (0.0,), (1.0,), 2)


@pytest.mark.parametrize("name", ["digit", "cifar10", "digits:here", "cifr10:x", "folder:"])
def test_an_unknown_data_set_names_the_nearest_form(name: str) -> None:
    with pytest.raises(ValueError, match=r"did you mean (digits|cifar10:PATH|folder:PATH)\? Known: digits, synthetic"):
        load(name)


def test_a_data_set_is_itself(tiny_data: Dataset) -> None:
    assert load(tiny_data) is tiny_data


def test_data_with_parts_of_their_own_take_no_split(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="validation images of its own"):
        load("digits?val=25")
    with pytest.raises(ValueError, match="validation images of its own"):
        load("synthetic", split=tmp_path / "split.json")
    with pytest.raises(ValueError, match=r"want \?val=25"):
        load("folder:x?val=some")


def test_synthetic_images_are_the_same_each_time_and_tell_their_class() -> None:
    data = load("synthetic", 16)
    assert torch.equal(data.train_images, load("synthetic", 16).train_images)
    assert [len(part) for part in (data.train, data.val, data.test)] == [2000, 500, 500]
    centres = torch.stack([data.train_images[data.train_labels == label].mean(0) for label in range(10)])
    nearest = torch.cdist(data.test_images.flatten(1), centres.flatten(1)).argmin(1)
    assert float((nearest == data.test_labels).float().mean()) > 0.8
