"""Secure inference on images: the figures by hand, the record, and what it says about the health of the arithmetic."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from bench.health import truncated_elements
from bench.infer import Inference, infer, inference_record
from bench.records import plain
from models.spec import BlockSpec, ViTSpec
from models.vit import VisionTransformer
from mpc.fixed_point import expected_wraps
from mpc.parties import Parties
from mpc.ranges import Ranges
from mpc.scheme import Roles, Scheme

IMAGES = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1])


def _network(activation_scale: float = 1.0) -> nn.Module:
    torch.manual_seed(0)
    block = BlockSpec(("relu_softmax", "scaling"), 4, 8)
    network = VisionTransformer(ViTSpec(8, 4, 8, 3, (block,) * 2)).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Linear):
                module.weight.mul_(20.0)  # logits of one image that differ from those of another
        for layer in network.blocks:
            layer.get_submodule("mlp.fc1").get_parameter("weight").mul_(activation_scale)
    return network


def test_figures_follow_from_the_logits_of_both_readings() -> None:
    secure = torch.tensor([[1.0, 2.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 5.0]])
    plain_logits = torch.tensor([[1.0, 2.25, 0.0], [3.0, 0.0, 1.0], [0.0, 6.0, 5.5]])
    result = Inference((), secure, plain_logits, torch.tensor([1, 0, 1]), {})
    assert result.agreement == result.secure_accuracy == pytest.approx(2 / 3)
    assert result.plain_accuracy == 1.0
    assert (result.max_logit_difference, result.min_plain_margin) == (6.0, 0.5)
    without = replace(result, labels=None)
    assert (without.plain_accuracy, without.secure_accuracy) == (None, None)


@pytest.mark.parties
def test_images_pass_both_readings_in_batches(two_parties: Parties) -> None:
    network, heard = _network(), []
    roles = Roles(input_owner=1, model_owner=0, reveal_to=1)
    result = infer(
        two_parties, network, IMAGES, LABELS, roles=roles, batch=2, progress=lambda *done: heard.append(done)
    )
    assert heard == [(0, 5), (2, 5), (4, 5), (5, 5)]
    assert [len(run.output) for run in result.runs] == [2, 2, 1]
    with torch.no_grad():
        assert torch.equal(result.plain_logits, network(IMAGES))
    assert result.min_plain_margin > 2 * result.max_logit_difference, "choose a network whose logits differ more"
    assert result.agreement == 1.0 and 0 < result.max_logit_difference < 2e-2
    assert (
        result.secure_accuracy
        == result.plain_accuracy
        == pytest.approx(float((result.plain_logits.argmax(1) == LABELS).double().mean()))
    )
    record = plain(inference_record(result, "tiny"))
    assert {"agreement", "max_logit_difference", "min_plain_margin", "seconds", "scheme", "roles"} < record.keys()
    assert (record["images"], record["batch"], record["roles"]) == (5, 2, roles.to_json())
    assert record["seconds"]["online"]["n"] == 3
    assert record["seconds_per_image"] == pytest.approx(sum(record["seconds"]["online"]["samples"]) / 5)
    assert record["online"] == result.runs[0].traffic.online.to_json()
    assert record["offline"]["derived"] is True  # under TFP nobody sends what a dealer would have sent
    assert record["health"]["functions_outside_their_domain"] == []
    health = record["health"]
    assert health["ranges"] == "checked by a plain shadow" and health["outside"] == [] and health["checked"] > 0
    images = [len(run.output) for run in result.runs]
    wraps = [truncated_elements(run.trace, run.scheme) for run in result.runs]
    assert [truncations * images[0] for truncations in wraps] == [wraps[0] * n for n in images] and wraps[0] > 0
    assert health["truncated"] == wraps[0] and 0 < health["expected_wraps"] < 1e-3
    assert health["expected_wraps"] >= expected_wraps(float(IMAGES.abs().max()), sum(wraps))


@pytest.mark.parties
def test_functions_that_leave_their_domain_are_named_with_their_module(two_parties: Parties) -> None:
    network = _network(activation_scale=4.0)
    released = infer(two_parties, network, IMAGES, scheme=Scheme(functions="released"), batch=5)
    record = inference_record(released, "tiny")
    outside = {(row["op"], row["site"]) for row in record["health"]["functions_outside_their_domain"]}
    assert ("gelu", "blocks.0.mlp.act") in outside
    assert (record["plain_accuracy"], record["secure_accuracy"]) == (None, None)
    documented = infer(two_parties, network, IMAGES, batch=5)
    assert not inference_record(documented, "tiny")["health"]["functions_outside_their_domain"]
    assert documented.max_logit_difference < 5e-2 < released.max_logit_difference


@pytest.mark.parties
def test_without_a_plain_shadow_only_a_secure_check_knows_what_lay_outside(tuned_parties: Parties) -> None:
    network, checking = _network(), replace(tuned_parties.scheme, range_check=True)
    narrow = Ranges((("blocks.0.mlp.act", "gelu", -(2.0**-6), 2.0**-6),))
    unseen = inference_record(infer(tuned_parties, network, IMAGES, ranges=narrow, shadow=False), "tiny")["health"]
    assert (unseen["ranges"], unseen["functions_outside_their_domain"]) == ("unchecked", None)
    assert (unseen["outside_securely"], unseen["expected_wraps"]) == (None, None)
    counted = infer(tuned_parties, network, IMAGES, scheme=checking, ranges=narrow, batch=3)
    health = inference_record(counted, "tiny")["health"]
    assert health["ranges"] == "checked securely" and health["outside_securely"] > 0
    assert [(row["op"], row["site"]) for row in health["functions_outside_their_domain"]] == [
        ("gelu", "blocks.0.mlp.act")
    ]


@pytest.mark.parties
def test_three_parties_have_no_expected_wraps(three_parties: Parties) -> None:
    result = infer(three_parties, _network(), IMAGES[:1], LABELS[:1])
    health = inference_record(result, "tiny")["health"]
    assert health["expected_wraps"] is None and health["truncated"] > 0
    assert result.max_logit_difference < 2e-2


@pytest.mark.parties
def test_a_batch_of_no_images_is_refused(two_parties: Parties) -> None:
    with pytest.raises(ValueError, match="batch must be at least 1"):
        infer(two_parties, _network(), IMAGES, batch=0)
