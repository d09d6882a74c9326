from __future__ import annotations

import multiprocessing
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.records import read
from cost_models.latency_term import KindLatency, MixtureLatency
from models.spec import ViTSpec
from nas.binarise import binarise
from nas.data import Dataset
from nas.objectives import L1, Latency
from nas.search_mpcvit import search, zero_shot_accuracy
from nas.settings import TrainSettings

SETTINGS = TrainSettings(epochs=2, batch=8, lr=1e-2, theta_lr=0.1)
LAYER = {"relu_softmax": KindLatency(3.0, 0.1), "scaling": KindLatency(0.01, 0.001)}
LATENCY = MixtureLatency(("relu_softmax", "scaling"), "cheetah-wan", 5.0, layers=(LAYER, LAYER), heads=(2, 2))


def test_every_epoch_is_recorded_with_the_latency_and_its_gradient(
    tiny_spec: ViTSpec, tiny_data: Dataset, tmp_path: Path
) -> None:
    result = search(tiny_spec, tiny_data, Latency(LATENCY, 1.0), SETTINGS, 3, tmp_path)
    rows = read(tmp_path / "epochs.jsonl", "search_epoch")
    assert rows == [{"schema": 1, **record} for record in result.records]
    assert [(row["objective"], row["seed"], row["epoch"]) for row in rows] == [
        ("latency@cheetah-wan", 3, e) for e in (0, 1)
    ]
    last = rows[-1]
    assert last["latency_gradient_norm"] > 0
    assert last["latency_s"] == pytest.approx(result.latency_s)
    assert last["loss"] == pytest.approx(last["cross_entropy"] + last["penalty"])
    assert last["p_relu_softmax"] == result.p_LHK[:, :, 0].tolist()
    assert result.accuracy == last["accuracy"]


def test_the_gradient_norm_is_that_of_the_latency_term_alone(
    tiny_spec: ViTSpec, tiny_data: Dataset, tmp_path: Path
) -> None:
    objective = Latency(LATENCY, 2.0)
    result = search(tiny_spec, tiny_data, objective, replace(SETTINGS, epochs=1), 0, tmp_path)
    p = result.p_LHK[:, :, 0]
    # d penalty / d p_h of the dear kind, times the slope p (1 - p) of the sigmoid, by hand for two heads a layer
    other = p.flip(-1)
    slope = 3.0 * (1 - other) + 0.1 - 0.01 * other - 0.001
    expected = (2.0 * slope / objective.spread_s * p * (1 - p)).norm()
    assert result.records[-1]["latency_gradient_norm"] == pytest.approx(float(expected), rel=1e-4)


def test_a_heavier_latency_moves_heads_to_the_cheap_kind(
    tiny_spec: ViTSpec, tiny_data: Dataset, tmp_path: Path
) -> None:
    light = search(tiny_spec, tiny_data, Latency(LATENCY, 1e-6), SETTINGS, 0, tmp_path / "light")
    heavy = search(tiny_spec, tiny_data, Latency(LATENCY, 100.0), SETTINGS, 0, tmp_path / "heavy")
    assert bool((heavy.p_LHK[:, :, 0] < light.p_LHK[:, :, 0]).all())
    assert bool((heavy.p_LHK[:, :, 0] < 0.5).all())


def test_an_l1_search_knows_no_seconds(tiny_spec: ViTSpec, tiny_data: Dataset, tmp_path: Path) -> None:
    result = search(tiny_spec, tiny_data, L1(1e-2), SETTINGS, 0, tmp_path)
    assert result.latency_s is None
    assert result.records[-1]["latency_gradient_norm"] is None
    # the norm's gradient is weight p (1 - p) for each of 4 heads
    p = result.p_LHK[:, :, 0]
    assert result.records[-1]["penalty_gradient_norm"] == pytest.approx(float((1e-2 * p * (1 - p)).norm()), rel=1e-4)


def test_the_papers_own_alpha_starts_at_1(tiny_spec: ViTSpec, tiny_data: Dataset, tmp_path: Path) -> None:
    settings = TrainSettings(epochs=1, batch=24, lr=1e-4)
    result = search(tiny_spec, tiny_data, L1(1e-5, parametrisation="direct"), settings, 0, tmp_path)
    torch.testing.assert_close(result.p_LHK[:, :, 0], torch.ones(2, 2, dtype=torch.float64), atol=1e-3, rtol=0)


def test_a_penalty_without_gradient_fails_loudly(tiny_spec: ViTSpec, tiny_data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="exactly zero at every epoch"):
        search(tiny_spec, tiny_data, Latency(LATENCY, 0.0), SETTINGS, 0, tmp_path)


def test_zero_shot_uses_the_searchs_own_weights(tiny_spec: ViTSpec, tiny_data: Dataset, tmp_path: Path) -> None:
    settings = replace(SETTINGS, epochs=15, theta_lr=1.0)
    result = search(tiny_spec, tiny_data, Latency(LATENCY, 100.0), settings, 0, tmp_path)
    assert float(result.p_LHK[:, :, 0].max()) < 1e-3  # all but discrete, so the discrete network must do as well
    kinds = binarise(result.p_LHK, result.kinds, 0.0)
    assert zero_shot_accuracy(result, kinds, tiny_data) == result.accuracy > 1 / 3


def _search_and_die_after_the_first_epoch(spec: ViTSpec, data: Dataset, folder: Path) -> None:
    def die(record: dict[str, Any]) -> None:
        signal.raise_signal(signal.SIGKILL)

    search(spec, data, Latency(LATENCY, 1.0), SETTINGS, 0, folder, on_epoch=die)


@pytest.mark.slow
def test_a_search_killed_by_sigkill_continues_to_the_same_result(
    tiny_spec: ViTSpec, tiny_data: Dataset, tmp_path: Path
) -> None:
    whole = search(tiny_spec, tiny_data, Latency(LATENCY, 1.0), SETTINGS, 0, tmp_path / "whole")
    arguments = (tiny_spec, tiny_data, tmp_path / "killed")
    child = multiprocessing.get_context("spawn").Process(target=_search_and_die_after_the_first_epoch, args=arguments)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert len(read(tmp_path / "killed" / "epochs.jsonl")) == 1
    resumed = search(tiny_spec, tiny_data, Latency(LATENCY, 1.0), SETTINGS, 0, tmp_path / "killed")
    assert resumed.probabilities == whole.probabilities
    assert resumed.records == whole.records
