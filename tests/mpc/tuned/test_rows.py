"""Every row under the tuned scheme, on real parties: right, and exactly as much traffic as its closed form promises."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from bench.secure_run import run_module
from models.names import build
from mpc.domains import declared_ranges, observe_domains
from mpc.parties import Parties
from mpc.ranges import Ranges
from mpc.reading import shape_reading
from mpc.scheme import Roles, Scheme
from mpc.table import row_named, row_names
from mpc.trace import Trace
from mpc.tuned import selection
from tests.mpc.workloads import FUNCTIONS, Apply, Convolution, Encoder

TUNED = Scheme("tuned", transport="direct")
VARIANTS = {
    "local": TUNED,
    "dealer": replace(TUNED, truncation="dealer"),
    "checked": replace(TUNED, range_check=True),
    "max_free": replace(TUNED, functions="max_free"),
    "public": replace(TUNED, weights="public"),
}
POSITIVE = ("divide_by_secret", "plain_root", "plain_reciprocal")
# Coarser than the rest: e^x to a relative 2e-3 where values reach 8; products of values that themselves err.
BOUNDS = {"exp": 1e-2, "softmax": 4e-3, "softmax_inner": 4e-3, "silu": 3e-3}


def _worst(parties: Parties, module: nn.Module, x: Tensor, scheme: Scheme, ranges: Ranges | None = None) -> float:
    run = run_module(parties, module, x, scheme, Roles(reveal_to=None), ranges=ranges or Ranges())
    if scheme.range_check:
        assert run.outside == 0
    with torch.no_grad():
        return float((run.output - module(x)).abs().max())


def test_every_row_has_a_tuned_form() -> None:
    assert [name for name in row_names() if "tuned" not in row_named(name).forms] == []


@pytest.mark.parties
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_row_computes_what_the_plain_reading_computes(tuned_parties: Parties, variant: str) -> None:
    scheme = VARIANTS[variant]
    x = torch.randn(4, 3, 7, generator=torch.Generator().manual_seed(2))
    for name in FUNCTIONS:
        module, inputs = Apply(name).eval(), x.abs() + 0.5 if name in POSITIVE else x
        ranges = declared_ranges(module, inputs, scheme) if name in ("plain_reciprocal",) else None
        assert _worst(tuned_parties, module, inputs, scheme, ranges) < BOUNDS.get(name, 2.5e-3), name
    torch.manual_seed(3)
    for module, shape in ((Convolution().eval(), (2, 3, 4, 7)), (Encoder().eval(), (2, 5, 8))):
        inputs = torch.randn(shape)
        assert _worst(tuned_parties, module, inputs, scheme) < 4e-3, type(module).__name__


@pytest.mark.parties
def test_declared_ranges_make_protocols_narrower_and_stay_right(tuned_parties: Parties) -> None:
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(4))
    for name in ("relu", "softmax", "gelu", "silu", "layer_norm", "row_normalize", "inverse_square_root"):
        module = Apply(name).eval()
        ranges = declared_ranges(module, x, TUNED)
        assert _worst(tuned_parties, module, x, TUNED, ranges) < BOUNDS.get(name, 2.5e-3), name
        narrow, wide = (shape_reading(module, (5, 7), ranges=r).traffic(TUNED) for r in (ranges, Ranges()))
        assert narrow.online.bytes <= wide.online.bytes and narrow.offline.bytes <= wide.offline.bytes, name
        assert narrow != wide or name == "softmax", name  # one chain serves all gaps up to 54


@pytest.mark.parties
@pytest.mark.parametrize(
    ("name", "x", "bound"),
    [
        ("gelu", torch.linspace(-60, 60, 7 * 600).view(-1, 7), 1e-3),
        ("silu", torch.linspace(-60, 60, 7 * 600).view(-1, 7), 2e-3),
        ("softmax", torch.tensor([[0.0, -10, -20, -30, -40, -50, -53]]), 3e-3),
        ("layer_norm", torch.randn(64, 7, generator=torch.Generator().manual_seed(5)) * 0.1, 1e-2),
        ("layer_norm", torch.randn(64, 7, generator=torch.Generator().manual_seed(5)), 2e-3),
        ("layer_norm", torch.randn(64, 7, generator=torch.Generator().manual_seed(5)) * 30, 1e-2),
        ("row_normalize", torch.randn(64, 7, generator=torch.Generator().manual_seed(5)) * 300, 4e-3),
        ("row_normalize", torch.zeros(3, 7), 1e-6),
        ("sigmoid", torch.linspace(-100, 100, 7 * 100).view(-1, 7), 1.5e-3),
        ("tanh", torch.linspace(-100, 100, 7 * 100).view(-1, 7), 1.5e-3),
    ],
)
def test_functions_are_right_over_what_networks_produce(
    tuned_parties: Parties, name: str, x: Tensor, bound: float
) -> None:
    assert _worst(tuned_parties, Apply(name).eval(), x, TUNED) <= bound


@pytest.mark.parties
def test_a_value_outside_its_range_is_counted_securely_and_seen_by_the_plain_shadow(tuned_parties: Parties) -> None:
    checked = VARIANTS["checked"]
    module, x = Apply("relu").eval(), torch.tensor([[-3.0, -2.01, -2.0, 0.0, 2.0, 2.01, 9.0]])
    ranges = Ranges((("", "relu", -2.0, 2.0),))
    run = run_module(tuned_parties, module, x, checked, Roles(reveal_to=None), ranges=ranges)
    assert run.outside == 4
    assert not observe_domains(module, x, checked, ranges)[0]["inside"]
    assert run_module(tuned_parties, module, x, TUNED, ranges=ranges).outside is None


class NormWithBiasAlone(nn.Module):
    """Layer normalisation with a private bias and no weight."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.linspace(-1, 1, 7))

    def forward(self, x: Tensor) -> Tensor:
        """Of rows of 7."""
        return torch.nn.functional.layer_norm(x, (7,), None, self.bias)


class MaskedAttention(nn.Module):
    """Attention whose scores get a float mask, in a composite that the plain shadow must look into."""

    def forward(self, x: Tensor) -> Tensor:
        """Self-attention over x (B, N, D), the last token masked, then a clamp and an in-place ReLU."""
        mask = torch.zeros(x.shape[1])
        mask[-1] = -50.0
        attended = torch.nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=mask.expand(x.shape[1], -1))
        return attended.clamp(-20.0, 20.0).relu_() / (x.abs().sum(-1, keepdim=True) + 1)


@pytest.mark.parties
def test_a_bias_alone_is_no_weight(tuned_parties: Parties) -> None:
    x = torch.randn(4, 7, generator=torch.Generator().manual_seed(1))
    assert _worst(tuned_parties, NormWithBiasAlone().eval(), x, TUNED) < 2e-3


@pytest.mark.parties
def test_calibration_sees_what_composites_are_made_of(tuned_parties: Parties) -> None:
    x = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(2)) * 2
    module = MaskedAttention().eval()
    ranges = declared_ranges(module, x, TUNED)
    seen = {op: (low, high) for _, op, low, high in ranges.declared}
    assert seen["softmax"][0] < -50 and {"relu", "reciprocal", "abs"} <= set(seen)
    assert all(row["inside"] for row in observe_domains(module, x, TUNED, ranges))
    assert _worst(tuned_parties, module, x, VARIANTS["checked"], ranges) < 5e-3


@pytest.mark.parties
@pytest.mark.parametrize("scale", [0.001, 1.0, 300.0])
def test_rows_of_any_size_are_normalised(tuned_parties: Parties, scale: float) -> None:
    x = torch.rand(20, 7, generator=torch.Generator().manual_seed(3)) * scale + 2.0**-14
    module = Apply("row_normalize").eval()
    assert _worst(tuned_parties, module, x, TUNED, declared_ranges(module, x, TUNED)) < max(2e-3, 2.0**-13 / scale)


def test_a_tensor_without_elements_is_refused() -> None:
    with pytest.raises(ValueError, match="without elements"):
        shape_reading(Apply("relu").eval(), (0, 7))


@pytest.mark.parties
def test_the_secure_check_looks_at_both_ends_of_a_reciprocal(tuned_parties: Parties) -> None:
    ranges = Ranges((("", "reciprocal", 0.5, 8.0),))
    x = torch.tensor([[0.1, -0.2, 0.5, 1.0, -8.0, 9.0, 2.0]])
    run = run_module(tuned_parties, Apply("plain_reciprocal").eval(), x, VARIANTS["checked"], ranges=ranges)
    assert run.outside == 3


@pytest.mark.parties
@pytest.mark.parametrize("bound", [1.0, 12.2, 16.0, 256.0])
def test_the_ends_of_a_declared_range_belong_to_it(tuned_parties: Parties, bound: float) -> None:
    x = torch.tensor([[-bound, -bound / 2, 0.0, 2.0**-16, 0.5 * bound, bound - 2.0**-15, bound]])
    for name in ("relu", "abs", "gelu", "silu"):
        ranges = Ranges((("", name, -bound, bound),))
        assert _worst(tuned_parties, Apply(name).eval(), x, VARIANTS["checked"], ranges) < 1.5e-3, name
    gaps = torch.tensor([[0.0, -bound, -bound / 2, -0.25, 0.0, -0.5, 2.0**-16 - bound]])
    assert _worst(tuned_parties, Apply("softmax").eval(), gaps, TUNED, Ranges((("", "softmax", -bound, 0.0),))) < 2e-3


@pytest.mark.parties
@pytest.mark.parametrize(("shape", "norm"), [((2, 3, 4), (3, 4)), ((4, 4, 1), (4, 1)), ((5, 6), (6,))])
def test_layer_norm_over_several_dimensions(
    tuned_parties: Parties, shape: tuple[int, ...], norm: tuple[int, ...]
) -> None:
    torch.manual_seed(9)
    module = nn.LayerNorm(norm).eval()
    nn.init.normal_(module.weight)
    assert _worst(tuned_parties, module, torch.randn(shape), TUNED) < 3e-3


@pytest.mark.parties
@pytest.mark.parametrize("length", [2, 3, 20, 65, 197, 257])
def test_maximum_and_softmax_over_the_lengths_of_real_networks(tuned_parties: Parties, length: int) -> None:
    x = torch.randn(2, length, generator=torch.Generator().manual_seed(length))
    assert _worst(tuned_parties, Apply("maximum").eval(), x, TUNED) < 1e-4
    assert _worst(tuned_parties, Apply("softmax").eval(), x, TUNED) < 2e-3


@pytest.mark.parties
@pytest.mark.parametrize(
    "model", ["mpcvit:vit_4_4_32_demo", "timm:vit_tiny_patch16_224?img_size=32&depth=2&num_classes=10"]
)
def test_whole_networks_with_private_weights(tuned_parties: Parties, model: str) -> None:
    torch.manual_seed(1)
    module = build(model)
    x = torch.randn(2, 3, 32, 32)
    ranges = declared_ranges(module, torch.randn(4, 3, 32, 32), TUNED)
    run = run_module(tuned_parties, module, x, TUNED, ranges=ranges)
    with torch.no_grad():
        assert (run.output - module(x)).abs().max() < 2e-2
    setup = run.traffic.setup.bytes[0]
    opened = [t for name, t in module.named_parameters() if name.endswith("weight")]
    assert setup == 8 * sum(t.numel() for t in opened)  # every matrix, kernel and norm scale, once


@pytest.mark.parties
@pytest.mark.parametrize("repeats", [3])
def test_a_third_process_deals(tuned_parties_and_dealer: Parties, repeats: int) -> None:
    torch.manual_seed(3)
    module, x = Encoder().eval(), torch.randn(2, 5, 8)
    scheme = tuned_parties_and_dealer.scheme
    for chosen in (scheme, replace(scheme, truncation="dealer")):
        run = run_module(tuned_parties_and_dealer, module, x, chosen, repeats=repeats)
        assert (run.output - module(x)).abs().max() < 4e-3
        assert run.traffic == shape_reading(module, (2, 5, 8)).traffic(chosen)


@pytest.mark.parties
def test_a_closed_form_that_is_8_bytes_off_is_found(tuned_parties: Parties, monkeypatch: pytest.MonkeyPatch) -> None:
    from mpc import trace

    module, x = Apply("relu").eval(), torch.rand(2, 3, 7)
    run_module(tuned_parties, module, x, TUNED)
    right = selection.opening
    monkeypatch.setattr(selection, "opening", lambda n, bits=False: right(n + 1, bits=bits))
    trace._events.cache_clear()
    trace._traffic.cache_clear()
    try:
        with pytest.raises(RuntimeError, match="relu of"):
            run_module(tuned_parties, module, x, TUNED)
    finally:
        trace._events.cache_clear()
        trace._traffic.cache_clear()


def test_anchors_of_one_attention_layer() -> None:
    """65 tokens, 256 wide, 4 heads, projections included, private weights, ranges of unit-variance scores."""
    from bench.attention import AttentionShape, attention_layer

    ranges = {
        "softmax": Ranges((("kind.softmax", "softmax", -16.0, 0.0),)),
        "relu_softmax": Ranges(
            (("kind.relu_softmax", "relu", -12.0, 12.0), ("kind.relu_softmax", "row_normalize", 0.1, 1.5))
        ),
        "quad": Ranges((("kind.quad", "row_normalize", 12.0, 60.0),)),
        "scaling": Ranges(),
    }
    counted = {}
    for kind, declared in ranges.items():
        trace: Trace = shape_reading(attention_layer(kind, AttentionShape()), (1, 65, 256), ranges=declared)
        online = trace.traffic(TUNED).online
        counted[kind] = (online.rounds[0], online.bytes[0], online.hops[0])
    assert counted == {
        "softmax": (24, 1_789_952, 24),
        "relu_softmax": (13, 1_102_560, 13),
        "quad": (11, 1_081_680, 11),
        "scaling": (4, 800_800, 4),
    }
