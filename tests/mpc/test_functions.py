from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.secure_run import run_module, structure_of
from mpc import functions
from mpc.domains import observe_domains
from mpc.fixed_point import encode, expected_wraps
from mpc.parties import Parties, PartyError
from mpc.scheme import Scheme
from mpc.tensor import SecretError
from tests.mpc.workloads import (
    FUNCTIONS,
    Apply,
    Convolution,
    Encoder,
    LooseTensor,
    Refused,
    TiedWeights,
    WritesIntoInput,
)

NORMALISED_ROWS = torch.randn(64, 7, generator=torch.Generator().manual_seed(5))


def _worst(parties: Parties, name: str, x: Tensor) -> float:
    run = run_module(parties, Apply(name).eval(), x)
    return float((run.output - FUNCTIONS[name](x)).abs().max())


@pytest.mark.parties
@pytest.mark.parametrize("count", [2, 3])
def test_every_row_computes_what_the_plain_reading_computes(request: pytest.FixtureRequest, count: int) -> None:
    parties: Parties = request.getfixturevalue("two_parties" if count == 2 else "three_parties")
    x = torch.randn(4, 3, 7, generator=torch.Generator().manual_seed(count))
    for name in FUNCTIONS:
        positive = name in ("divide_by_secret", "plain_root", "plain_reciprocal")
        bound = 1e-2 if name in ("sigmoid", "tanh", "silu", "exp") else 5e-3  # CrypTen's own; exp reaches e^0 and above
        assert _worst(parties, name, x.abs() + 0.5 if positive else x) < bound, name
    torch.manual_seed(3)
    for module, shape in ((Convolution().eval(), (2, 3, 4, 7)), (Encoder().eval(), (2, 5, 8))):
        inputs = torch.randn(shape)
        assert (run_module(parties, module, inputs).output - module(inputs)).abs().max() < 5e-3


@pytest.mark.parties
@pytest.mark.parametrize(
    ("name", "x", "bound"),
    [
        ("gelu", torch.linspace(-60, 60, 7 * 600).view(-1, 7), 1.2e-3),
        ("softmax", NORMALISED_ROWS * 12, 3e-3),
        ("softmax", torch.tensor([[0.0, -30, -50, -70, -90, -100, -115]]), 3e-3),
        ("layer_norm", NORMALISED_ROWS * 0.1, 1e-2),
        ("layer_norm", NORMALISED_ROWS * 1.0, 2e-3),
        ("layer_norm", NORMALISED_ROWS * 30.0, 1e-2),
        ("row_normalize", NORMALISED_ROWS * 300, 4e-3),
        ("row_normalize", torch.zeros(3, 7), 1e-6),
        ("sigmoid", torch.linspace(-100, 100, 7 * 100).view(-1, 7), 5e-3),
    ],
)
def test_our_functions_are_right_over_what_networks_produce(
    two_parties: Parties, name: str, x: Tensor, bound: float
) -> None:
    assert _worst(two_parties, name, x) <= bound


@pytest.mark.parties
def test_writing_into_the_input_does_not_add_up_and_tied_weights_stay_private(two_parties: Parties) -> None:
    x = torch.rand(2, 7)
    run = run_module(two_parties, WritesIntoInput().eval(), x, repeats=3)
    assert (run.output - (x - 0.5)).abs().max() < 1e-4
    torch.manual_seed(1)
    tied = TiedWeights().eval()
    run = run_module(two_parties, tied, x)
    assert (run.output - tied(x)).abs().max() < 1e-3
    assert [operation.operands[1].visibility for operation in run.trace.operations] == ["weight", "weight"]


@pytest.mark.parties
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("infinite_mask", r"aten.add.Tensor in module \(top\): a public operand holds NaN or infinity"),
        ("vanishing_factor", r"aten.mul.Tensor in module \(top\): a public factor of 1e-06 rounds to 0"),
        ("integers", "a secret cannot become torch.int64"),
    ],
)
def test_what_fixed_point_cannot_hold_is_refused_by_name(two_parties: Parties, name: str, message: str) -> None:
    with pytest.raises((PartyError, SecretError), match=message):
        run_module(two_parties, Refused(name).eval(), torch.ones(2, 7))


def test_a_loose_tensor_is_refused_under_private_weights() -> None:
    with pytest.raises(ValueError, match="holds a tensor in 'table'"):
        structure_of(LooseTensor().eval())


@pytest.mark.parties
@pytest.mark.parametrize("name", ["plain_reciprocal", "plain_root"])
def test_reciprocal_and_root_are_right_over_their_whole_domain(two_parties: Parties, name: str) -> None:
    low, high = functions.POSITIVE_DOMAIN
    x = torch.logspace(-4, 4.5, 7 * 400, dtype=torch.float64).float().view(-1, 7)
    assert low < float(x.min()) and float(x.max()) < high
    x = (x * 2**16).round() / 2**16  # what shares can hold of it
    exact = FUNCTIONS[name](x)
    run = run_module(two_parties, Apply(name).eval(), x)
    # A unit of the last place in x, or in the scaled x, moves the result by this share of itself.
    assert ((run.output - exact).abs() <= (2e-3 + 2**-15 / x) * exact + 2**-14).all()
    if name == "plain_reciprocal":
        negative = run_module(two_parties, Apply(name).eval(), -x[x > 0.01].view(-1, 1))
        assert (negative.output < 0).all()


@pytest.mark.parties
@pytest.mark.parametrize("precision_bits", [14, 18, 20])
def test_other_precisions_compute_the_same(two_parties: Parties, precision_bits: int) -> None:
    scheme = Scheme(precision_bits=precision_bits)
    x = NORMALISED_ROWS
    for name in ("softmax", "layer_norm", "row_normalize", "gelu", "structure", "public_joined", "multiply_float"):
        run = run_module(two_parties, Apply(name).eval(), x[:, None] if name == "structure" else x, scheme)
        assert (run.output - FUNCTIONS[name](x[:, None] if name == "structure" else x)).abs().max() < 1e-2, name


@pytest.mark.parties
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x.fill_(float("nan")), "the input holds NaN or infinity"),
        (lambda x: x.fill_(float("inf")), "the input holds NaN or infinity"),
        (lambda x: x.fill_(1e6), "the input reaches 1e.06"),
    ],
)
def test_values_that_shares_cannot_hold_are_refused(spoil: Callable[[Tensor], Tensor], message: str) -> None:
    with Parties(Scheme()) as parties, pytest.raises(PartyError, match=message) as failure:
        run_module(parties, Apply("relu").eval(), spoil(torch.ones(2, 7)))
    assert failure.value.party == 0


def test_encoding_rounds_to_nearest_and_names_what_is_wrong() -> None:
    scheme = Scheme()
    assert encode(torch.tensor([1.0, -1.0, 2.0**-17 * 1.5, 1e-5]), scheme, "x").tolist() == [65536, -65536, 1, 1]
    with pytest.raises(ValueError, match="weight a holds NaN"):
        encode(torch.tensor([float("nan")]), scheme, "weight a")
    with pytest.raises(ValueError, match="must stay below 32768"):
        encode(torch.tensor([4e4]), scheme, "x")


def test_expected_wraps_follow_the_local_truncation_law() -> None:
    # 121 failures were counted where 128 are expected: v = 131072 in 4 Mi elements at 16 bits.
    assert expected_wraps(131072, 4 * 2**20) == 128


def test_domains_are_observed_by_module_and_judged_by_scheme() -> None:
    module = Encoder().eval()
    x = torch.randn(2, 5, 8)
    spans = {row["op"]: row for row in observe_domains(module, x, Scheme())}
    assert {"softmax gap", "softmax sum", "layer_norm variance", "gelu", "linear"} <= set(spans)
    assert all(row["inside"] for row in spans.values())
    assert spans["gelu"]["site"] == "layer"
    wide = observe_domains(Apply("gelu"), torch.linspace(-4, 4, 7), Scheme(functions="released"))
    assert [row["inside"] for row in wide] == [False]
    assert F.gelu(torch.tensor(wide[0]["high"])) > 3
