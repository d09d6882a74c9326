from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.spec import ViTSpec
from models.vit import VisionTransformer
from nas.data import Dataset
from nas.distributed import Ranks
from nas.engine import Engine
from nas.evaluation import accuracy, shared_accuracy
from nas.losses import CrossEntropy
from nas.optimizers import make_optimizer, schedule
from nas.pace import Pace
from nas.randomness import Position, kept_generators
from nas.settings import TrainSettings
from nas.training import train

SETTINGS = TrainSettings(epochs=2, batch=8, lr=1e-2)
ON_CPU = pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")


def _network(spec: ViTSpec, **dropped: float) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(spec, **{"attn_dropout": 0.0, "drop_path": 0.0, **dropped})


def _trained(spec: ViTSpec, data: Dataset, settings: TrainSettings) -> dict[str, Tensor]:
    network = _network(spec)
    train(network, data, CrossEntropy(), settings, 0)
    return {name: value.cpu() for name, value in network.state_dict().items()}


def test_gathered_batches_make_the_update_of_one_large_batch(tiny_spec: ViTSpec, tiny_data: Dataset) -> None:
    settings = replace(SETTINGS, optimizer="sgd", clip_norm=1.0)
    whole = _trained(tiny_spec, tiny_data, settings)
    gathered = _trained(tiny_spec, tiny_data, replace(settings, batch=4, accumulate=2))
    other = _trained(tiny_spec, tiny_data, replace(settings, batch=4))
    for name, value in whole.items():
        torch.testing.assert_close(gathered[name], value, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(other["head.weight"], whole["head.weight"], atol=1e-4)


def test_the_last_update_of_an_epoch_takes_the_batches_that_are_left(tiny_spec: ViTSpec, tiny_data: Dataset) -> None:
    settings = replace(SETTINGS, batch=4, accumulate=4)  # 6 batches
    engine = Engine(_network(tiny_spec), tiny_data, CrossEntropy(), settings, 0, Ranks())
    assert list(engine.updates(0)) == [4, 6]
    assert (engine.updates_done, engine.images_done) == (2, 24)


def test_sgd_with_momentum_equals_torchs_own_step(tiny_spec: ViTSpec, tiny_data: Dataset) -> None:
    settings = replace(SETTINGS, optimizer="sgd", momentum=0.8, weight_decay=0.1, batch=24, epochs=3)
    network = _network(tiny_spec)
    engine = Engine(network, tiny_data, CrossEntropy(), settings, 0, Ranks())
    reference = torch.zeros_like(network.head.bias)
    with torch.no_grad():
        value = network.head.bias.clone()
    for epoch in range(3):
        gradients: list[Tensor] = []
        hook = network.head.bias.register_post_accumulate_grad_hook(
            lambda p, kept=gradients: kept.append(p.grad.clone())  # type: ignore[misc, union-attr]
        )
        list(engine.updates(epoch))
        hook.remove()
        (gradient,) = gradients
        reference = 0.8 * reference + gradient if epoch else gradient  # a bias: no decay
        value = value - engine.learning_rate() * (gradient + 0.8 * reference)  # Nesterov
        torch.testing.assert_close(network.head.bias.detach(), value)


def test_the_average_follows_the_weights_by_its_decay(tiny_spec: ViTSpec, tiny_data: Dataset) -> None:
    network = _network(tiny_spec)
    engine = Engine(network, tiny_data, CrossEntropy(), replace(SETTINGS, ema_decay=0.75), 0, Ranks())
    assert engine.ema is not None
    expected = torch.zeros(())
    for update, _ in enumerate(engine.updates(0)):
        now = network.head.weight.detach().clone()
        expected = 0.75 * expected + 0.25 * now if update else now  # the first update is where it starts
    torch.testing.assert_close(engine.ema.state_dict()["head.weight"], expected)


def test_a_linear_schedule_falls_in_equal_steps(tiny_spec: ViTSpec) -> None:
    settings = replace(SETTINGS, schedule="linear", lr=1.0, min_lr=0.0, epochs=2, cooldown_epochs=1)
    optimizer = make_optimizer(_network(tiny_spec), settings)
    set_rates = schedule(optimizer, settings, updates_per_epoch=2)
    rates = []
    for update in range(6):
        set_rates(update)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0, 0.0])


def test_positions_and_class_tokens_decay_where_asked(tiny_spec: ViTSpec) -> None:
    network = _network(tiny_spec)
    for decayed in (True, False):
        groups = make_optimizer(network, replace(SETTINGS, decay_embeddings=decayed)).param_groups
        decays = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
        expected = SETTINGS.weight_decay if decayed else 0.0
        assert (decays[id(network.pos_embed)], decays[id(network.cls_token)]) == (expected, expected)
        assert decays[id(network.head.weight)] == SETTINGS.weight_decay


@ON_CPU
def test_fp16_without_a_gpu_is_refused_with_advice(tiny_spec: ViTSpec, tiny_data: Dataset) -> None:
    with pytest.raises(ValueError, match="fp16 needs a GPU and this run is on cpu; use amp bf16 or none"):
        train(_network(tiny_spec), tiny_data, CrossEntropy(), replace(SETTINGS, amp="fp16"), 0)


def test_bf16_and_channels_last_stay_near_full_precision(tiny_spec: ViTSpec, tiny_data: Dataset) -> None:
    exact = _trained(tiny_spec, tiny_data, replace(SETTINGS, optimizer="sgd"))
    halved = _trained(tiny_spec, tiny_data, replace(SETTINGS, optimizer="sgd", amp="bf16"))
    ordered = _trained(tiny_spec, tiny_data, replace(SETTINGS, optimizer="sgd", channels_last=True))
    assert {value.dtype for value in halved.values()} == {torch.float32}
    assert not torch.equal(halved["head.weight"], exact["head.weight"])
    torch.testing.assert_close(halved["head.weight"], exact["head.weight"], atol=2e-3, rtol=0.05)
    torch.testing.assert_close(ordered["head.weight"], exact["head.weight"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # inside torch's compiler
def test_a_compiled_run_stays_near_a_plain_one(tiny_spec: ViTSpec, tiny_data: Dataset) -> None:
    plain = _trained(tiny_spec, tiny_data, replace(SETTINGS, optimizer="sgd"))
    compiled = _trained(tiny_spec, tiny_data, replace(SETTINGS, optimizer="sgd", compile=True))
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, atol=1e-4, rtol=1e-3)


def test_a_loss_hears_where_each_batch_is(tiny_spec: ViTSpec, tiny_data: Dataset) -> None:
    heard: list[Position] = []

    class Drawing(CrossEntropy):
        def at(self, position: Position) -> None:
            heard.append(position)

    train(_network(tiny_spec), tiny_data, Drawing(), SETTINGS, 5)
    assert heard == [Position(5, epoch, batch) for epoch in (0, 1) for batch in range(3)]


def test_dropout_does_not_depend_on_how_a_batch_was_loaded(
    tiny_spec: ViTSpec, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nas import engine

    def after_some_draws(*arguments: Any, **named: Any) -> Any:
        for batch in load(*arguments, **named):
            torch.rand(17)
            yield batch

    def trained() -> nn.Module:
        network = _network(tiny_spec, attn_dropout=0.5)
        train(network, tiny_data, CrossEntropy(), SETTINGS, 0)
        return network

    before, load = trained(), engine.training_batches
    monkeypatch.setattr(engine, "training_batches", after_some_draws)
    after = trained()
    assert all(torch.equal(value, after.state_dict()[name]) for name, value in before.state_dict().items())


def test_reports_count_images_and_what_is_left(
    tiny_spec: ViTSpec, tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 2))  # two seconds pass whenever somebody looks
    monkeypatch.setattr("nas.pace.time.monotonic", lambda: float(next(clock)))
    engine = Engine(_network(tiny_spec), tiny_data, CrossEntropy(), SETTINGS, 0, Ranks())
    reports: list[dict[str, Any]] = []
    pace = Pace(reports.append, engine, epochs=2, processes=1)
    for batches_done in engine.updates(0):
        pace.after_update(0, batches_done)
    assert [(report["batch"], report["updates"], report["batches"]) for report in reports] == [
        (1, 1, 3),
        (2, 2, 3),
        (3, 3, 3),
    ]
    assert [report["images_per_s"] for report in reports] == [2.0, 2.0, 2.0]  # 8 images in 4 seconds
    assert [report["remaining_s"] for report in reports] == [20.0, 16.0, 12.0]
    assert reports[-1]["loss"] == pytest.approx(engine.summed()["loss"] / 3)


def test_every_image_of_a_part_is_judged_once_whatever_the_number_of_processes(
    tiny_spec: ViTSpec, tiny_data: Dataset
) -> None:
    network = _network(tiny_spec)

    class Counting(Ranks):
        """One of `world` processes that are asked in turn: keeps its counts instead of adding them up."""

        def total(self, values: Tensor) -> Tensor:
            counts.append(values)
            return values

    for world in (1, 2, 4):  # 9 images: shares of 9; of 5 and 4; of 3, 2, 2 and 2
        counts: list[Tensor] = []
        for rank in range(world):
            shared_accuracy(network, tiny_data, tiny_data.test, Counting(rank, world))
        right, seen = torch.stack(counts).sum(0).tolist()
        assert seen == 9
        assert right / seen == accuracy(network, tiny_data.test_images, tiny_data.test_labels)


def test_generators_are_as_they_were() -> None:
    import random

    import numpy as np

    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())  # type: ignore[index, union-attr]
    with kept_generators():
        random.random(), np.random.rand(), torch.rand(1)
    after = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())  # type: ignore[index, union-attr]
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])
