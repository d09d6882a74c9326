from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from models.names import architecture, build, input_shape
from models.network_def import parse_network_def
from models.resnas import STAGED_SPECS
from models.staged import StagedTransformer, deployed
from models.staged_spec import StagedSpec
from models.undrawn import Undrawn
from mpc.reading import shape_reading
from mpc.trace import Trace

# Figures recomputed from ViT-ResNAS's published definitions, equal to its own counters: per image of 224 px.
PUBLISHED: dict[str, dict[str, Any]] = {
    "vit_res_tiny": {
        "macs": 1_794_378_240,
        "macs_distill": 1_834_082_304,
        "params_train": 42_781_736,
        "params_deploy": 42_012_736,
        "parts": (195_987_456, 556_205_568, 42_541_056, 473_041_920, 42_762_240, 483_072_000, 768_000),
        "nonlinear": (5_460, 907_860, 1_397_760, 3_035, 773_952, 903_168),
    },
    "vit_resnas_tiny": {
        "macs": 1_782_630_272,
        "macs_distill": 1_821_697_536,
        "params_train": 41_498_552,
        "params_deploy": 40_793_552,
        "parts": (191_170_560, 459_770_944, 35_746_304, 616_416_320, 35_932_160, 442_889_984, 704_000),
        "nonlinear": (8_661, 1_364_277, 1_543_168, 3_843, 915_376, 903_168),
    },
    "sr_tiny_mh": {
        "macs": 3_497_553_920,
        "macs_distill": 3_578_324_992,
        "params_train": 85_839_464,
        "params_deploy": 84_814_464,
        "parts": (215_255_040, 1_061_685_504, 75_628_544, 1_102_682_880, 76_021_760, 965_256_192, 1_024_000),
        "nonlinear": (15_156, 2_702_772, 2_096_640, 4_391, 1_497_856, 903_168),
    },
}
PARTS = ("stem", "stages.0", "reductions.0", "stages.1", "reductions.1", "stages.2", "head")

SMALL = (
    "((5, 8, 4), (1, (8, 2, 3), (8, 16), 1), (1, (8, 1, 3), (8, 4), 0), (3, 8, 12), (1, (12, 3, 2), (12, 8), 1), "
    "(3, 12, 12), (1, (12, 1, 5), (12, 6), 1), (2, 12, 7))"
)


def trace_of(name: str) -> Trace:
    network = build(name, draws=False)
    return shape_reading(network, input_shape(network))


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def small(class_tokens: int = 1, **options: Any) -> StagedTransformer:
    torch.manual_seed(0)
    network = StagedTransformer(parse_network_def(SMALL, image_px=56, class_tokens=class_tokens), **options)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 1.5)
    return network


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_have_the_published_macs_in_all_and_by_part(name: str) -> None:
    trace = trace_of(f"resnas:{name}")
    assert trace.macs == PUBLISHED[name]["macs"]
    assert tuple(trace.within(part).macs for part in PARTS) == PUBLISHED[name]["parts"]
    assert trace_of(f"resnas:{name}?class_tokens=2").macs == PUBLISHED[name]["macs_distill"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_have_the_published_parameters(name: str) -> None:
    with Undrawn():
        training, deploying = (StagedTransformer(STAGED_SPECS[name], patch_head=patches) for patches in (True, False))
    assert parameters(training) == PUBLISHED[name]["params_train"]
    assert parameters(deploying) == PUBLISHED[name]["params_deploy"]
    # Folding turns 24 scales and 24 shifts of each of three batch norms into 24 biases.
    assert parameters(build(f"resnas:{name}", draws=False)) == PUBLISHED[name]["params_deploy"] - 3 * 24


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_have_the_published_counts_of_functions(name: str) -> None:
    operations = trace_of(f"resnas:{name}").operations
    softmax = [o for o in operations if o.op == "softmax"]
    norms = [o for o in operations if o.op == "layer_norm"]
    counts = (
        sum(o.elements // o["length"] for o in softmax),
        sum(o.elements for o in softmax),
        sum(o.elements for o in operations if o.op == "gelu"),
        sum(o.elements // o["length"] for o in norms),
        sum(o.elements for o in norms),
        sum(o.elements for o in operations if o.op == "relu"),
    )
    assert counts == PUBLISHED[name]["nonlinear"]


@pytest.mark.parametrize(
    ("widths", "blocks", "macs"),
    [
        (((160, 3, 32, 384), (320, 6, 48, 768), (640, 6, 64, 1536)), "101010", 752_489_984),
        (((200, 5, 32, 480), (400, 10, 48, 960), (800, 10, 64, 1920)), "1010101", 1_470_482_304),
    ],
    ids=["sr_tiny_mh", "sr_small_mh"],
)
def test_smallest_networks_of_the_search_spaces_have_the_published_macs(
    widths: tuple[tuple[int, int, int, int], ...], blocks: str, macs: int
) -> None:
    entries: list[tuple[Any, ...]] = [(4, widths[0][0])]
    for index, (dim, heads, head_dim, mlp_width) in enumerate(widths):
        entries += [(3, widths[index - 1][0], dim)] if index else []
        entries += [(1, (dim, heads, head_dim), (dim, mlp_width), int(flag)) for flag in blocks]
    assert trace_of(f"resnas:{(*entries, (2, widths[-1][0], 1000))}").macs == macs


@pytest.mark.parametrize(
    ("dim", "heads", "one_token", "two_tokens"),
    [
        (192, 3, 1_253_683_200, 1_261_003_776),
        (384, 6, 4_598_882_304, 4_624_140_288),
        (768, 12, 17_563_828_224, 17_656_811_520),
    ],
)
def test_deit_is_a_network_of_one_stage(dim: int, heads: int, one_token: int, two_tokens: int) -> None:
    block = (1, (dim, heads, 64), (dim, 4 * dim), 1)
    name = f"resnas:{((0, dim), *[block] * 12, (2, dim, 1000))}?patch_px=16"
    assert trace_of(name).macs == one_token
    assert trace_of(f"{name}&class_tokens=2").macs == two_tokens


@pytest.mark.parametrize("class_tokens", [1, 2])
def test_folding_batch_norms_changes_no_answer(class_tokens: int) -> None:
    network = small(class_tokens, patch_head=class_tokens == 1).eval()
    images = torch.randn(2, 3, 56, 56)
    plain = deployed(network)
    assert not [module for module in plain.modules() if isinstance(module, nn.BatchNorm2d)]
    assert not [name for name in plain.state_dict() if name.startswith("patch_head")]
    torch.testing.assert_close(plain(images), network(images), rtol=1e-4, atol=1e-6)


def test_a_reduction_halves_the_grid_and_keeps_what_it_can() -> None:
    reduction = small().reductions[0].eval()
    nn.init.zeros_(reduction.conv.weight)
    nn.init.zeros_(reduction.conv.bias)
    nn.init.zeros_(reduction.linear.weight)
    nn.init.zeros_(reduction.pos_embed)
    stream = torch.randn(1, 1 + 16, 8)
    reduced = reduction(stream)
    assert reduced.shape == (1, 1 + 4, 12)
    assert torch.equal(reduced[:, :1, :8], stream[:, :1])
    torch.testing.assert_close(reduced[0, 1, :8], stream[0, [1, 2, 5, 6]].mean(0))
    assert not reduced[..., 8:].any()


def test_training_answers_what_there_is_to_learn_from() -> None:
    images = torch.randn(2, 3, 56, 56)
    assert [tuple(part.shape) for part in small(patch_head=True).train()(images)] == [(2, 7), (2, 1, 7)]
    assert [tuple(part.shape) for part in small(2).train()(images)] == [(2, 7), (2, 7)]
    assert small().train()(images).shape == (2, 7)
    with pytest.raises(ValueError, match="exclude each other"):
        small(2, patch_head=True)


def test_two_tokens_answer_with_the_mean_of_their_heads() -> None:
    network, images = small(2), torch.randn(2, 3, 56, 56)
    network.eval()
    network.training = True  # of this module alone: batch statistics would differ between the modes
    first, second = network(images)
    network.training = False
    torch.testing.assert_close(network(images), (first + second) / 2)


def test_blocks_that_are_taken_out_have_no_parameters_and_count_for_stochastic_depth() -> None:
    network = small(drop_path=0.3)
    rates = [block.drop_path1.drop_prob for stage in network.stages for block in stage]
    assert rates == pytest.approx([0.0, 0.2, 0.3])
    canonical = network.spec.canonical()
    assert parameters(StagedTransformer(canonical)) == parameters(network)
    assert [len(stage.blocks) for stage in canonical.stages] == [1, 1, 1]
    assert canonical != network.spec
    assert canonical.canonical() == canonical


def test_the_record_survives_json_and_the_spec_is_a_key() -> None:
    spec = architecture(f"resnas:{SMALL}?image_px=56&class_tokens=2&kind=quad")
    assert isinstance(spec, StagedSpec)
    again = StagedSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert {spec: 1}[again] == 1
    with pytest.raises(ValueError, match="unknown field of StagedSpec 'stage'; did you mean stages"):
        StagedSpec.from_json({**spec.to_json(), "stage": 1})
    with pytest.raises(ValueError, match="want a record 'staged_spec' of schema 1"):
        StagedSpec.from_json({**spec.to_json(), "record": "spec"})


def test_every_weight_gets_a_gradient() -> None:
    network = small(patch_head=True, drop_path=0.0).train()
    answer, parts = network(torch.randn(2, 3, 56, 56))
    (answer.square().sum() + parts.square().sum()).backward()
    assert not [name for name, parameter in network.named_parameters() if parameter.grad is None]
