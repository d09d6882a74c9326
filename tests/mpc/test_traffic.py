from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.secure_run import run_module
from models.attention import Attention
from mpc import functions, primitives, trace
from mpc.parties import Parties
from mpc.reading import shape_reading
from mpc.scheme import Roles, Scheme
from mpc.table import row_names
from mpc.traffic import Correlation, Message, PhaseTraffic, Traffic, message_traffic, tally
from tests.mpc.link_tasks import all_reduce_lists, other_collectives, sent_and_counted
from tests.mpc.workloads import FUNCTIONS, Apply, Convolution, Encoder

SHAPES = {2: (2, 3, 7), 3: (1, 5, 7)}


def _cost(events: primitives.Events) -> tuple[int, int]:
    online = tally(events, 2).online
    assert online.rounds[0] == online.rounds[1] and online.bytes[0] == online.bytes[1]
    return online.rounds[0], online.bytes[0]


# Rounds and bytes a party sends for n elements, counted on stock CrypTen at two parties.
STOCK = {
    "arithmetic_to_binary": (primitives.arithmetic_to_binary, 7, 208),
    "less_than_zero": (primitives.less_than_zero, 8, 216),
    "equal_zero": (primitives.equal_zero, 7, 104),
    "sign_product": (primitives.sign_product, 9, 232),
    "choice": (primitives.choice, 2, 32),
    "exponential": (primitives.exponential, 8, 64),
    "reciprocal_positive": (primitives.reciprocal_positive, 28, 304),
    "reciprocal_signed": (primitives.reciprocal_signed, 38, 552),
    "inverse_square_root": (primitives.inverse_square_root, 17, 184),
    "sigmoid": (primitives.sigmoid, 23, 376),
    "error_function": (primitives.error_function, 34, 376),
}


@pytest.mark.parametrize("name", STOCK)
def test_closed_forms_equal_counts_on_stock_crypten(name: str) -> None:
    closed_form, rounds, bytes_per_element = STOCK[name]
    assert _cost(closed_form(1000, 2)) == (rounds, 1000 * bytes_per_element)


def test_stock_softmax_over_65_keys_takes_115_rounds_whatever_the_heads() -> None:
    # 10,840,000 bytes of maximum and 12,140,000 in all at 260 rows, as counted on stock CrypTen (MB to 2 places).
    for rows in (65, 130, 260):
        assert _cost(functions.softmax_released_events(rows, 65, 2))[0] == 115
    assert round(_cost(functions.softmax_released_events(260, 65, 2))[1] / 1e6, 2) == 12.14
    assert round(_cost(primitives.maximum(65, 260, 2))[1] / 1e6, 2) == 10.84


def test_stated_rounds_of_our_own_functions() -> None:
    assert _cost(functions.exp_events(1, 2)) == (7, 56)
    assert _cost(functions.reciprocal_positive_events(1, 2)) == (16, 3128)
    assert _cost(functions.inverse_square_root_events(1, 2))[0] == 16
    assert _cost(functions.gelu_events(1, 2)) == (13, 528)
    assert _cost(functions.layer_norm_events(1, 4, 2))[0] == 18


@given(st.integers(1, 5000), st.sampled_from([2, 3]))
def test_ring_all_reduce_sends_each_chunk_once_in_each_direction(elements: int, parties: int) -> None:
    sent = message_traffic(Message("all_reduce", (8 * elements,)), parties).bytes
    assert sum(sent) == 2 * (parties - 1) * 8 * elements
    if parties == 2:
        assert sent == (8 * elements, 8 * elements)


def test_hops_of_gloo() -> None:
    assert message_traffic(Message("all_reduce", (16,)), 2).hops == (2, 2)
    assert message_traffic(Message("all_reduce", (24,)), 2).hops == (4, 4)
    assert message_traffic(Message("all_reduce", (8000, 8000)), 2).hops == (4, 4)
    assert message_traffic(Message("all_reduce", (8000, 8000, 16)), 2).hops == (6, 6)


def test_gather_costs_only_those_who_send_and_the_one_who_waits() -> None:
    traffic = message_traffic(Message("gather", (800,), root=0), 3)
    assert traffic == PhaseTraffic((1, 0, 0), (0, 800, 800), (2, 0, 0))


def test_traffic_adds_and_scales_exactly() -> None:
    events: primitives.Events = [Message("all_reduce", (24,)), Correlation("square", 24)]
    assert tally(events * 5, 3) == tally(events, 3) * 5 == sum([tally(events, 3)] * 5, Traffic.zero(3))


def test_every_row_of_the_table_has_a_workload() -> None:
    seen = set()
    for name in FUNCTIONS:
        seen |= {operation.op for operation in shape_reading(Apply(name).eval(), (2, 3, 7)).operations}
    seen |= {operation.op for operation in shape_reading(Convolution().eval(), (1, 3, 4, 7)).operations}
    assert seen >= set(row_names())


@pytest.mark.parties
@pytest.mark.parametrize("released", [False, True], ids=["documented", "released"])
@pytest.mark.parametrize("count", [2, 3])
def test_predicted_traffic_is_measured_traffic_for_every_row(
    request: pytest.FixtureRequest, count: int, released: bool
) -> None:
    parties: Parties = request.getfixturevalue("two_parties" if count == 2 else "three_parties")
    scheme = Scheme(parties=count, functions="released" if released else "documented")
    generator = torch.Generator().manual_seed(count)
    for index, name in enumerate(FUNCTIONS):
        # Another shape for every row, the last dimension fixed by the workloads.
        rows, columns = (int(torch.randint(1, 6, (), generator=generator)) for _ in range(2))
        x = torch.rand(rows, columns, 7, generator=generator) + 0.1
        roles = Roles(input_owner=index % count, reveal_to=None if index % 3 == 0 else index % count)
        run_module(parties, Apply(name).eval(), x, scheme, roles)  # raises unless every event is as promised
    run_module(parties, Convolution().eval(), torch.rand(2, 3, 4, 7, generator=generator), scheme)
    run_module(parties, Encoder().eval(), torch.rand(1, 5, 8, generator=generator), scheme)


@pytest.mark.parties
@pytest.mark.parametrize("released", [False, True], ids=["documented", "released"])
@pytest.mark.parametrize("count", [2, 3])
def test_maximum_and_softmax_over_the_lengths_of_real_networks(
    request: pytest.FixtureRequest, count: int, released: bool
) -> None:
    parties: Parties = request.getfixturevalue("two_parties" if count == 2 else "three_parties")
    scheme = Scheme(parties=count, functions="released" if released else "documented")
    for length in (2, 3, 20, 65, 197, 257):
        for name in ("softmax", "maximum"):
            run_module(parties, Apply(name).eval(), torch.rand(2, length), scheme)


@pytest.mark.parties
@pytest.mark.parametrize("count", [2, 3])
def test_public_weights_send_nothing_for_linear_layers(request: pytest.FixtureRequest, count: int) -> None:
    parties: Parties = request.getfixturevalue("two_parties" if count == 2 else "three_parties")
    scheme = Scheme(parties=count, weights="public")
    torch.manual_seed(0)
    module = Convolution().eval()
    x = torch.rand(1, 3, 4, 7)
    run = run_module(parties, module, x, scheme, Roles(reveal_to=None))
    assert (run.output - module(x)).abs().max() < 1e-2
    linear = run.trace.by_op(scheme)["linear"].online
    assert max(linear.bytes) == (0 if count == 2 else 8 * 5)  # three parties pay for the truncation


@pytest.mark.parties
def test_a_closed_form_that_is_8_bytes_off_is_found(two_parties: Parties, monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = Apply("relu").eval(), torch.rand(2, 3, 7)
    run_module(two_parties, module, x)
    right = primitives.bit_to_arithmetic
    monkeypatch.setattr(primitives, "bit_to_arithmetic", lambda n: right(n)[:-1] + primitives.opening(n + 1))
    trace._events.cache_clear()
    trace._traffic.cache_clear()
    try:
        with pytest.raises(RuntimeError, match="relu of"):
            run_module(two_parties, module, x)
    finally:
        trace._events.cache_clear()
        trace._traffic.cache_clear()


@pytest.mark.parties
def test_the_ledger_equals_crypten_s_own_counters_where_those_are_right(two_parties: Parties) -> None:
    from tests.mpc.tasks import count_both_ways

    for ours, theirs in two_parties.run(count_both_ways, [()] * 2):
        # At two parties CrypTen counts sent plus received, one round for each collective.
        assert (ours.rounds[0], 2 * ours.bytes[0]) == (theirs["rounds"], theirs["bytes"])


def _framing_bytes(parties: int) -> int:
    """gloo's own headers for one small all_reduce, per party.

    Every segment is announced by its sender and by its receiver and then sent, each with a 48-byte header; a ring step
    of a small tensor has 2 segments.
    """
    return 48 * 3 * 2 * 2 * (parties - 1)


@pytest.mark.parties
@pytest.mark.parametrize("count", [2, 3])
def test_the_wire_model_equals_the_kernel_s_count_of_every_party(request: pytest.FixtureRequest, count: int) -> None:
    from tests.mpc.tasks import sent_by_sockets

    parties: Parties = request.getfixturevalue("two_parties" if count == 2 else "three_parties")
    for elements in (1_021, 10_007, 40_003, 120_001):
        promised = message_traffic(Message("all_reduce", (8 * elements,)), count).bytes
        seen = parties.run(sent_by_sockets, [(elements,)] * count)
        payload = [sent - _framing_bytes(count) for sent in seen]
        assert payload == list(promised)


@pytest.mark.parties
@pytest.mark.parametrize("count", [2, 3])
def test_the_wire_model_equals_the_interface_s_counters(request: pytest.FixtureRequest, count: int) -> None:
    from tests.mpc.tasks import payload_on_loopback

    parties: Parties = request.getfixturevalue("two_parties" if count == 2 else "three_parties")
    for elements in (4_001, 40_003, 120_001):
        promised = sum(message_traffic(Message("all_reduce", (8 * elements,)), count).bytes)
        for _ in range(10):  # anything else on the loopback interface is counted too; a quiet moment shows the truth
            payload = payload_on_loopback(parties, elements) - count * _framing_bytes(count)
            if abs(payload - promised) <= 0.02 * promised:
                break
        else:
            pytest.fail(f"{elements} elements: {payload} bytes on the interface, {promised} promised")


DIRECT = {2: "two_direct_parties", 3: "three_direct_parties"}


@pytest.mark.parties
@pytest.mark.parametrize("count", DIRECT)
@pytest.mark.parametrize("kind", ["softmax", "relu_softmax"])
def test_attention_over_direct_links_takes_one_hop_a_round(
    request: pytest.FixtureRequest, count: int, kind: str
) -> None:
    parties: Parties = request.getfixturevalue(DIRECT[count])
    torch.manual_seed(count)
    layer, x = Attention(8, (kind, kind), 4, 9).eval(), torch.rand(2, 9, 8)
    run = run_module(parties, layer, x, roles=Roles(model_owner=count - 1))  # raises unless every event is as promised
    assert (run.output - layer(x)).abs().max() < 1e-2
    assert run.traffic == run.trace.traffic(parties.scheme)
    online, over_gloo = run.traffic.online, run.trace.traffic(Scheme(parties=count)).online
    assert online.hops == online.rounds == over_gloo.rounds
    assert all(4 * mine <= theirs + 4 for mine, theirs in zip(online.hops, over_gloo.hops, strict=True))


@pytest.mark.parties
@pytest.mark.parametrize("count", DIRECT)
def test_predicted_traffic_is_measured_traffic_over_direct_links(request: pytest.FixtureRequest, count: int) -> None:
    parties: Parties = request.getfixturevalue(DIRECT[count])
    for index, name in enumerate(("multiply", "maximum", "gelu", "layer_norm", "divide_by_secret", "mean")):
        roles = Roles(input_owner=index % count, reveal_to=None if index % 3 == 0 else index % count)
        x = torch.rand(2, 3, 7) + 0.1
        run = run_module(parties, Apply(name).eval(), x, roles=roles)
        assert (run.output - Apply(name)(x)).abs().max() < 5e-3
    run_module(parties, Convolution().eval(), torch.rand(1, 3, 4, 7))


@pytest.mark.parties
@pytest.mark.parametrize("count", DIRECT)
def test_direct_collectives_give_what_crypten_s_own_give(request: pytest.FixtureRequest, count: int) -> None:
    over_direct: Parties = request.getfixturevalue(DIRECT[count])
    over_gloo: Parties = request.getfixturevalue("two_parties" if count == 2 else "three_parties")
    for task, arguments in ((all_reduce_lists, ((3, 1, 700),)), (other_collectives, ())):
        mine, theirs = (parties.run(task, [arguments] * count) for parties in (over_direct, over_gloo))
        assert repr(mine) == repr(theirs)


@pytest.mark.parties
@pytest.mark.parametrize("count", DIRECT)
def test_direct_links_send_their_payload_and_24_bytes_a_message_by_the_kernel_s_count(
    request: pytest.FixtureRequest, count: int
) -> None:
    parties: Parties = request.getfixturevalue(DIRECT[count])
    for elements in (1, 1_021, 40_003, 1_000_003):
        # A sum and an xor of `elements` and 3 words, each in one message.
        message = Message("all_reduce", (8 * elements, 8 * 3))
        payload = message_traffic(message, count, "direct").bytes
        seen = parties.run(sent_and_counted, [(elements,)] * count)
        assert seen == [(2 * (sent + 24 * (count - 1)),) * 2 for sent in payload]
