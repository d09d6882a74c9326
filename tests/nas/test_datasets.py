from __future__ import annotations

import gzip
import io
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from nas.data import Dataset, FilesPart, load
from tests.nas.picture_trees import write_pictures, write_tree

TREE = {"train": {"cat": 20, "dog": 20}, "test": {"cat": 3, "dog": 3}}


def test_a_tree_of_class_folders_is_read_resized_and_split(tmp_path: Path) -> None:
    data = load(f"folder:{write_tree(tmp_path, TREE)}", image_px=16)
    assert data.class_names == ("cat", "dog")
    assert data.train_images.shape == (36, 3, 16, 16)
    assert sorted(data.val_labels.tolist()) == [0, 0, 1, 1]
    assert data.test_labels.tolist() == [0, 0, 0, 1, 1, 1]
    torch.testing.assert_close(data.train_images.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(data.train_images.std(dim=(0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)


def test_pictures_keep_their_bytes(tmp_path: Path) -> None:
    data = load(f"folder:{write_tree(tmp_path, TREE)}", image_px=10)
    expected = np.asarray(Image.open(tmp_path / "test" / "dog" / "1.png")).transpose(2, 0, 1)
    assert np.array_equal(data.test.take(torch.tensor([4])).images[0], expected)


def test_an_own_validation_folder_is_used(tmp_path: Path) -> None:
    parts = {"train": {"cat": 4, "dog": 4}, "val": {"cat": 1, "dog": 1}, "test": {"cat": 2, "dog": 2}}
    data = load(f"folder:{write_tree(tmp_path, parts)}", image_px=10)
    assert (len(data.train), len(data.val), len(data.test)) == (8, 2, 4)
    assert data.split is None


def test_a_kept_split_is_taken_again(tmp_path: Path) -> None:
    name = f"folder:{write_tree(tmp_path / 'tree', TREE)}"
    asked = load(f"{name}?val=3", 10)
    assert torch.bincount(asked.val_labels).tolist() == [3, 3]
    assert asked.split
    asked.split.keep(tmp_path / "split.json")
    again = load(name, 10, split=tmp_path / "split.json")
    assert torch.equal(again.val_images * again.std[0], asked.val_images * asked.std[0])
    (tmp_path / "tree" / "train" / "cat" / "0.png").rename(tmp_path / "tree" / "train" / "cat" / "zero.png")
    with pytest.raises(ValueError, match="data have changed"):
        load(name, 10, split=tmp_path / "split.json")


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
        load(f"folder:{write_tree(tmp_path, parts)}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", ["png", "jpg"])
@pytest.mark.parametrize("torn", [b"", b"not an image", None])
def test_a_broken_picture_is_named(tmp_path: Path, torn: bytes | None, ending: str) -> None:
    file = write_tree(tmp_path, TREE, px=64, ending=ending) / "train" / "cat" / f"1.{ending}"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2] if torn is None else torn)
    with pytest.raises(ValueError, match=rf"1\.{ending} cannot be read as an image") as caught:
        load(f"folder:{tmp_path}")
    assert "\n" not in str(caught.value)


def write_cifar(root: Path, classes: int) -> Path:
    """CIFAR's pickles as torchvision unpacks them: 20 training images, 10 test images; image i is of level i."""
    folder = root / ("cifar-10-batches-py" if classes == 10 else "cifar-100-python")
    folder.mkdir(parents=True)
    files = [f"data_batch_{index}" for index in range(1, 6)] if classes == 10 else ["train"]
    for start, file in zip(range(0, 20, 20 // len(files)), files, strict=True):
        _write_batch(folder / file, range(start, start + 20 // len(files)), classes)
    _write_batch(folder / ("test_batch" if classes == 10 else "test"), range(100, 110), classes)
    names = {b"label_names" if classes == 10 else b"fine_label_names": [b"c%d" % i for i in range(classes)]}
    (folder / ("batches.meta" if classes == 10 else "meta")).write_bytes(python2_pickle(names))
    return folder


def _write_batch(file: Path, levels: range, classes: int) -> None:
    data = np.repeat(np.array(levels, dtype=np.uint8)[:, None], 3072, axis=1)
    data[:, 1024:2048] += 1  # green
    labels = [level % 2 for level in levels]
    key = b"labels" if classes == 10 else b"fine_labels"
    file.write_bytes(python2_pickle({b"data": data, key: labels, b"filenames": [b"x"] * len(levels)}))


class _Python2Pickler(pickle._Pickler):  # type: ignore[name-defined,misc]
    """Writes byte strings as Python 2, which made CIFAR's files, wrote its text."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_bytes(self, value: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)

    dispatch[bytes] = save_bytes


def python2_pickle(content: object) -> bytes:
    file = io.BytesIO()
    _Python2Pickler(file, protocol=2).dump(content)
    return file.getvalue()


@pytest.mark.parametrize("classes", [10, 100])
def test_pickles_of_cifar_are_read(tmp_path: Path, classes: int) -> None:
    folder = write_cifar(tmp_path, classes)
    data = load(f"cifar{classes}:{tmp_path}?val=3")
    assert (data.classes, len(data.train), len(data.val), len(data.test)) == (classes, 14, 6, 10)
    assert data.class_names[:2] == ("c0", "c1")
    test = data.test.take(torch.arange(10)).images
    assert test[:, 0, 5, 7].tolist() == list(range(100, 110))
    assert test[:, 1, 5, 7].tolist() == list(range(101, 111))
    assert data.mean == ((0.4914, 0.4822, 0.4465) if classes == 10 else (0.5071, 0.4867, 0.4408))
    assert load(f"cifar{classes}:{folder}?val=3").test_labels.tolist() == data.test_labels.tolist() == [0, 1] * 5


def test_torchvision_reads_the_same_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    write_cifar(tmp_path, 10)
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    theirs = CIFAR10(str(tmp_path), train=False)
    ours = load(f"cifar10:{tmp_path}?val=3").test.take(torch.arange(10))
    assert np.array_equal(ours.images.permute(0, 2, 3, 1), theirs.data)
    assert ours.labels.tolist() == theirs.targets


class _Runs:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (Path.touch, (Path("ran"),))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"not a CIFAR pickle"),
        (b"\x80\x02}q", r"not a CIFAR pickle"),
        (pickle.dumps([1]), r"holds a list"),
        (pickle.dumps({b"data": np.zeros((2, 5), np.uint8), b"labels": [0, 1]}), r"rows of 3,072 bytes"),
        (
            pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]}),
            r"one label below 10 for each of its 2",
        ),
        (pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [10]}), r"one label below 10"),
        (pickle.dumps(_Runs()), r"it asks for"),
    ],
)
def test_a_wrong_pickle_is_named_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (write_cifar(tmp_path, 10) / "data_batch_3").write_bytes(content)
    with pytest.raises(ValueError, match=rf"data_batch_3.*{message}") as caught:
        load(f"cifar10:{tmp_path}?val=1")
    assert "\n" not in str(caught.value)
    assert not Path("ran").exists()


def test_a_missing_batch_is_named(tmp_path: Path) -> None:
    (write_cifar(tmp_path, 10) / "test_batch").unlink()
    with pytest.raises(ValueError, match=r"test_batch is missing"):
        load(f"cifar10:{tmp_path}?val=1")
    with pytest.raises(ValueError, match=r"holds no CIFAR-100; expected cifar-100-python/"):
        load(f"cifar100:{tmp_path}")


def test_cifar_as_a_tree_has_its_classes_and_statistics(tmp_path: Path) -> None:
    names = {str(index): 3 for index in range(10)}
    data = load(f"cifar10:{write_tree(tmp_path / 'ten', {'train': names, 'test': names}, px=32)}?val=1")
    assert (len(data.train), len(data.val), len(data.test), data.std[0]) == (20, 10, 30, 0.2470)
    names.pop("9")
    with pytest.raises(ValueError, match="has 9 class folders; CIFAR-10 has 10"):
        load(f"cifar10:{write_tree(tmp_path / 'nine', {'train': names, 'test': names})}")


def write_tiny_imagenet(root: Path) -> Path:
    """3 classes of 5 training pictures, 6 pictures to judge, in Tiny-ImageNet's layout."""
    wnids = ["n03", "n01", "n02"]
    (root / "val").mkdir(parents=True)
    (root / "wnids.txt").write_text("\n".join(wnids) + "\n")
    for number, wnid in enumerate(wnids):
        write_pictures(root / "train" / wnid / "images", 5, number, 64, "JPEG")
    write_pictures(root / "val" / "images", 6, 9, 64, "JPEG")
    lines = [f"{index}.JPEG\t{wnids[index % 3]}\t0\t0\t63\t63" for index in range(6)]
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    return root


def test_tiny_imagenet_is_read_by_its_annotations(tmp_path: Path) -> None:
    data = load(f"tiny-imagenet:{write_tiny_imagenet(tmp_path)}?val=1", 64)
    assert data.class_names == ("n01", "n02", "n03")
    assert (len(data.train), len(data.val), len(data.test)) == (12, 3, 6)
    assert data.test_labels.tolist() == [2, 0, 1, 2, 0, 1]
    assert data.train_images.shape[1:] == (3, 64, 64)
    expected = np.asarray(Image.open(tmp_path / "val" / "images" / "4.JPEG")).transpose(2, 0, 1)
    assert np.array_equal(data.test.take(torch.tensor([4])).images[0], expected)


def _without_a_line(root: Path) -> None:
    file = root / "val" / "val_annotations.txt"
    file.write_text(file.read_text().partition("\n")[2])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without_a_line, r"name different pictures: 1, for example 0\.JPEG"),
        (
            lambda root: (root / "val" / "images" / "2.JPEG").unlink(),
            r"name different pictures: 1, for example 2\.JPEG",
        ),
        (lambda root: (root / "val" / "val_annotations.txt").unlink(), r"val_annotations\.txt is missing; expected"),
        (
            lambda root: (root / "val" / "val_annotations.txt").write_text("0.JPEG n09"),
            r"line 1: expected <image> <wnid",
        ),
        (lambda root: (root / "wnids.txt").write_text("n01 n02"), r"other classes than .*wnids\.txt, for example n03"),
        (lambda root: (root / "wnids.txt").unlink(), r"holds no Tiny-ImageNet; expected wnids\.txt"),
    ],
)
def test_a_wrong_tiny_imagenet_says_what_was_expected(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(write_tiny_imagenet(tmp_path))
    with pytest.raises(ValueError, match=message) as caught:
        load(f"tiny-imagenet:{tmp_path}?val=1", 64)
    assert "\n" not in str(caught.value)


def test_imagenet_stays_on_disk_and_its_val_is_the_test(tmp_path: Path) -> None:
    parts = {"train": {"n01": 30, "n02": 28}, "val": {"n01": 2, "n02": 3}}
    data = load(f"imagenet:{write_tree(tmp_path, parts, ending='JPEG')}", 224)
    assert isinstance(data.train, FilesPart)
    assert torch.bincount(data.val_labels).tolist() == [25, 25]
    assert (len(data.train), len(data.test), data.image_px) == (8, 5, 224)
    assert data.test.take(torch.tensor([2])).paths == (str(tmp_path / "val" / "n02" / "0.JPEG"),)
    assert not set(data.train.paths) & set(data.val.paths if isinstance(data.val, FilesPart) else ())


def write_idx(root: Path, packed: bool) -> Path:
    """12 training and 4 test images of 8x8 in 2 classes; image i is of level i."""
    root.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", 12), ("t10k", 4)):
        levels = np.repeat(np.arange(count, dtype=np.uint8), 64)
        images = struct.pack(">4B3I", 0, 0, 8, 3, count, 8, 8) + levels.tobytes()
        labels = struct.pack(">4BI", 0, 0, 8, 1, count) + bytes(index % 2 for index in range(count))
        for kind, content in (("images-idx3", images), ("labels-idx1", labels)):
            file = root / f"{part}-{kind}-ubyte{'.gz' if packed else ''}"
            file.write_bytes(gzip.compress(content) if packed else content)
    return root


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_are_read_in_three_channels(tmp_path: Path, packed: bool) -> None:
    data = load(f"idx:{write_idx(tmp_path, packed)}?val=2", 8)
    assert (data.classes, len(data.train), len(data.val), len(data.test)) == (2, 8, 4, 4)
    assert data.test.take(torch.arange(4)).images.flatten(1)[:, [0, 100, 191]].tolist() == [[i] * 3 for i in range(4)]
    assert load(f"idx:{tmp_path}?val=2", 16).train_images.shape[2:] == (16, 16)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("train-images-idx3-ubyte", b"\0\0\x08", r"no idx file of bytes in 3 dimensions"),
        ("train-images-idx3-ubyte", struct.pack(">4B3I", 0, 0, 8, 3, 9, 8, 8) + b"1" * 70, r"has 70 bytes .* says 576"),
        (
            "t10k-labels-idx1-ubyte",
            struct.pack(">4BI", 0, 0, 8, 1, 1) + b"1",
            r"t10k has images of shape \(4, 8, 8\) and 1",
        ),
        ("t10k-labels-idx1-ubyte", None, r"t10k-labels-idx1-ubyte is missing"),
    ],
)
def test_a_wrong_idx_file_is_named(tmp_path: Path, file: str, content: bytes | None, message: str) -> None:
    write_idx(tmp_path, packed=False)
    (tmp_path / file).unlink() if content is None else (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load(f"idx:{tmp_path}?val=2", 8)


def test_a_torn_archive_is_named(tmp_path: Path) -> None:
    file = write_idx(tmp_path, packed=True) / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"idx3-ubyte\.gz cannot be unpacked"):
        load(f"idx:{tmp_path}?val=2", 8)


def test_published_statistics_are_those_of_a_data_set_that_has_them(tmp_path: Path) -> None:
    data: Dataset = load(f"tiny-imagenet:{write_tiny_imagenet(tmp_path)}?val=1", 64)
    assert (data.mean, data.std) == ((0.480, 0.448, 0.397), (0.272, 0.265, 0.274))
