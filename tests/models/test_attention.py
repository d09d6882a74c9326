# B images, N tokens, C channels, H heads, D head_dim
from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode

from models.attention import Attention
from models.kinds import KINDS, kind_named
from mpc.reading import shape_reading

C, N, D = 12, 10, 3


def one_head(layer: Attention, kinds: tuple[str, ...], head: int, x_BNC: Tensor) -> Tensor:
    """The output of one head from the layer's weights, alone and by itself."""
    heads = len(kinds)
    weights = layer.qkv.weight.reshape(3, heads, D, C)[:, head]
    q, k, v = (x_BNC @ weight.T for weight in weights)
    module = layer.kind[kinds[head]]
    if kind_named(kinds[head]).form == "whole":
        alone: Tensor = module(q[:, None], k[:, None], v[:, None])[:, 0]
        return alone
    output: Tensor = module(q @ k.transpose(1, 2) / D**0.5) @ v
    return output


@given(kinds=st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=7).map(tuple))
@settings(max_examples=60)
def test_any_mix_of_kinds_equals_its_heads_computed_one_by_one(kinds: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    layer = Attention(C, kinds, D, N).double().eval()
    x = torch.randn(2, N, C, dtype=torch.float64)
    heads = torch.cat([one_head(layer, kinds, head, x) for head in range(len(kinds))], dim=-1)
    expected = F.linear(heads, layer.proj.weight, layer.proj.bias)
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-12)


class Products(TorchFunctionMode):
    """Records the shape of the left side of every matrix product, and of what enters softmax and relu."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[int, ...]]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204
        name = getattr(func, "__name__", "")
        if name in ("matmul", "softmax", "relu"):
            self.seen.append((name, tuple(args[0].shape)))
        return func(*args, **(kwargs or {}))


def test_each_kind_runs_once_over_its_own_heads_and_the_products_run_once() -> None:
    kinds = ("softmax", "relu_softmax", "scaling", "relu_softmax", "softmax", "softmax")
    layer = Attention(C, kinds, D, N).eval()
    with Products() as products:
        layer(torch.randn(2, N, C))
    assert products.seen == [
        ("matmul", (2, 6, N, D)),
        ("softmax", (2, 3, N, N)),
        ("relu", (2, 2, N, N)),
        ("matmul", (2, 6, N, N)),
    ]


def test_the_secure_reading_finds_what_a_kind_costs_at_its_own_site() -> None:
    kinds = ("linformer", "softmax", "relu_softmax", "scaling_linear", "softmax")
    trace = shape_reading(Attention(C, kinds, D, N).eval(), (1, N, C))
    sites: dict[str, list[str]] = {}
    for operation in trace.operations:
        sites.setdefault(operation.site, []).append(operation.op)
    assert sites == {
        "qkv": ["linear"],
        "": ["matmul", "multiply", "matmul"],
        "kind.softmax": ["softmax"],
        "kind.relu_softmax": ["relu", "row_normalize"],
        "kind.linformer": ["linear", "matmul", "multiply", "softmax", "matmul"],
        "kind.scaling_linear": ["matmul", "multiply", "divide_by_public", "matmul"],
        "proj": ["linear"],
    }


def test_only_kinds_that_are_present_hold_parameters() -> None:
    names = set(dict(Attention(C, ("softmax", "scaling"), D, N).named_parameters()))
    assert names == {"qkv.weight", "proj.weight", "proj.bias"}
    with_linformer = set(dict(Attention(C, ("softmax", "linformer"), D, N).named_parameters()))
    assert with_linformer - names == {"kind.linformer.projection"}


def test_head_order_is_no_part_of_the_weights() -> None:
    assert "order" not in Attention(C, ("softmax", "scaling", "softmax"), D, N).state_dict()


def test_dropout_acts_on_attention_weights_in_training_only() -> None:
    torch.manual_seed(0)
    layer = Attention(C, ("scaling", "linformer"), D, N, attn_dropout=0.999999)
    x = torch.randn(2, N, C)
    assert torch.allclose(layer(x), layer.proj.bias.expand(2, N, C))
    assert not torch.allclose(layer.eval()(x), layer.proj.bias.expand(2, N, C))
