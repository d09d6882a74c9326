"""A trained network keeps its class on real images under secure computation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench.infer import infer
from models.names import spec_named
from mpc.parties import Parties
from nas.data import load
from nas.retrain import load_network, retrain
from nas.settings import DEMO_RETRAIN

IMAGES = 200
MIX = ("relu_softmax", "scaling", "relu_softmax", "scaling")


@pytest.mark.parties
@pytest.mark.slow
@pytest.mark.timeout(900)  # a minute where the machine is free; training and parties both crawl where it is not
def test_a_trained_network_agrees_with_its_plain_reading_on_real_images(two_parties: Parties, tmp_path: Path) -> None:
    spec = spec_named("mpcvit:vit_4_4_32_demo").with_kinds([MIX] * 4)
    settings = replace(DEMO_RETRAIN, epochs=9, evaluate_every=9, augmentation=None)
    trained = retrain(spec, "digits", settings, seed=0, folder=tmp_path)
    digits = load("digits")
    assert trained.accuracy >= 0.90
    images, labels = digits.test_images[:IMAGES], digits.test_labels[:IMAGES]
    result = infer(two_parties, load_network(tmp_path), images, labels, batch=40)
    assert len(result.secure_logits) == IMAGES
    assert result.plain_accuracy is not None and result.plain_accuracy >= 0.90
    assert result.agreement >= 0.98
    assert result.max_logit_difference < 0.05
    assert result.health["outside"] == []
