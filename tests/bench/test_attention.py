"""One attention layer under both readings: the exact traffic of every kind, its error, and its record."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from bench.attention import (
    AttentionShape,
    attention_layer,
    measure_attention,
    reference_of,
    relative_seconds,
    spread,
    unit_input,
)
from bench.health import truncated_elements
from bench.records import append, plain, read
from bench.secure_run import SecureRun, run_module
from models.kinds import KINDS, AttentionLayout, kind_named
from models.spec import Activation, BlockSpec, Residual, ViTSpec
from models.vit import VisionTransformer
from mpc.fixed_point import expected_wraps
from mpc.parties import Parties
from mpc.ranges import Ranges
from mpc.reading import shape_reading
from mpc.scheme import Roles, Scheme
from mpc.tuned.approximations import exp_chain
from reports import build
from reports.records_read import read_run

MAP_KINDS = [name for name, kind in KINDS.items() if kind.form == "map"]
MIXES = (
    ("linformer", "softmax", "relu_softmax", "scaling_linear"),
    ("scaling", "relu_softmax", "scaling", "relu_softmax", "relu_softmax"),
    ("quad", "linformer", "quad_noshift", "quad"),
    ("scaling_linear", "linformer"),
    tuple(KINDS),
)


def _parties(request: pytest.FixtureRequest, count: int) -> Parties:
    parties: Parties = request.getfixturevalue("two_parties" if count == 2 else "three_parties")
    return parties


def _demand_promised(run: SecureRun) -> None:
    """`run_module` compared every event on the wire with the table; here the sums, by party and phase."""
    assert run.traffic == run.trace.traffic(run.scheme)
    assert min(run.traffic.online.bytes) > 0


# Counted on stock CrypTen 0.4.1: one layer of 65 tokens, 256 wide, 4 heads; input, projections and weights private.
@pytest.mark.parametrize(
    ("kind", "rounds", "sent_bytes"),
    [("softmax", 119, 15_034_752), ("relu_softmax", 42, 7_035_072), ("scaling", 4, 2_897_952)],
)
def test_a_layer_costs_what_was_counted_on_stock_crypten(kind: str, rounds: int, sent_bytes: int) -> None:
    trace = shape_reading(attention_layer(kind, AttentionShape(tokens=65, dim=256, heads=4)), (1, 65, 256))
    online = trace.traffic(Scheme(functions="released")).online
    assert (online.rounds, online.bytes) == ((rounds,) * 2, (sent_bytes,) * 2)


# One layer of 65 tokens, 256 wide, 4 heads: queries, keys and values 65 x 768; scores 4 x 65 x 65, scaled by 1 / 8; the
# maps; their product with values 65 x 256; the projection 65 x 256. Scaling divides scores by 65.
@pytest.mark.parametrize("scheme", [Scheme(), Scheme("tuned", transport="direct")])
def test_every_element_that_a_layer_truncates_is_counted(scheme: Scheme) -> None:
    trace = shape_reading(attention_layer("scaling", AttentionShape()), (1, 65, 256))
    assert truncated_elements(trace, scheme) == 65 * 768 + 3 * 4 * 65 * 65 + 2 * 65 * 256 == 133_900


def test_softmax_truncates_an_element_many_times_and_a_dealer_leaves_nothing_to_ruin() -> None:
    tuned, scores = Scheme("tuned", transport="direct"), 4 * 65 * 65
    module = kind_named("softmax").make(AttentionLayout(65, 64)).eval()
    ranges = Ranges((("", "softmax", -8.0, 0.0),))
    trace = shape_reading(module, (1, 4, 65, 65), ranges=ranges)
    squarings = len(exp_chain(-8.0).constants)
    # e^x: a line and its squarings; of a row's sum the reciprocal, a start and two steps; their product.
    assert truncated_elements(trace, tuned) == scores * (1 + squarings + 1) + 3 * 4 * 65
    assert truncated_elements(trace, replace(tuned, truncation="dealer")) == 0
    layer = shape_reading(attention_layer("softmax", AttentionShape()), (1, 65, 256))
    assert truncated_elements(layer, replace(tuned, truncation="dealer")) == 0


@pytest.mark.parties
def test_expected_failures_of_truncation_are_in_a_layer_s_record(tuned_parties: Parties) -> None:
    shape, local = AttentionShape(tokens=5, dim=8, heads=2), tuned_parties.scheme
    schemes = (local, replace(local, truncation="dealer", range_check=True))
    (_, cut), (_, dealt) = measure_attention(tuned_parties, shape, ["scaling"], schemes, repeats=1)
    truncated = 5 * 24 + 3 * 2 * 5 * 5 + 2 * 5 * 8
    assert cut["health"]["truncated"] == truncated and cut["health"]["ranges"] == "checked by a plain shadow"
    assert expected_wraps(1.0, truncated) < cut["health"]["expected_wraps"] < expected_wraps(10.0, truncated)
    assert (dealt["health"]["truncated"], dealt["health"]["expected_wraps"]) == (0, 0.0)
    assert (dealt["health"]["ranges"], dealt["health"]["outside_securely"]) == ("checked securely", 0)
    assert cut["health"].keys() == dealt["health"].keys()


@pytest.mark.parties
@pytest.mark.parametrize("count", [2, 3])
def test_predicted_traffic_is_measured_traffic_for_every_kind_and_any_mix(
    request: pytest.FixtureRequest, count: int
) -> None:
    draw = random.Random(count)
    for index, kinds in enumerate([*((kind,) * draw.randint(1, 3) for kind in KINDS), *MIXES]):
        shape = AttentionShape(draw.randint(2, 11), len(kinds) * draw.randint(1, 5), len(kinds), draw.randint(1, 3))
        scheme = Scheme(parties=count, functions=draw.choice(["documented", "released"]))
        roles = Roles(draw.randrange(count), draw.randrange(count), draw.choice([None, *range(count)]))
        layer = attention_layer(kinds, shape, seed=index)
        _demand_promised(run_module(_parties(request, count), layer, unit_input(shape, index), scheme, roles))


@pytest.mark.parties
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(
    ("residual", "activation"), [("mpcvit", "gelu"), ("pre_norm", "relu"), ("mpcvit", "relu"), ("pre_norm", "gelu")]
)
def test_predicted_traffic_is_measured_traffic_for_a_whole_vision_transformer(
    request: pytest.FixtureRequest, residual: Residual, activation: Activation, count: int
) -> None:
    torch.manual_seed(count)
    blocks = (
        BlockSpec(("relu_softmax", "softmax", "scaling"), 3, 10, activation),
        BlockSpec(("linformer",), 5, 7, activation),
    )
    spec = ViTSpec(9, 3, 11, 4, blocks, residual=residual, qkv_bias=residual == "pre_norm")
    network, images = VisionTransformer(spec).eval(), torch.randn(2, 3, 9, 9)
    run = run_module(_parties(request, count), network, images)
    _demand_promised(run)
    with torch.no_grad():
        assert (run.output - network(images)).abs().max() < 2e-2


@pytest.mark.parties
@pytest.mark.parametrize("count", [2, 3])
def test_predicted_traffic_is_measured_traffic_for_timm_s_own_network(
    request: pytest.FixtureRequest, count: int
) -> None:
    torch.manual_seed(0)
    network = timm.create_model("deit_tiny_patch16_224", depth=1, img_size=32, num_classes=10).eval()
    images = torch.randn(1, 3, 32, 32)
    run = run_module(_parties(request, count), network, images)
    _demand_promised(run)
    with torch.no_grad():
        assert (run.output - network(images)).abs().max() < 2e-2


def _worst(parties: Parties, cases: list[tuple[nn.Module, Tensor]], scheme: Scheme | None = None) -> float:
    """Largest difference between the readings over all cases."""
    with torch.no_grad():
        return max(float((run_module(parties, m, x, scheme).output - m(x)).abs().max()) for m, x in cases)


@pytest.mark.parties
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_s_output_is_right_to_a_hundredth_over_ten_seeds(two_parties: Parties, kind: str) -> None:
    shape = AttentionShape(tokens=65)
    cases = [(attention_layer(kind, shape, seed=seed), unit_input(shape, seed)) for seed in range(10)]
    assert _worst(two_parties, cases) <= 1e-2


@pytest.mark.parties
@pytest.mark.slow
@pytest.mark.parametrize("kind", MAP_KINDS)
def test_attention_maps_are_right_to_a_hundredth_over_ten_seeds(two_parties: Parties, kind: str) -> None:
    head = kind_named(kind).make(AttentionLayout(65, 64)).eval()
    draws = (torch.Generator().manual_seed(seed) for seed in range(10))
    assert _worst(two_parties, [(head, torch.randn(1, 4, 65, 65, generator=draw)) for draw in draws]) <= 1e-2


@pytest.mark.parties
@pytest.mark.slow
def test_crypten_s_own_exponential_is_right_to_two_hundredths(two_parties: Parties) -> None:
    head = kind_named("softmax").make(AttentionLayout(65, 64)).eval()
    draws = (torch.Generator().manual_seed(seed) for seed in range(10))
    cases = [(head, torch.randn(1, 4, 65, 65, generator=draw)) for draw in draws]
    assert _worst(two_parties, cases, Scheme(functions="released")) <= 2e-2


@pytest.mark.parties
def test_a_record_survives_the_store_and_is_what_the_report_reads(two_parties: Parties, tmp_path: Path) -> None:
    shape = AttentionShape(tokens=5, dim=8, heads=2, batch=3)
    schemes = (Scheme(), Scheme(functions="released"))
    measured = measure_attention(two_parties, shape, ["softmax", "scaling"], schemes, repeats=3)
    for run, record in measured:
        append(tmp_path / "attention.jsonl", record)
        assert record["online"]["rounds"] == max(run.trace.traffic(run.scheme).online.rounds)
        assert record["seconds"]["online"]["samples"] == list(run.online_s) and len(run.online_s) == 3
        assert record["seconds_per_image"] == record["seconds"]["online"]["median"] / 3
        assert 0 < record["max_abs_error"] < 2e-2
    written = read(tmp_path / "attention.jsonl", "attention")
    assert written == [{"schema": 1, **plain(record)} for _, record in measured]
    assert [(row["kind"], row["scheme"]["functions"]) for row in written] == [
        (kind, scheme.functions) for kind in ("softmax", "scaling") for scheme in schemes
    ]
    assert len(read_run(tmp_path).attention) == 4
    page = build(tmp_path).page.read_text()
    assert "relu_softmax" not in page and "softmax" in page and "TFP: benchmark only" in page


def test_spread_is_median_and_interquartile_range_of_raw_samples() -> None:
    assert spread([4.0, 1.0, 2.0, 3.0, 5.0]) == {
        "median": 3.0,
        "iqr": 2.0,
        "n": 5,
        "samples": [4.0, 1.0, 2.0, 3.0, 5.0],
    }
    assert spread([2.5]) == {"median": 2.5, "iqr": 0.0, "n": 1, "samples": [2.5]}
    assert json.dumps(spread((1.0, 2.0)))


def test_seconds_are_relative_to_softmax_under_the_same_functions_on_the_same_network() -> None:
    cases = [
        ("scaling", "documented", "loopback", 1.0),
        ("scaling", "documented", "cheetah-wan", 3.0),
        ("scaling", "released", "loopback", 2.0),
        ("softmax", "documented", "loopback", 4.0),
        ("softmax", "documented", "cheetah-wan", 6.0),
    ]
    rows = [
        {"kind": kind, "scheme": {"functions": f}, "network": link, "seconds": {"online": {"median": s}}}
        for kind, f, link, s in cases
    ]
    assert reference_of(rows) == "softmax"
    assert relative_seconds(rows) == [0.25, 0.5, None, 1.0, 1.0]
    assert reference_of(rows[:3]) == "scaling" and relative_seconds(rows[:3]) == [1.0, 1.0, 1.0]


def test_a_layer_has_scores_of_unit_variance() -> None:
    shape = AttentionShape(tokens=65, dim=256, heads=4)
    layer, x = attention_layer("softmax", shape), unit_input(shape)
    with torch.no_grad():
        q, k, _ = layer.get_submodule("qkv")(x).reshape(1, 65, 3, 4, 64).permute(2, 0, 3, 1, 4)
    assert 0.8 < float((q @ k.transpose(-2, -1) / 8).std()) < 1.2


def test_a_shape_that_cannot_be_is_refused_with_what_could() -> None:
    with pytest.raises(ValueError, match=r"3 heads do not divide width 8; numbers that do: \[1, 2, 4, 8\]"):
        AttentionShape(dim=8, heads=3)
    with pytest.raises(ValueError, match="batch must be at least 1"):
        AttentionShape(batch=0)
