from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from models.names import SPECS, architecture, build, input_shape, spec_named
from models.vit import VisionTransformer


@pytest.mark.parametrize("name", SPECS)
def test_every_named_spec_carries_its_name_and_tokens(name: str) -> None:
    spec = SPECS[name]
    assert spec.name == name
    assert spec.tokens == {32: 65, 64: 257, 224: 197}[spec.image_px]
    assert all(block.attention_width == spec.dim for block in spec.blocks)


def test_the_demo_network_runs_in_evaluation_mode() -> None:
    network = build("mpcvit:vit_4_4_32_demo?kind=relu_softmax&classes=7")
    assert isinstance(network, VisionTransformer)
    assert not network.training
    assert network(torch.zeros(input_shape(network))).shape == (1, 7)
    assert network.spec.kinds_per_block == (("relu_softmax",) * 4,) * 4


def test_linformer_takes_its_rows_from_the_name() -> None:
    spec = spec_named("mpcvit:vit_2_4_32?kind=linformer&linformer_k=11")
    [first, second] = [p for n, p in VisionTransformer(spec).named_parameters() if n.endswith("projection")]
    assert first.shape == second.shape == (11, 65)


def test_a_spec_file_is_a_network(tmp_path: Path) -> None:
    path = tmp_path / "3.json"
    path.write_text(json.dumps(SPECS["vit_4_4_32"].to_json()))
    assert spec_named(f"spec:{path}") == SPECS["vit_4_4_32"]


def test_a_staged_spec_file_is_a_network_and_no_plain_spec(tmp_path: Path) -> None:
    path = tmp_path / "4.json"
    spec = architecture("resnas:vit_res_tiny?image_px=56&classes=5&kind=scaling")
    path.write_text(json.dumps(spec.to_json()))
    assert architecture(f"spec:{path}") == spec
    assert build(f"spec:{path}")(torch.zeros(1, 3, 56, 56)).shape == (1, 5)
    with pytest.raises(ValueError, match="has stages, which this does not take"):
        spec_named(f"spec:{path}")


@pytest.mark.parametrize("name", ["vitas:4/12;2,12,8;1,6,4?image_px=8&classes=3", "resnas:vit_res_tiny?image_px=112"])
def test_options_reach_our_own_networks(name: str) -> None:
    shape = input_shape(build(name, draws=False))
    assert shape[-1] == int(name.partition("image_px=")[2].partition("&")[0])


def test_timm_networks_take_constructor_arguments() -> None:
    network = build("timm:deit_tiny_patch16_224?img_size=64&num_classes=10&in_chans=1")
    assert not network.training
    assert input_shape(network) == (1, 1, 64, 64)
    assert network(torch.zeros(1, 1, 64, 64)).shape == (1, 10)


def test_timm_convolutional_networks_have_an_input_shape() -> None:
    assert input_shape(build("timm:resnet18")) == (1, 3, 224, 224)


def test_deit_names_are_timms() -> None:
    assert type(build("deit:deit_tiny_patch16_224")) is type(build("timm:deit_tiny_patch16_224"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_7_4_32", r"write FAMILY:NAME"),
        ("mpcvt:vit_7_4_32", r"unknown network family 'mpcvt'; did you mean mpcvit\?"),
        ("mpcvit:vit_7_4_23", r"did you mean vit_7_4_32\? Known: vit_2_4_32, "),
        ("mpcvit:", r"write mpcvit:NAME"),
        ("mpcvit:vit_7_4_32?kind", r"cannot read 'kind'"),
        ("mpcvit:vit_7_4_32?", r"cannot read ''"),
        ("mpcvit:vit_7_4_32?kind=quad&kind=scaling", r"written once each"),
        ("mpcvit:vit_7_4_32?knd=quad", r"unknown option 'knd'; did you mean kind\?"),
        ("mpcvit:vit_7_4_32?kind=quadd", r"did you mean quad\?"),
        ("mpcvit:vit_7_4_32?classes=ten", r"classes must be a whole number, got 'ten'"),
        ("timm:deit_tiny_patch16_244", r"did you mean deit_tiny_patch16_224\?"),
        ("timm:resnet18?pretrained=True", r"weights are not downloaded"),
        ("timm:resnet18?img_sise=64", r"timm does not build resnet18 with"),
        ("deit:resnet18", r"unknown deit network"),
        ("vitas:vitas_d", r"unknown ViTAS network 'vitas_d'; did you mean vitas_"),
        (
            "vitas:vitas_b",
            r"vitas_b is tabulated in ViTAS's paper without its definition; vitas_a and vitas_c have one",
        ),
        ("vitas:vitas_c?class_tokens=2", r"unknown option 'class_tokens'"),
        ("resnas:vit_resnas_small", r"did you mean vit_resnas_tiny\?"),
        ("resnas:((4, 176),)", r"begins with an embedding \(0, 4 or 5\) and ends with a head"),
        ("resnas:vit_resnas_tiny?linformer_k=3", r"unknown option 'linformer_k'"),
        ("resnas:vit_resnas_tiny?class_tokens=3", r"class_tokens is 1, or 2 with a distillation token, got 3"),
        ("spec:absent.json", r"there is no spec file absent.json"),
    ],
)
def test_a_name_that_is_none_says_what_to_write(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(name)


def test_a_file_that_is_no_spec_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"broken.json is not a spec"):
        build(f"spec:{path}")


def test_a_foreign_module_has_no_input_shape() -> None:
    with pytest.raises(ValueError, match="Linear does not say"):
        input_shape(torch.nn.Linear(2, 2))
