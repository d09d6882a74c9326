from __future__ import annotations

import pytest
import torch
from torch import nn

from models.names import build, input_shape
from models.undrawn import Undrawn
from mpc.reading import shape_reading

# With no buffers, with index tables and masks, with position codes, with drop rates and gates; and ours.
NAMES = [
    "timm:deit_tiny_patch16_224",
    "timm:deit_tiny_distilled_patch16_224?img_size=64&num_classes=10",
    "timm:vit_relpos_small_patch16_224?depth=2",
    "timm:swin_tiny_patch4_window7_224",
    "timm:eva02_tiny_patch14_224",
    "timm:cait_xxs24_224",
    "timm:convit_tiny",
    "timm:mixer_s32_224",
    "mpcvit:vit_2_4_32?kind=linformer&linformer_k=11",
    "resnas:vit_res_tiny?image_px=56",
]


@pytest.mark.parametrize("name", NAMES)
def test_an_undrawn_network_differs_in_the_values_of_its_parameters_only(name: str) -> None:
    drawn, undrawn = build(name), build(name, draws=False)
    for pair in zip(drawn.named_parameters(), undrawn.named_parameters(), strict=True):
        (of_drawn, a), (of_undrawn, b) = pair
        assert (of_drawn, a.shape, a.dtype, a.device) == (of_undrawn, b.shape, b.dtype, b.device)
    for (of_drawn, x), (of_undrawn, y) in zip(drawn.named_buffers(), undrawn.named_buffers(), strict=True):
        assert of_drawn == of_undrawn
        assert torch.equal(x, y)
    assert not undrawn.training
    assert shape_reading(undrawn, input_shape(undrawn)) == shape_reading(drawn, input_shape(drawn))


def test_the_random_generator_is_left_as_it_is_and_drawing_uses_it() -> None:
    before = torch.get_rng_state()
    build("timm:deit_tiny_patch16_224", draws=False)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(3)
    first = build("mpcvit:vit_2_4_32").state_dict()
    torch.manual_seed(3)
    assert all(torch.equal(first[name], value) for name, value in build("mpcvit:vit_2_4_32").state_dict().items())


def test_writes_to_parameters_are_left_out_and_others_are_not() -> None:
    parameter, buffer = nn.Parameter(torch.full((2, 3), 7.0)), torch.zeros(2, 3)
    with Undrawn():
        nn.init.kaiming_uniform_(parameter)
        nn.init.constant_(tensor=parameter, val=1.0)
        with torch.no_grad():
            assert parameter.normal_() is parameter
            parameter.requires_grad_(False)
        nn.init.ones_(buffer)
        buffer.add_(1)
    assert torch.equal(parameter, torch.full((2, 3), 7.0))
    assert not parameter.requires_grad
    assert torch.equal(buffer, torch.full((2, 3), 2.0))
