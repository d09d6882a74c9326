from __future__ import annotations

from dataclasses import replace

import pytest
import timm.models.vision_transformer
import torch
import torch.nn.functional as F
from torch import Tensor

from models.mixture import search_network
from models.names import SPECS
from models.spec import BlockSpec, ViTSpec
from models.vit import VisionTransformer


def parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_vit_7_4_32_holds_the_published_parameters() -> None:
    spec = SPECS["vit_7_4_32"]
    assert parameters(VisionTransformer(spec)) == 3_716_874
    assert parameters(search_network(spec, ("relu_softmax", "scaling"))) == 3_716_902


@pytest.mark.parametrize(
    ("name", "classes", "published"), [("vit_7_4_32", 100, 3_740_032), ("vit_7_4_32_wider", 10, 8_327_846)]
)
def test_its_relatives_hold_the_published_parameters_with_28_alphas(name: str, classes: int, published: int) -> None:
    assert parameters(VisionTransformer(replace(SPECS[name], classes=classes))) + 28 == published


def small(residual: str, **options: object) -> ViTSpec:
    block = BlockSpec(("softmax",) * 3, head_dim=8, mlp_width=40)
    return ViTSpec(16, 4, 24, 5, (block,) * 3, residual=residual, **options)  # type: ignore[arg-type]


def test_pre_norm_softmax_equals_timm_with_the_same_weights() -> None:
    torch.manual_seed(0)
    ours = VisionTransformer(small("pre_norm", qkv_bias=True)).double().eval()
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    theirs = timm.models.vision_transformer.VisionTransformer(
        img_size=16, patch_size=4, embed_dim=24, depth=3, num_heads=3, mlp_ratio=40 / 24, num_classes=5
    ).double()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(ours(images), theirs.eval()(images), rtol=1e-10, atol=1e-12)


def written_out(network: VisionTransformer, images: Tensor) -> Tensor:
    """MPCViT's forward pass as its specification states it, with functional calls on the network's weights."""
    w = network.state_dict()
    dim = network.spec.dim
    patches = F.conv2d(images, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=4)
    s = torch.cat([w["cls_token"].expand(len(images), 1, dim), patches.flatten(2).transpose(1, 2)], 1) + w["pos_embed"]
    for i, block in enumerate(network.spec.blocks):
        b = {name.removeprefix(f"blocks.{i}."): value for name, value in w.items() if name.startswith(f"blocks.{i}.")}
        normed = F.layer_norm(s, (dim,), b["norm1.weight"], b["norm1.bias"])
        q, k, v = (normed @ b["attn.qkv.weight"].T).unflatten(-1, (3, block.heads, -1)).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        s = s + F.linear(heads, b["attn.proj.weight"], b["attn.proj.bias"])
        s = F.layer_norm(s, (dim,), b["norm2.weight"], b["norm2.bias"])
        hidden = F.gelu(F.linear(s, b["mlp.fc1.weight"], b["mlp.fc1.bias"]))
        s = s + F.linear(hidden, b["mlp.fc2.weight"], b["mlp.fc2.bias"])
    return F.layer_norm(s, (dim,), w["norm.weight"], w["norm.bias"])


def test_mpcvit_replaces_the_stream_by_its_middle_norm() -> None:
    torch.manual_seed(0)
    network = VisionTransformer(small("mpcvit")).double().eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    expected = written_out(network, images)
    torch.testing.assert_close(network.tokens(images), expected, rtol=1e-10, atol=1e-12)
    logits = F.linear(expected[:, 0], network.head.weight, network.head.bias)
    torch.testing.assert_close(network(images), logits, rtol=1e-10, atol=1e-12)


def test_weights_start_as_the_paper_has_them() -> None:
    torch.manual_seed(0)
    network = VisionTransformer(SPECS["vit_7_4_32"])
    assert network.pos_embed.std().item() == pytest.approx(0.2, rel=0.02)
    assert network.blocks[3].attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert network.patch_embed.proj.weight.std().item() == pytest.approx((2 / 48) ** 0.5, rel=0.02)
    zeros = [network.cls_token, network.head.bias, *(block.attn.proj.bias for block in network.blocks)]
    assert all(not zero.any() for zero in zeros)
    assert network.blocks[0].attn.qkv.bias is None


def test_stochastic_depth_rises_from_none_to_the_last_block() -> None:
    network = VisionTransformer(small("mpcvit"), drop_path=0.3)
    assert [block.drop_path2.drop_prob for block in network.blocks] == pytest.approx([0, 0.15, 0.3])


@pytest.mark.parametrize(("activation", "function"), [("gelu", F.gelu), ("relu", F.relu), ("identity", lambda x: x)])
def test_the_activation_is_the_one_of_the_block(activation: str, function: object) -> None:
    spec = ViTSpec(8, 4, 6, 2, (BlockSpec(("softmax",), 6, 12, activation),))  # type: ignore[arg-type]
    hidden = torch.randn(4, 12)
    torch.testing.assert_close(VisionTransformer(spec).blocks[0].mlp.act(hidden), function(hidden))  # type: ignore[operator]
