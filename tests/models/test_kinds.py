# H heads, N tokens, D head_dim; every formula is written out over single entries, in float64
from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from models.kinds import EPS, KINDS, AttentionLayout, attention_kind, kind_named
from models.spec import BlockSpec, ViTSpec
from models.vit import VisionTransformer

N, D = 9, 4


@pytest.fixture
def scores() -> Tensor:
    return 3 * torch.randn(2, 3, N, N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def qkv() -> Tensor:
    return torch.randn(3, 2, 3, N, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def registry() -> Iterator[None]:
    before = dict(KINDS)
    yield
    KINDS.clear()
    KINDS.update(before)


def apply(kind: str, *operands: Tensor, linformer_k: int | None = None) -> Tensor:
    output: Tensor = kind_named(kind).make(AttentionLayout(N, D, linformer_k)).double()(*operands)
    return output


FORMULAS = {
    "softmax": lambda row: row.exp() / row.exp().sum(),
    "relu_softmax": lambda row: row.clamp(min=0) / (row.clamp(min=0).sum() + 2**-16),
    "scaling": lambda row: row / N,
    "quad": lambda row: (row + 5) ** 2 / ((row + 5) ** 2).sum(),
    "quad_noshift": lambda row: row**2 / ((row**2).sum() + 2**-16),
}


@pytest.mark.parametrize("kind", FORMULAS)
def test_a_map_kind_follows_its_formula_row_by_row(kind: str, scores: Tensor) -> None:
    expected = torch.stack([FORMULAS[kind](row) for row in scores.reshape(-1, N)]).reshape(scores.shape)
    torch.testing.assert_close(apply(kind, scores), expected, rtol=1e-12, atol=1e-14)


def test_every_map_kind_of_the_table_has_a_formula_here() -> None:
    assert set(FORMULAS) == {name for name, kind in KINDS.items() if kind.form == "map"}


def test_a_row_without_positive_scores_gives_zero_and_a_finite_gradient() -> None:
    scores = torch.full((1, 1, 1, N), -1.0, requires_grad=True)
    weights = apply("relu_softmax", scores.double())
    weights.sum().backward()
    assert torch.equal(weights, torch.zeros_like(weights))
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


def test_eps_is_one_unit_of_sixteen_fractional_bits() -> None:
    assert EPS * 2**16 == 1


@pytest.mark.parametrize("kind", ["relu_softmax", "quad", "quad_noshift"])
def test_the_gradient_of_a_normalised_kind_is_that_of_its_formula(kind: str) -> None:
    scores = torch.randn(1, 2, 3, N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: apply(kind, s), scores.requires_grad_())


def test_linear_order_equals_quadratic_order(qkv: Tensor) -> None:
    q, k, v = qkv
    quadratic = apply("scaling", q @ k.transpose(-2, -1) / D**0.5) @ v
    torch.testing.assert_close(apply("scaling_linear", q, k, v), quadratic, rtol=1e-12, atol=1e-14)


def test_linformer_shares_one_projection_between_heads_keys_and_values(qkv: Tensor) -> None:
    module = kind_named("linformer").make(AttentionLayout(N, D, linformer_k=2)).double()
    [projection] = module.parameters()
    assert projection.shape == (2, N)
    q, k, v = qkv
    for image in range(2):
        for head in range(3):
            keys, values = projection @ k[image, head], projection @ v[image, head]
            expected = torch.softmax(q[image, head] @ keys.T / D**0.5, -1) @ values
            torch.testing.assert_close(module(q, k, v)[image, head], expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("tokens", "rows"), [(65, 20), (257, 77), (2, 1), (1, 1)])
def test_linformer_keeps_three_tenths_of_the_tokens_unless_told(tokens: int, rows: int) -> None:
    [projection] = kind_named("linformer").make(AttentionLayout(tokens, D)).parameters()
    assert projection.shape == (rows, tokens)


@pytest.mark.usefixtures("registry")
def test_a_kind_of_the_users_own_works_in_a_spec() -> None:
    @attention_kind("squared_relu")
    def squared_relu(scores_BHNN: Tensor) -> Tensor:
        return torch.square(torch.relu(scores_BHNN)) / scores_BHNN.shape[-1]

    spec = ViTSpec(8, 4, 8, 3, (BlockSpec(("squared_relu", "softmax"), 4, 8),))
    network = VisionTransformer(spec).eval()
    assert network(torch.randn(2, 3, 8, 8)).shape == (2, 3)
    assert "blocks.0.attn.kind.squared_relu" in dict(network.named_modules())
    assert KINDS["squared_relu"].form == "map"


@pytest.mark.usefixtures("registry")
def test_a_whole_kind_may_be_a_module_with_parameters() -> None:
    @attention_kind("gated_values", form="whole")
    class GatedValues(nn.Module):
        def __init__(self, layout: AttentionLayout) -> None:
            super().__init__()
            self.gate = nn.Parameter(torch.full((layout.tokens, 1), 2.0))

        def forward(self, q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor) -> Tensor:
            return v_BHND * self.gate

    v = torch.randn(1, 2, N, D)
    assert torch.equal(kind_named("gated_values").make(AttentionLayout(N, D))(v, v, v), 2 * v)


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    ("name", "message"), [("softmax", "registered already"), ("a.b", "identifier"), ("keys", "ModuleDict")]
)
def test_a_name_that_is_taken_or_cannot_name_a_module_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attention_kind(name)


def test_an_unknown_kind_names_the_nearest_and_all() -> None:
    with pytest.raises(ValueError, match=r"did you mean relu_softmax\? Known: softmax, .*linformer"):
        kind_named("relusoftmax")
