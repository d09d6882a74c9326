from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nas.splits import Split, demand_split_of, draw_split, read_split, stratified_split

LABELS = torch.tensor([0] * 40 + [1] * 20 + [2] * 10)[torch.randperm(70, generator=torch.Generator().manual_seed(3))]


def test_a_split_is_disjoint_whole_and_always_the_same() -> None:
    labels = torch.arange(100) % 4
    stay, out = stratified_split(labels, 20)
    assert sorted(torch.cat([stay, out]).tolist()) == list(range(100))
    assert torch.bincount(labels[out]).tolist() == [5, 5, 5, 5]
    assert all(torch.equal(a, b) for a, b in zip((stay, out), stratified_split(labels, 20), strict=True))


def test_a_count_holds_that_many_of_every_class_out() -> None:
    split = draw_split(LABELS, 5)
    train, validation = split.parts()
    assert torch.bincount(LABELS[validation]).tolist() == [5, 5, 5]
    assert sorted([*train.tolist(), *validation.tolist()]) == list(range(70))
    assert split == draw_split(LABELS, 5)


def test_the_split_of_a_count_is_this_one_on_every_machine() -> None:
    assert draw_split(torch.arange(12) % 3, 1).validation == (4, 6, 11)


def test_a_fraction_keeps_the_class_proportions() -> None:
    validation = draw_split(LABELS, 0.2).parts()[1]
    assert torch.bincount(LABELS[validation]).tolist() == [8, 4, 2]


@pytest.mark.parametrize("held_out", [0, 10, 0.0, 1.0, -0.5])
def test_a_class_without_images_is_refused(held_out: int | float) -> None:
    with pytest.raises(ValueError, match=r"smallest class has 10|between 0 and 1"):
        draw_split(LABELS, held_out)


def test_a_kept_split_is_read_again_and_checked(tmp_path: Path) -> None:
    path, names = tmp_path / "run" / "split.json", [str(index) for index in range(70)]
    split = draw_split(LABELS, 5, names)
    split.keep(path)
    split.keep(path)
    assert read_split(path) == demand_split_of(path, LABELS, names) == split
    assert [entry.name for entry in path.parent.iterdir()] == ["split.json"]


def test_another_split_is_not_taken_for_the_kept_one(tmp_path: Path) -> None:
    draw_split(LABELS, 5).keep(tmp_path / "split.json")
    with pytest.raises(ValueError, match="another split"):
        draw_split(LABELS, 6).keep(tmp_path / "split.json")
    for labels, names in ((LABELS.flip(0), []), (LABELS[1:], []), (LABELS, ["a"] * 70)):
        with pytest.raises(ValueError, match="data have changed"):
            demand_split_of(tmp_path / "split.json", labels, names)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"schema": 2, "record": "split"}', '{"schema": 1, "record": "split"}']
)
def test_a_file_that_is_no_split_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "split.json").write_text(text)
    with pytest.raises(ValueError, match=r"split\.json is not a split") as caught:
        read_split(tmp_path / "split.json")
    assert "\n" not in str(caught.value)


def test_parts_are_in_order() -> None:
    train, validation = Split(1, 5, "", (1, 3)).parts()
    assert (train.tolist(), validation.tolist()) == ([0, 2, 4], [1, 3])
