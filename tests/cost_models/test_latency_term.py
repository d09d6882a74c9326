from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cost_models.latency_term import KindLatency, MixtureLatency, mixture_latency, poisson_binomial
from cost_models.linear import POOLED, CostModel, InNetwork, Spread
from cost_models.vit_table import vit_trace
from models.spec import BlockSpec, ViTSpec
from mpc.network import LOOPBACK, NetworkProfile, network
from mpc.scheme import Scheme

# Compute bends where messages no longer fit a cache: it is no line in the number of heads.
COMPUTE = {"rounds": 2e-3, "ring_bytes": 8e-9, "macs": 1e-9, "operations": 1e-4, "far_bytes": 5e-8}
INSIDE = {POOLED: InNetwork(2e-5, 1.1), "relu": InNetwork(1e-4, 0.9)}
SCHEMES = [Scheme(), Scheme(transport="direct"), Scheme("tuned", transport="direct"), Scheme(parties=3)]
LINKS = [LOOPBACK, *map(network, ("cheetah-lan", "cheetah-wan", "400mbit/80ms"))]
KINDS = ("softmax", "relu_softmax", "scaling")
SPEC = ViTSpec(16, 4, 24, 10, (BlockSpec(("softmax",) * 3, 8, 24), BlockSpec(("softmax",) * 2, 12, 48, "relu")))
LARGE = ViTSpec(32, 4, 24, 10, (BlockSpec(("softmax",) * 5, 8, 24), BlockSpec(("softmax",) * 3, 4, 48)))


def model(scheme: Scheme) -> CostModel:
    spread = Spread(0.05, 0.1, 0.0, (-1.5, -0.7, 0.7, 1.5))
    return CostModel({POOLED: COMPUTE}, scheme, {"label": "test"}, spread, INSIDE, wake_s=3e-5)


def mixture(
    link: NetworkProfile = LOOPBACK, scheme: Scheme | None = None, kinds: tuple[str, ...] = KINDS, spec: ViTSpec = SPEC
) -> MixtureLatency:
    scheme = scheme or Scheme()
    return mixture_latency(spec, kinds, model(scheme), scheme, link)


trace_of = cache(vit_trace)  # the same for all schemes and links


def discrete_s(
    kinds_per_layer: list[tuple[str, ...]], scheme: Scheme, link: NetworkProfile, spec: ViTSpec = SPEC
) -> float:
    trace = trace_of(spec.with_kinds(kinds_per_layer))
    return model(scheme).seconds(trace, scheme, link).p50_s


def probability_of(choice: float) -> torch.Tensor:
    """Every head takes relu_softmax with probability `choice` and scaling otherwise; two layers of two heads."""
    return torch.tensor([choice, 1 - choice], dtype=torch.float64).repeat(2, 2, 1).requires_grad_()


def one_hot(layer: tuple[str, ...], kinds: tuple[str, ...]) -> torch.Tensor:
    return torch.tensor([[float(kind == mine) for mine in kinds] for kind in layer], dtype=torch.float64)


@pytest.mark.parametrize("kinds", [KINDS, ("relu_softmax", "quad")], ids=len)
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.label)
@pytest.mark.parametrize("link", LINKS, ids=lambda link: link.name)
def test_exact_at_one_hot_choices(link: NetworkProfile, scheme: Scheme, kinds: tuple[str, ...]) -> None:
    latency = mixture(link, scheme, kinds, LARGE)
    draw = random.Random(0)
    for _ in range(8):
        choice = [tuple(draw.choice(kinds) for _ in range(heads)) for heads in LARGE.heads]
        expected_s = discrete_s(choice, scheme, link, LARGE)
        assert latency.exact_s(choice) == pytest.approx(expected_s, rel=1e-9)
        relaxed_s = float(latency.expected_s([one_hot(layer, kinds) for layer in choice]))
        assert relaxed_s == pytest.approx(expected_s, rel=1e-9)


def test_compute_that_bends_and_slow_start_are_in_the_term() -> None:
    """Otherwise the vertices above would not show that either is exact."""
    latency = mixture(network("400mbit/80ms"), Scheme(transport="direct"), spec=LARGE)
    bends_s = [s for layer in latency.layers for cost in layer.values() for s in cost.beyond_s]
    assert max(map(abs, bends_s)) > 1e-3
    assert len(latency.ramps) > 2 and latency.ramps[-1][1] > 0.01
    assert latency.ramps[0] == (latency.ramps[0][0], 0.0)


@settings(max_examples=30)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_the_number_of_heads_of_a_kind_against_all_outcomes(p_H: list[float]) -> None:
    pmf_N = [0.0] * (len(p_H) + 1)
    for outcome in itertools.product((0, 1), repeat=len(p_H)):
        pmf_N[sum(outcome)] += math.prod(p if chosen else 1 - p for p, chosen in zip(p_H, outcome, strict=True))
    p_LHK = torch.tensor(p_H, dtype=torch.float64).reshape(1, -1, 1)
    assert poisson_binomial(p_LHK)[0, 0].tolist() == pytest.approx(pmf_N, abs=1e-15)


def test_expected_seconds_are_means_over_choices_where_compute_bends() -> None:
    """One layer of two kinds, without ramps, over every choice of its heads."""
    spec, kinds = replace(LARGE, blocks=LARGE.blocks[:1]), KINDS[:2]
    latency = replace(mixture(LOOPBACK, SCHEMES[2], kinds, spec), ramps=())
    p = torch.rand(spec.heads[0], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p_HK = torch.stack([p, 1 - p], dim=1)
    mean_s = sum(
        math.prod(float(p_HK[h, kinds.index(kind)]) for h, kind in enumerate(choice)) * latency.exact_s([choice])
        for choice in itertools.product(kinds, repeat=len(p))
    )
    assert float(latency.expected_s([p_HK])) == pytest.approx(mean_s, rel=1e-12)


def test_a_kind_by_its_seconds_for_each_number_of_heads() -> None:
    seconds = [0.0, 3.0, 3.5, 6.0]
    cost = KindLatency.through(seconds, [0, 10, 20, 30])
    assert (cost.present_s, cost.per_head_s, cost.beyond_s) == (1.5, 1.5, (0.0, 0.0, -1.0, 0.0))
    assert [cost.seconds(n) for n in range(4)] == seconds and cost.largest(2) == 20
    lone = KindLatency.through([0.0, 3.0], [0, 10])
    assert (lone.present_s, lone.per_head_s) == (3.0, 0.0)


def test_slow_start_counts_once_for_the_largest_message() -> None:
    layer = {"dear": KindLatency(0, 0, largest_bytes=(0, 5, 9)), "cheap": KindLatency(0, 0, largest_bytes=(0, 1, 2))}
    ramps = ((4, 0.0), (5, 1.0), (9, 3.0))
    latency = MixtureLatency(("dear", "cheap"), "link", 10.0, (layer, layer), (2, 2), ramps)
    dear, cheap, mixed = ("dear",) * 2, ("cheap",) * 2, ("dear", "cheap")
    assert [latency.exact_s(x) for x in ([cheap, cheap], [mixed, mixed], [dear, mixed])] == [10, 11, 13]
    # Of four heads at 1/2: none is dear 1/16; no layer has two, but one has one 8/16; a layer has two 7/16.
    p_LHK = probability_of(0.5)
    assert latency.expected_s(p_LHK).item() == pytest.approx(10 + 1 * 8 / 16 + 3 * 7 / 16)
    latency.expected_s(p_LHK).backward()  # type: ignore[no-untyped-call]
    assert p_LHK.grad is not None and (p_LHK.grad[..., 0] > p_LHK.grad[..., 1]).all()


def test_the_dearest_uniform_network() -> None:
    link = network("cheetah-wan")
    softmax_everywhere: list[tuple[str, ...]] = [("softmax",) * 3, ("softmax",) * 2]
    assert mixture(link).all_s == pytest.approx(discrete_s(softmax_everywhere, Scheme(), link))


def test_a_layer_of_one_head_is_exact_too() -> None:
    one = replace(SPEC, blocks=(BlockSpec(("softmax",), 24, 24),))
    latency = mixture(network("cheetah-wan"), spec=one)
    assert latency.layers[0]["softmax"].per_head_s == 0
    expected_s = discrete_s([("scaling",)], Scheme(), network("cheetah-wan"), one)
    assert latency.exact_s([("scaling",)]) == pytest.approx(expected_s, rel=1e-9)


def test_expected_seconds_by_hand() -> None:
    layer = {"dear": KindLatency(present_s=8.0, per_head_s=1.0), "cheap": KindLatency(0.0, 0.25)}
    latency = MixtureLatency(("dear", "cheap"), "link", 100.0, (layer, layer), (2, 2))
    p_LHK = torch.tensor([[[0.5, 0.5], [0.25, 0.75]], [[1.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
    first = (1 - 0.5 * 0.75) * 8 + 0.75 * 1 + 1.25 * 0.25
    second = 8 + 1 + 0.25
    assert float(latency.expected_s(p_LHK)) == pytest.approx(100 + first + second)


@pytest.mark.parametrize("scheme", SCHEMES[:3], ids=lambda scheme: scheme.label)
@pytest.mark.parametrize("link", LINKS, ids=lambda link: link.name)
def test_from_equal_shares_every_step_to_the_cheaper_kind_lowers_the_latency(
    link: NetworkProfile, scheme: Scheme
) -> None:
    kinds = ("relu_softmax", "scaling")
    two_heads = replace(SPEC, blocks=(SPEC.blocks[1], SPEC.blocks[1]))
    latency = mixture(link, scheme, kinds, two_heads)
    p_LHK = probability_of(0.5)
    latency.expected_s(p_LHK).backward()  # type: ignore[no-untyped-call]
    assert p_LHK.grad is not None
    along = p_LHK.grad[..., 0] - p_LHK.grad[..., 1]
    assert (along > 0).all()
    values = [latency.expected_s(probability_of(choice)).item() for choice in (0.9, 0.5, 0.1)]
    assert values == sorted(values, reverse=True)


def test_presence_is_certain_at_one_and_has_no_gradient_there() -> None:
    layer = {"dear": KindLatency(8.0, 0.0), "cheap": KindLatency(0.0, 0.0)}
    latency = MixtureLatency(("dear", "cheap"), "link", 0.0, (layer, layer), (2, 2))
    between = latency.expected_s(probability_of(0.5)).item()
    assert 0 < between < 16
    p_LHK = probability_of(1.0)
    latency.expected_s(p_LHK).backward()  # type: ignore[no-untyped-call]
    assert p_LHK.grad is not None
    assert not p_LHK.grad[..., 0].any()


def test_l1_norm_is_the_case_in_which_rounds_are_free() -> None:
    """Between two kinds the gradient is then the same at every point and head of a layer: lambda times sign(alpha)."""
    two_heads = replace(SPEC, blocks=(SPEC.blocks[1], SPEC.blocks[1]))
    latency = mixture(network("cheetah-wan"), kinds=("relu_softmax", "scaling"), spec=two_heads).rounds_free()
    weights_s = [layer["relu_softmax"].per_head_s - layer["scaling"].per_head_s for layer in latency.layers]
    at_zero = latency.expected_s(probability_of(0.0)).item()
    for choice in (0.25, 0.5, 1.0):
        l1_norm_s = sum(2 * choice * weight_s for weight_s in weights_s)
        assert latency.expected_s(probability_of(choice)).item() == pytest.approx(at_zero + l1_norm_s)


def test_layers_may_differ_in_heads_and_probabilities_in_precision() -> None:
    latency = mixture()
    p = [torch.full((heads, 3), 1 / 3) for heads in (3, 2)]
    assert latency.expected_s(p).dtype == torch.float32
    with pytest.raises(ValueError, match="expected"):
        latency.expected_s([p[1], p[1]])
    with pytest.raises(ValueError, match="1 layers"):
        latency.expected_s(p[:1])


def test_the_callers_random_numbers_are_left_alone() -> None:
    torch.manual_seed(7)
    mixture(kinds=("scaling", "quad"))
    after = torch.rand(3)
    torch.manual_seed(7)
    assert torch.equal(after, torch.rand(3))


def test_kinds_that_cannot_be_mixed_are_refused() -> None:
    with pytest.raises(ValueError, match="replaces Q K"):
        mixture(kinds=("softmax", "linformer"))
    with pytest.raises(ValueError, match="did you mean softmax"):
        mixture(kinds=("softmx",))
    with pytest.raises(ValueError, match="different"):
        mixture(kinds=("softmax", "softmax"))
    with pytest.raises(ValueError, match="fitted for another scheme"):
        mixture_latency(SPEC, KINDS, model(SCHEMES[2]), SCHEMES[0], LOOPBACK)
    with pytest.raises(ValueError, match=r"kinds for heads \(3,\), but the network has \(3, 2\)"):
        mixture().exact_s([("scaling",) * 3])
    with pytest.raises(ValueError, match="no latency for kind 'quad'"):
        mixture().exact_s([("quad",) * 3, ("quad",) * 2])
