from __future__ import annotations

import pytest
import torch

from cost_models.latency_term import KindLatency, MixtureLatency
from models.mixture import mixed_layers, probabilities, search_network
from models.spec import ViTSpec
from nas.objectives import L1, Latency

KINDS = ("relu_softmax", "scaling")


def latency(network: str = "cheetah-wan", relu_present_s: float = 3.0, relu_head_s: float = 0.1) -> MixtureLatency:
    layer = {"relu_softmax": KindLatency(relu_present_s, relu_head_s), "scaling": KindLatency(0.01, 0.001)}
    return MixtureLatency(KINDS, network, base_s=5.0, layers=(layer, layer), heads=(2, 2))


@pytest.mark.parametrize("relu_present_s", [3.0, 0.02])  # a slow and a fast network
def test_from_the_start_moving_heads_to_the_cheaper_kind_lowers_the_expected_seconds(
    tiny_spec: ViTSpec, relu_present_s: float
) -> None:
    network = search_network(tiny_spec, KINDS)
    objective = Latency(latency(relu_present_s=relu_present_s), 1.0)
    before = objective.seconds(probabilities(network))
    gradients = torch.autograd.grad(
        objective.penalty(probabilities(network)), [layer.theta for layer in mixed_layers(network)]
    )
    assert all(bool((gradient > 0).all()) for gradient in gradients)  # theta is the logit of the dear kind
    with torch.no_grad():
        mixed_layers(network)[0].theta -= 0.5
    assert objective.seconds(probabilities(network)) < before


def test_the_penalty_is_seconds_over_the_spread_of_uniform_choices() -> None:
    objective = Latency(latency(), weight=2.0)
    assert objective.spread_s == pytest.approx(2 * (3.0 + 2 * 0.1) - 2 * (0.01 + 2 * 0.001))
    dear = torch.tensor([[[1.0, 0.0]] * 2] * 2)
    cheap = dear.flip(-1)
    assert float(objective.penalty(dear) - objective.penalty(cheap)) == pytest.approx(2.0)
    assert objective.seconds(dear) == pytest.approx(5 + 6.4)


def test_where_rounds_are_free_latency_is_an_l1_norm() -> None:
    objective = Latency(latency().rounds_free(), weight=1.0)
    norm = L1(weight=(0.1 - 0.001) / objective.spread_s)
    p = torch.rand(2, 2, 1, dtype=torch.float64)
    p_LHK = torch.cat([p, 1 - p], dim=-1)
    uniform = torch.full_like(p_LHK, 0.5)
    moved = objective.penalty(p_LHK) - objective.penalty(uniform)
    torch.testing.assert_close(moved, norm.penalty(p_LHK) - norm.penalty(uniform))


def test_with_rounds_latency_is_not_an_l1_norm() -> None:
    objective = Latency(latency(), weight=1.0)
    together = torch.tensor([[[1.0, 0], [1, 0]], [[0, 1], [0, 1]]])
    apart = torch.tensor([[[1.0, 0], [0, 1]], [[0, 1], [1, 0]]])
    assert L1(1.0).penalty(together) == L1(1.0).penalty(apart) == 2
    assert objective.seconds(together) < objective.seconds(apart) - 2.9


def test_kinds_that_cost_the_same_leave_nothing_to_search() -> None:
    with pytest.raises(ValueError, match="nothing to search"):
        Latency(latency(relu_present_s=0.01, relu_head_s=0.001), 1.0)


def test_an_l1_norm_of_a_kind_that_is_not_searched_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot keep 'quad'"):
        L1(1.0, keep="quad")


def test_names_say_the_network() -> None:
    assert Latency(latency("cheetah-lan"), 1.0).name == "latency@cheetah-lan"
    assert L1(1.0).name == "l1"
    assert L1(1.0).seconds(torch.rand(1, 1, 2)) is None
