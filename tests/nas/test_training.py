from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.records import read
from models.mixture import search_network
from models.spec import ViTSpec
from models.vit import VisionTransformer
from nas.data import Augmentation, Dataset
from nas.losses import CrossEntropy
from nas.settings import Mixing, TrainSettings
from nas.splits import draw_split, read_split
from nas.training import accuracy, make_optimizer, train

SETTINGS = TrainSettings(epochs=3, batch=8, lr=1e-2, warmup_epochs=1, augmentation=Augmentation(1, 5, 0.1))


class _Killed(BaseException):
    """Stands for a signal: nothing catches it."""


def _network(spec: ViTSpec) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(spec)


def _same(a: nn.Module, b: nn.Module) -> bool:
    other = b.state_dict()
    return all(torch.equal(value, other[name]) for name, value in a.state_dict().items())


@pytest.mark.parametrize("settings", [SETTINGS, replace(SETTINGS, mixing=Mixing(off_epoch=2))])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    tiny_spec: ViTSpec, tiny_data: Dataset, tmp_path: Path, settings: TrainSettings
) -> None:
    whole = _network(tiny_spec)
    records = train(whole, tiny_data, CrossEntropy(), settings, 7)

    def die(record: dict[str, Any]) -> None:
        if record["epoch"] == 1:
            raise _Killed

    with pytest.raises(_Killed):
        train(_network(tiny_spec), tiny_data, CrossEntropy(), settings, 7, tmp_path, on_epoch=die)
    torch.manual_seed(99)  # the state of the process that resumes does not matter
    resumed = VisionTransformer(tiny_spec)
    epochs: list[int] = []
    again = train(
        resumed,
        tiny_data,
        CrossEntropy(),
        settings,
        7,
        tmp_path,
        on_epoch=lambda record: epochs.append(record["epoch"]),
    )
    assert epochs == [2]
    assert _same(whole, resumed)
    assert again == records
    assert [row["epoch"] for row in read(tmp_path / "epochs.jsonl")] == [0, 1, 2]


def test_a_log_that_a_kill_left_one_row_short_is_caught_up(
    tiny_spec: ViTSpec, tiny_data: Dataset, tmp_path: Path
) -> None:
    train(_network(tiny_spec), tiny_data, CrossEntropy(), SETTINGS, 0, tmp_path)
    log = tmp_path / "epochs.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:-1]))
    train(_network(tiny_spec), tiny_data, CrossEntropy(), SETTINGS, 0, tmp_path)
    assert log.read_text() == "".join(lines)


def test_a_half_written_checkpoint_is_not_taken(tiny_spec: ViTSpec, tiny_data: Dataset, tmp_path: Path) -> None:
    train(_network(tiny_spec), tiny_data, CrossEntropy(), SETTINGS, 0, tmp_path)
    (tmp_path / "checkpoint-draft").mkdir()
    records = train(_network(tiny_spec), tiny_data, CrossEntropy(), SETTINGS, 0, tmp_path)
    assert len(records) == 3
    assert [path.name for path in sorted(tmp_path.glob("checkpoint-0*"))] == ["checkpoint-00003"]


def test_another_runs_checkpoint_is_refused(tiny_spec: ViTSpec, tiny_data: Dataset, tmp_path: Path) -> None:
    train(_network(tiny_spec), tiny_data, CrossEntropy(), SETTINGS, 0, tmp_path)
    with pytest.raises(ValueError, match="holds a run with another seed, settings"):
        train(_network(tiny_spec), tiny_data, CrossEntropy(), replace(SETTINGS, lr=1e-3), 1, tmp_path)


def test_training_learns_and_depends_on_the_seed_alone(tiny_spec: ViTSpec, tiny_data: Dataset) -> None:
    settings = replace(SETTINGS, epochs=15, augmentation=None)
    first, second, third = (_network(tiny_spec) for _ in range(3))
    train(first, tiny_data, CrossEntropy(), settings, 0)
    train(second, tiny_data, CrossEntropy(), settings, 0)
    train(third, tiny_data, CrossEntropy(), settings, 1)
    assert _same(first, second)
    assert not _same(first, third)
    assert accuracy(first, tiny_data.test_images, tiny_data.test_labels) >= 8 / 9


def test_training_leaves_the_callers_random_state_alone(tiny_spec: ViTSpec, tiny_data: Dataset) -> None:
    network = _network(tiny_spec)
    before = torch.get_rng_state()
    train(network, tiny_data, CrossEntropy(), SETTINGS, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_accuracy_counts_and_restores_the_mode() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False)).train()
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(2))
    images = torch.tensor([[1.0, 0], [0, 1], [1, 0], [1, 0]])
    assert accuracy(model, images, torch.tensor([0, 1, 1, 0])) == 0.75
    assert model.training


def test_theta_vectors_and_biases_do_not_decay_and_theta_has_its_own_rate(tiny_spec: ViTSpec) -> None:
    network = search_network(tiny_spec, ("relu_softmax", "scaling"))
    settings = TrainSettings(epochs=2, batch=8, lr=1e-3, theta_lr=0.02, weight_decay=0.1)
    decays = _by_parameter(network, settings, "weight_decay")
    for name, parameter in network.named_parameters():
        exempt = parameter.ndim <= 1 or name.endswith("theta")
        assert decays[name] == (0.0 if exempt else 0.1), name
    scales = _by_parameter(network, settings, "lr_scale")
    assert {name for name, scale in scales.items() if scale == 20} == {"blocks.0.attn.theta", "blocks.1.attn.theta"}
    decayed = _by_parameter(network, replace(settings, decay_theta=True), "weight_decay")
    assert decayed["blocks.0.attn.theta"] == 0.1


def _by_parameter(network: nn.Module, settings: TrainSettings, key: str) -> dict[str, float]:
    groups = make_optimizer(network, settings).param_groups
    values = {id(parameter): group.get(key, 1.0) for group in groups for parameter in group["params"]}
    return {name: values[id(parameter)] for name, parameter in network.named_parameters()}


def test_the_rate_warms_up_falls_as_a_cosine_and_cools_down(tiny_spec: ViTSpec, tiny_data: Dataset) -> None:
    settings = TrainSettings(
        epochs=4, batch=8, lr=1e-3, warmup_epochs=1, warmup_lr=1e-4, min_lr=1e-5, cooldown_epochs=1
    )
    rates = [
        record["learning_rate"] for record in train(_network(tiny_spec), tiny_data, CrossEntropy(), settings, 0)
    ]  # the rate of the third and last update of each epoch: update 2, 5, 8, 11 of 12, then the cool-down
    cosine = [1e-5 + 0.5 * (1e-3 - 1e-5) * (1 + math.cos(math.pi * update / 12)) for update in (5, 8, 11)]
    assert rates == pytest.approx([1e-4 + 2 / 3 * 9e-4, *cosine, 1e-5])


def test_a_loss_that_is_not_finite_ends_the_run(tiny_spec: ViTSpec, tiny_data: Dataset) -> None:
    def broken(model: nn.Module, images: Tensor, targets_BY: Tensor) -> dict[str, Tensor]:
        return {"cross_entropy": model(images).sum() * float("nan")}

    with pytest.raises(FloatingPointError, match="lower lr"):
        train(_network(tiny_spec), tiny_data, broken, SETTINGS, 0)


def test_every_term_is_recorded_and_they_add_up(tiny_spec: ViTSpec, tiny_data: Dataset) -> None:
    def two_terms(model: nn.Module, images: Tensor, targets_BY: Tensor) -> dict[str, Tensor]:
        loss = CrossEntropy()(model, images, targets_BY)["cross_entropy"]
        return {"cross_entropy": loss, "other": 2 * loss.detach()}

    record = train(_network(tiny_spec), tiny_data, two_terms, replace(SETTINGS, epochs=2), 0)[0]
    assert record["loss"] == pytest.approx(record["cross_entropy"] + record["other"])
    assert record["other"] == pytest.approx(2 * record["cross_entropy"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs"),
        ({"lr": 0.0}, "lr > 0"),
        ({"warmup_epochs": 3}, "warmup"),
        ({"label_smoothing": 1}, "smooth"),
        ({"accumulate": 0}, "accumulate"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"optimizer": "adam"}, "unknown optimizer 'adam'; did you mean adamw"),
        ({"schedule": "step"}, "Known: cosine, linear"),
        ({"amp": "float16"}, "Known: none, bf16, fp16"),
    ],
)
def test_settings_that_cannot_train_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SETTINGS, **change)


def test_the_images_that_validate_are_kept_and_must_stay_the_same(
    tiny_spec: ViTSpec, tiny_data: Dataset, tmp_path: Path
) -> None:
    split, other = (draw_split(torch.arange(20) % 4, count) for count in (2, 3))
    settings = replace(SETTINGS, epochs=1, warmup_epochs=0)
    train(_network(tiny_spec), replace(tiny_data, split=split), CrossEntropy(), settings, 7, tmp_path)
    assert read_split(tmp_path / "split.json") == split
    with pytest.raises(ValueError, match=r"split\.json holds another split"):
        train(_network(tiny_spec), replace(tiny_data, split=other), CrossEntropy(), settings, 7, tmp_path)
