from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
import torch

from cost_models.latency_term import KindLatency, MixtureLatency, mixture_latency
from cost_models.linear import CostModel
from models.spec import BlockSpec, ViTSpec
from models.vit import VisionTransformer
from mpc.network import LOOPBACK, NetworkProfile, network
from mpc.reading import shape_reading
from mpc.scheme import Scheme

COEFFICIENTS = {"rounds": 2e-3, "ring_bytes": 8e-9, "binary_bytes": 2e-8, "macs": 1e-9, "operations": 1e-4}
KINDS = ("softmax", "relu_softmax", "scaling")
SPEC = ViTSpec(16, 4, 24, 10, (BlockSpec(("softmax",) * 3, 8, 24), BlockSpec(("softmax",) * 2, 12, 48, "relu")))


def model(scheme: Scheme) -> CostModel:
    return CostModel(COEFFICIENTS, scheme, {"label": "test"}, (0.9, 1.1, 1.3))


def mixture(
    link: NetworkProfile = LOOPBACK, scheme: Scheme | None = None, kinds: tuple[str, ...] = KINDS, spec: ViTSpec = SPEC
) -> MixtureLatency:
    scheme = scheme or Scheme()
    return mixture_latency(spec, kinds, model(scheme), scheme, link)


def discrete_s(kinds_per_layer: list[tuple[str, ...]], scheme: Scheme, link: NetworkProfile) -> float:
    network = VisionTransformer(SPEC.with_kinds(kinds_per_layer)).eval()
    trace = shape_reading(network, (1, 3, 16, 16), scheme.weights)
    return model(scheme).seconds(trace, scheme, link).p50_s


def probability_of(choice: float) -> torch.Tensor:
    """Every head takes relu_softmax with probability `choice` and scaling otherwise; two layers of two heads."""
    return torch.tensor([choice, 1 - choice], dtype=torch.float64).repeat(2, 2, 1).requires_grad_()


# At three parties the busiest party of a sum may differ from those of its terms by the rounding of gloo's segments.
@pytest.mark.parametrize(("scheme", "tolerance"), [(Scheme(), 1e-9), (Scheme(parties=3), 1e-5)])
@pytest.mark.parametrize("link", [LOOPBACK, network("cheetah-lan"), network("cheetah-wan")], ids=lambda link: link.name)
def test_exact_at_one_hot_choices(link: NetworkProfile, scheme: Scheme, tolerance: float) -> None:
    latency = mixture(link, scheme)
    choices = list(itertools.product(itertools.product(KINDS, repeat=3), itertools.product(KINDS, repeat=2)))
    for choice in random.Random(0).sample(choices, 12):
        assert latency.exact_s(choice) == pytest.approx(discrete_s(list(choice), scheme, link), rel=tolerance)


def test_the_dearest_uniform_network() -> None:
    link = network("cheetah-wan")
    softmax_everywhere: list[tuple[str, ...]] = [("softmax",) * 3, ("softmax",) * 2]
    assert mixture(link).all_s == pytest.approx(discrete_s(softmax_everywhere, Scheme(), link))


def test_a_layer_of_one_head_is_exact_too() -> None:
    one = replace(SPEC, blocks=(BlockSpec(("softmax",), 24, 24),))
    latency = mixture(network("cheetah-wan"), spec=one)
    assert latency.layers[0]["softmax"].per_head_s == 0
    trace = shape_reading(VisionTransformer(one.with_kinds("scaling")).eval(), (1, 3, 16, 16))
    scheme = Scheme()
    expected_s = model(scheme).seconds(trace, scheme, network("cheetah-wan")).p50_s
    assert latency.exact_s([("scaling",)]) == pytest.approx(expected_s, rel=1e-9)


def test_expected_seconds_by_hand() -> None:
    layer = {"dear": KindLatency(present_s=8.0, per_head_s=1.0), "cheap": KindLatency(0.0, 0.25)}
    latency = MixtureLatency(("dear", "cheap"), "link", 100.0, (layer, layer), (2, 2))
    p_LHK = torch.tensor([[[0.5, 0.5], [0.25, 0.75]], [[1.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
    first = (1 - 0.5 * 0.75) * 8 + 0.75 * 1 + 1.25 * 0.25
    second = 8 + 1 + 0.25
    assert float(latency.expected_s(p_LHK)) == pytest.approx(100 + first + second)


@pytest.mark.parametrize("link", [LOOPBACK, network("cheetah-lan"), network("cheetah-wan")], ids=lambda link: link.name)
def test_from_equal_shares_every_step_to_the_cheaper_kind_lowers_the_latency(link: NetworkProfile) -> None:
    kinds = ("relu_softmax", "scaling")
    two_heads = replace(SPEC, blocks=(SPEC.blocks[1], SPEC.blocks[1]))
    latency = mixture(link, kinds=kinds, spec=two_heads)
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
    with pytest.raises(ValueError, match="no latency for kind 'quad'"):
        mixture().exact_s([("quad",) * 3, ("quad",) * 2])
