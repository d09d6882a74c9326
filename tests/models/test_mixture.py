from __future__ import annotations

import pytest
import torch

from models.kinds import AttentionLayout
from models.mixture import MixedAttention, discretise, mixed_layers, probabilities, search_network
from models.names import SPECS
from models.spec import BlockSpec, ViTSpec
from models.vit import VisionTransformer

SPEC = ViTSpec(16, 4, 24, 5, (BlockSpec(("softmax",) * 3, 8, 32),) * 2)
MAPS = ("relu_softmax", "scaling", "quad")


def set_one_hot(network: VisionTransformer, kinds_per_layer: tuple[tuple[str, ...], ...]) -> None:
    """Logits so far apart that the probabilities are 0 and 1 to the last bit."""
    for layer, kinds in zip(mixed_layers(network), kinds_per_layer, strict=True):
        rows = [[1e4 if name == kind else -1e4 for name in layer.kinds[:-1]] for kind in kinds]
        layer.theta.data = torch.tensor(rows)


@pytest.mark.parametrize("kinds", [("relu_softmax", "scaling"), MAPS])
def test_a_one_hot_mixture_is_the_discrete_network(kinds: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    choice = ((kinds[0], kinds[-1], kinds[0]), (kinds[-1], kinds[1], kinds[0]))
    network = search_network(SPEC, kinds).eval()
    set_one_hot(network, choice)
    assert set(probabilities(network).unique().tolist()) == {0.0, 1.0}
    discrete = discretise(network, choice)
    images = torch.randn(4, 3, 16, 16)
    assert torch.equal(network(images), discrete(images))


def test_mixed_and_discrete_networks_share_names_and_initial_weights() -> None:
    torch.manual_seed(7)
    discrete = VisionTransformer(SPEC).state_dict()
    torch.manual_seed(7)
    mixed = search_network(SPEC, MAPS).state_dict()
    assert set(mixed) - set(discrete) == {"blocks.0.attn.theta", "blocks.1.attn.theta"}
    assert all(torch.equal(mixed[name], value) for name, value in discrete.items())


def test_a_mixture_is_the_weighted_sum_of_its_kinds() -> None:
    torch.manual_seed(0)
    layer = MixedAttention(24, 3, MAPS, AttentionLayout(tokens=17, head_dim=8)).eval()
    torch.nn.init.normal_(layer.theta)
    x = torch.randn(2, 17, 24)
    p = layer.probabilities()
    outputs = []
    for kind in MAPS:
        uniform = search_network(SPEC.with_kinds("softmax"), (kind, "softmax")).blocks[0].attn.eval()
        uniform.load_state_dict({**layer.state_dict(), "theta": torch.full((3, 1), 1e4)})
        uniform.proj = torch.nn.Identity()
        outputs.append(uniform(x).unflatten(-1, (3, 8)))
    heads = sum(p[:, index, None] * output for index, output in enumerate(outputs))
    torch.testing.assert_close(layer(x), layer.proj(heads.flatten(2)))


@pytest.mark.parametrize("kinds", [("relu_softmax", "scaling"), MAPS])
def test_probabilities_start_equal_and_carry_gradient(kinds: tuple[str, ...]) -> None:
    network = search_network(SPEC, kinds)
    p = probabilities(network)
    assert p.shape == (2, 3, len(kinds))
    assert torch.equal(p, torch.full_like(p, 0.5)) if len(kinds) == 2 else torch.allclose(p, torch.full_like(p, 1 / 3))
    p[..., 0].sum().backward()
    assert all((layer.theta.grad[:, 0] > 0).all() for layer in mixed_layers(network))


def test_the_task_loss_reaches_theta() -> None:
    torch.manual_seed(0)
    network = search_network(SPEC, MAPS[:2])
    network(torch.randn(4, 3, 16, 16)).square().sum().backward()
    assert all((layer.theta.grad != 0).all() for layer in mixed_layers(network))


def test_direct_parametrisation_is_the_released_alpha() -> None:
    network = search_network(SPEC, ("relu_softmax", "scaling"), parametrisation="direct")
    assert torch.equal(probabilities(network)[0, 0], torch.tensor([1.0, 0.0]))
    mixed_layers(network)[1].theta.data[2] = 1.25
    assert probabilities(network)[1, 2].tolist() == [1.25, -0.25]


def test_two_kinds_cost_one_parameter_a_head() -> None:
    network = search_network(SPECS["vit_7_4_32"], ("relu_softmax", "scaling"))
    assert sum(layer.theta.numel() for layer in mixed_layers(network)) == 28


@pytest.mark.parametrize(
    ("kinds", "parametrisation", "message"),
    [
        (("softmax", "linformer"), "sigmoid", r"'linformer' has no map of its own to mix; kinds that have: softmax, "),
        (("softmax",), "sigmoid", r"at least two different"),
        (("softmax", "softmax"), "sigmoid", r"at least two different"),
        (("softmax", "scalling"), "sigmoid", r"did you mean scaling\?"),
        (MAPS, "direct", r"'direct' mixes two kinds, got 3"),
        (MAPS, "sigmod", r"did you mean sigmoid\?"),
    ],
)
def test_what_cannot_be_mixed_is_refused(kinds: tuple[str, ...], parametrisation: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search_network(SPEC, kinds, parametrisation)  # type: ignore[arg-type]


def test_probabilities_of_a_discrete_network_are_refused() -> None:
    with pytest.raises(ValueError, match="search_network"):
        probabilities(VisionTransformer(SPEC))


def test_probabilities_of_layers_that_differ_in_heads_are_refused() -> None:
    uneven = ViTSpec(16, 4, 24, 5, (BlockSpec(("softmax",), 8, 32), BlockSpec(("softmax",) * 2, 8, 32)))
    with pytest.raises(ValueError, match=r"layers have \(1, 2\) heads"):
        probabilities(search_network(uneven, MAPS))
