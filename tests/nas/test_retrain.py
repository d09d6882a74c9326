from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_model
from torch import nn

from models.spec import BlockSpec, ViTSpec
from models.staged import StagedTransformer
from models.staged_spec import Stage, StagedSpec
from models.vit import VisionTransformer
from nas.data import Dataset
from nas.retrain import load_network, retrain, train_teacher
from nas.settings import TrainSettings
from nas.training import accuracy

SETTINGS = TrainSettings(epochs=8, batch=8, lr=1e-2)


def test_what_is_written_is_the_network_that_was_judged(tiny_spec: ViTSpec, tiny_data: Dataset, tmp_path: Path) -> None:
    result = retrain(tiny_spec, tiny_data, SETTINGS, 0, tmp_path)
    network = load_network(tmp_path)
    assert network.spec == tiny_spec
    assert accuracy(network, tiny_data.test_images, tiny_data.test_labels) == result.accuracy
    record = json.loads((tmp_path / "retrained.json").read_text())
    assert (record["schema"], record["record"], record["accuracy"], record["test_images"]) == (
        1,
        "retrained",
        result.accuracy,
        9,
    )


def test_a_staged_network_is_kept_as_it_is_deployed(tiny_data: Dataset, tmp_path: Path) -> None:
    blocks = (BlockSpec(("softmax", "scaling"), 4, 8),)
    spec = StagedSpec(8, 2, 3, (Stage(8, blocks), Stage(12, blocks)), stem_channels=4)
    settings = replace(SETTINGS, epochs=2, ema_decay=0.5)
    result = retrain(spec, tiny_data, settings, 0, tmp_path, patch_head=True)
    network = load_network(tmp_path)
    assert isinstance(network, StagedTransformer) and (result.spec, network.spec) == (spec, spec)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert accuracy(network, tiny_data.test_images, tiny_data.test_labels) == result.accuracy
    rows = [json.loads(line) for line in (tmp_path / "epochs.jsonl").read_text().splitlines()]
    assert {"cross_entropy", "patch_cross_entropy"} <= rows[0].keys()
    record = json.loads((tmp_path / "retrained.json").read_text())
    assert record["spec"]["record"] == "staged_spec" and 0 <= record["ema_accuracy"] <= 1
    with pytest.raises(ValueError, match="exclude each other"):
        retrain(spec, tiny_data, settings, 0, tmp_path / "taught", teacher=tmp_path, patch_head=True)


def test_images_take_the_size_of_the_network(tiny_spec: ViTSpec, tmp_path: Path) -> None:
    spec = replace(tiny_spec, classes=10)
    assert retrain(spec, "digits", replace(SETTINGS, epochs=1, batch=240), 0, tmp_path).spec.image_px == 8


def test_a_teacher_is_the_softmax_network_of_the_same_shape(
    tiny_spec: ViTSpec, tiny_data: Dataset, tmp_path: Path
) -> None:
    teacher = train_teacher(tiny_spec, tiny_data, replace(SETTINGS, epochs=1), 0, tmp_path)
    assert teacher.spec == tiny_spec.with_kinds("softmax")


def test_distillation_adds_its_terms_and_leaves_the_teacher_alone(
    tiny_spec: ViTSpec, tiny_data: Dataset, tmp_path: Path
) -> None:
    short = replace(SETTINGS, epochs=2)
    train_teacher(tiny_spec, tiny_data, short, 0, tmp_path / "teacher")
    before = (tmp_path / "teacher" / "weights.safetensors").read_bytes()
    retrain(tiny_spec, tiny_data, short, 1, tmp_path / "student", teacher=tmp_path / "teacher", token_weight=1.0)
    rows = [json.loads(line) for line in (tmp_path / "student" / "epochs.jsonl").read_text().splitlines()]
    assert {"cross_entropy", "distillation", "token_distillation"} <= rows[0].keys()
    assert (tmp_path / "teacher" / "weights.safetensors").read_bytes() == before


def test_a_run_does_not_continue_under_another_teacher(tiny_spec: ViTSpec, tiny_data: Dataset, tmp_path: Path) -> None:
    short = replace(SETTINGS, epochs=1)
    for seed in (0, 1):
        train_teacher(tiny_spec, tiny_data, short, seed, tmp_path / f"teacher {seed}")
    retrain(tiny_spec, tiny_data, short, 0, tmp_path / "student", teacher=tmp_path / "teacher 0")
    with pytest.raises(ValueError, match="a run with another teacher"):
        retrain(tiny_spec, tiny_data, short, 0, tmp_path / "student", teacher=tmp_path / "teacher 1")


def test_a_finished_run_is_not_trained_again(tiny_spec: ViTSpec, tiny_data: Dataset, tmp_path: Path) -> None:
    first = retrain(tiny_spec, tiny_data, SETTINGS, 0, tmp_path)
    epochs: list[int] = []
    torch.manual_seed(5)
    second = retrain(
        tiny_spec, tiny_data, SETTINGS, 0, tmp_path, on_epoch=lambda record: epochs.append(record["epoch"])
    )
    assert epochs == []
    assert second == first


def test_a_network_for_other_images_is_refused(tiny_spec: ViTSpec, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="digits has 8 px and 10 classes, the network wants 8 px and 3"):
        retrain(tiny_spec, "digits", SETTINGS, 0, tmp_path)


def test_a_folder_without_a_network_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"spec\.json is missing"):
        load_network(tmp_path)


@pytest.mark.parametrize("harm", ["torn weights", "torn spec", "another spec"])
def test_a_damaged_network_is_one_clear_error(tiny_spec: ViTSpec, tmp_path: Path, harm: str) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(tiny_spec.to_json()))
    save_model(VisionTransformer(tiny_spec), str(tmp_path / "weights.safetensors"))
    load_network(tmp_path)
    if harm == "torn weights":
        whole = (tmp_path / "weights.safetensors").read_bytes()
        (tmp_path / "weights.safetensors").write_bytes(whole[: len(whole) // 2])
    elif harm == "torn spec":
        (tmp_path / "spec.json").write_text('{"schema": 1')
    else:
        wider = replace(tiny_spec, classes=tiny_spec.classes + 1)
        (tmp_path / "spec.json").write_text(json.dumps(wider.to_json()))
    with pytest.raises(ValueError, match="damaged network, or weights of another spec"):
        load_network(tmp_path)
