from __future__ import annotations

import pytest

from models.names import build, input_shape, spec_named
from models.vitas import macs_published, parse_vitas
from mpc.reading import shape_reading

DEIT_TINY = "16/192" + ";3,576,768" * 12


@pytest.mark.parametrize(
    ("name", "parameters", "published", "true"),
    [
        ("vitas_a", 3_679_478, 858_652_480, None),
        ("vitas_c", 6_048_414, 1_303_042_496, 1_265_114_864),
        (DEIT_TINY, None, 1_284_003_840, 1_253_683_200),
    ],
)
def test_published_networks_have_the_published_figures(
    name: str, parameters: int | None, published: int, true: int | None
) -> None:
    spec = spec_named(f"vitas:{name}")
    network = build(f"vitas:{name}", draws=False)
    assert macs_published(spec) == published
    if parameters is not None:
        assert sum(p.numel() for p in network.parameters()) == parameters
    if true is not None:
        assert shape_reading(network, input_shape(network)).macs == true


def test_heads_are_scaled_by_their_true_width() -> None:
    [first, *_] = spec_named("vitas:vitas_c").blocks
    assert (first.heads, first.head_dim) == (3, 48)


def test_a_width_of_queries_and_keys_need_not_be_that_of_the_stream() -> None:
    spec = parse_vitas("4/10;2,12,8; 1, 9, 4", image_px=8, classes=3)
    assert [(b.heads, b.head_dim, b.mlp_width) for b in spec.blocks] == [(2, 2, 8), (1, 3, 4)]
    assert (spec.residual, spec.qkv_bias, spec.classes) == ("pre_norm", True, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("16/192", r"defines no block; write PATCH/WIDTH;HEADS,QKV,MLP"),
        ("16;3,576,768", r"cannot read '16' in"),
        ("16/192;3,576", r"cannot read '3,576' in"),
        ("16/192;3,576,0", r"cannot read '3,576,0' in"),
        ("16/192;5,576,768", r"5 heads do not divide qkv width 576 / 3; these fit: 570, 585"),
        ("15/192;3,576,768", r"patch_px 15 does not divide image_px 224"),
    ],
)
def test_a_definition_that_is_none_says_what_to_write(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_vitas(text)
