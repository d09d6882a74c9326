from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cost_models.features import (
    DEALER_FEATURES,
    ONLINE_FEATURES,
    UNITS,
    Vector,
    counts,
    largest_message_bytes,
    model_key,
    trace_counts,
)
from mpc.reading import shape_reading
from mpc.scheme import Scheme
from mpc.trace import Operand, Operation, Trace
from mpc.traffic import Correlation, Message

TUNED = Scheme("tuned", transport="direct")
SHAPES = st.lists(st.integers(1, 40), min_size=1, max_size=3).map(tuple)
OPERATIONS = st.lists(
    st.builds(
        lambda op, shape: Operation(op, (Operand(shape, "secret"),), shape, site="layer"),
        st.sampled_from(["relu", "exp", "square", "gelu", "negate", "reciprocal"]),
        SHAPES,
    ),
    max_size=4,
)
TRACES = st.builds(lambda operations: Trace(tuple(operations)), OPERATIONS)


def named(vector: Vector) -> dict[str, float]:
    return dict(zip(UNITS, vector.tolist(), strict=True))


def relu(elements: int) -> Operation:
    return Operation("relu", (Operand((elements,), "secret"),), (elements,))


def product(visibility: str) -> Operation:
    operands = (Operand((2, 3), "secret"), Operand((3, 4), visibility))  # type: ignore[arg-type]
    return Operation("matmul", operands, (2, 4), (("macs", 24),))


@given(TRACES, TRACES, st.sampled_from([Scheme(), Scheme(parties=3), TUNED]))
def test_counts_of_traces_in_a_row_add_up(a: Trace, b: Trace, scheme: Scheme) -> None:
    both = Trace(a.operations + b.operations)
    assert (trace_counts(both, scheme) == trace_counts(a, scheme) + trace_counts(b, scheme)).all()
    each = [counts(operation, scheme) for operation in both.operations]
    assert (trace_counts(both, scheme) == np.sum([np.zeros(len(UNITS)), *each], axis=0)).all()


@given(TRACES, st.sampled_from([Scheme(), TUNED]))
def test_counts_are_the_traffic_of_the_trace(trace: Trace, scheme: Scheme) -> None:
    counted, traffic = named(trace_counts(trace, scheme)), trace.traffic(scheme)
    assert counted["ring_bytes"] + counted["binary_bytes"] == max(traffic.online.bytes)
    assert counted["rounds"] == max(traffic.online.rounds)
    assert counted["dealer_bytes"] == sum(traffic.offline.bytes)
    assert counted["operations"] == len(trace.operations)
    drawn = [event for _, events in trace.events(scheme) for event in events if isinstance(event, Correlation)]
    assert counted["correlations"] == len(drawn)


def test_relu_by_hand() -> None:
    # Of 232 bytes an element, 16 + 6 x 32 open bits of the adder, 8 the sign and 16 the product with it.
    counted = named(counts(relu(10), Scheme()))
    assert (counted["rounds"], counted["binary_bytes"], counted["ring_bytes"]) == (9, 2080, 240)
    assert (counted["operations"], counted["macs"]) == (1, 0)
    assert (counted["input_elements"], counted["output_elements"]) == (10, 10)


# 232 bytes sent and 8 made an element: 240 touched.
@pytest.mark.parametrize(
    ("elements", "far_bytes", "memory_bytes"),
    [(1250, 0, 0), (1251, 240, 0), (12_500, 2_700_000, 0), (20_000, 4_500_000, 1_800_000)],
)
def test_bytes_beyond_the_caches_by_hand(elements: int, far_bytes: int, memory_bytes: int) -> None:
    counted = named(counts(relu(elements), Scheme()))
    assert (counted["far_bytes"], counted["memory_bytes"]) == (far_bytes, memory_bytes)


def test_a_product_by_hand() -> None:
    # Both operands are masked and opened at once, 6 + 12 words, of a secret product.
    counted = named(counts(product("secret"), Scheme()))
    assert (counted["macs"], counted["input_elements"], counted["output_elements"]) == (24, 18, 8)
    assert (counted["rounds"], counted["ring_bytes"], counted["correlations"]) == (1, 144, 1)
    assert largest_message_bytes(product("secret"), Scheme()) == 144


def test_a_product_has_as_many_row_starts_as_elements_of_the_first_operand() -> None:
    heads = Operation("matmul", tuple(Operand(s, "secret") for s in ((2, 3, 64, 32), (2, 3, 32, 128))), (2, 3, 64, 128))
    counted = named(counts(replace(heads, attributes=(("macs", 6 * 64 * 32 * 128),)), TUNED))
    # Each of the six results has 65,536 bytes, of which half are beyond the first cache and none beyond the second.
    assert counted["row_starts"] == 6 * 64 * 32
    assert (counted["second_cache_macs"], counted["far_macs"]) == (counted["macs"] / 2, 0)
    one = named(counts(product("weight"), TUNED))
    assert (one["row_starts"], one["second_cache_macs"]) == (6, 0)
    assert {named(counts(relu(10), TUNED))[name] for name in ("row_starts", "second_cache_macs", "far_macs")} == {0}


def test_a_convolution_is_one_product_of_its_patches() -> None:
    trace = shape_reading(nn.Conv2d(3, 256, 4, 4).eval(), (2, 3, 64, 64))
    counted = named(trace_counts(trace, TUNED))
    patches = 2 * 16 * 16
    assert counted["row_starts"] == patches * 48
    assert counted["far_macs"] == patches * 48 * 256 * (1 - 2**19 / (8 * patches * 256))


def test_tuned_openings_of_bits_and_of_words_are_told_apart_and_setup_is_left_out() -> None:
    trace = shape_reading(nn.Sequential(nn.Linear(8, 8), nn.ReLU()).eval(), (3, 8))
    counted = named(trace_counts(trace, TUNED))
    messages = [event for _, events in trace.events(TUNED) for event in events if isinstance(event, Message)]
    online = [message for message in messages if message.phase == "online"]
    by_collective = {c: sum(sum(m.payload_bytes) for m in online if m.collective == c) for c in ("open", "open_bits")}
    assert (counted["ring_bytes"], counted["binary_bytes"]) == (by_collective["open"], by_collective["open_bits"])
    assert min(by_collective.values()) > 0
    assert len(online) < len(messages) and counted["rounds"] == len(online)


@pytest.mark.parametrize("scheme", [Scheme(), TUNED])
def test_the_largest_message_is_one_that_is_sent_online(scheme: Scheme) -> None:
    trace = shape_reading(nn.Sequential(nn.Linear(64, 4), nn.ReLU(), nn.Identity()).eval(), (3, 64))
    for operation, events in trace.events(scheme):
        sent = [e for e in events if isinstance(e, Message) and e.phase == "online"]
        assert largest_message_bytes(operation, scheme) == max(sum(m.payload_bytes) for m in sent)
    assert largest_message_bytes(Operation("negate", (Operand((9,), "secret"),), (9,)), scheme) == 0


def test_operations_are_fitted_together_where_the_same_parties_see_the_second_operand() -> None:
    keys = {visibility: model_key(product(visibility)) for visibility in ("secret", "weight", "public")}
    assert len(set(keys.values())) == 3 and keys["weight"] == "matmul weight"
    assert model_key(relu(3)) == model_key(relu(4)) == "relu"


def test_products_of_all_pairs_of_rows_are_fitted_apart() -> None:
    rows, columns = Operand((2, 5, 3), "secret"), Operand((2, 3, 5), "secret")
    scores = Operation("matmul", (rows, columns), (2, 5, 5), (("macs", 150),))
    values = Operation("matmul", (Operand((2, 5, 5), "secret"), rows), (2, 5, 3), (("macs", 150),))
    assert (model_key(scores), model_key(values)) == ("matmul secret of pairs", "matmul secret")


def test_counts_do_not_depend_on_the_module_and_cannot_be_written_to() -> None:
    counted = counts(relu(10), Scheme())
    assert (counts(replace(relu(10), site="blocks.3.mlp"), Scheme()) == counted).all()
    with pytest.raises(ValueError, match="read-only"):
        counted[0] = 2


def test_what_is_fitted_has_a_unit() -> None:
    assert {*ONLINE_FEATURES, *DEALER_FEATURES} == set(UNITS)
    assert not {"correlations", "dealer_bytes"} & set(ONLINE_FEATURES)  # dealer's work is no online time
    assert trace_counts(Trace(()), Scheme()).tolist() == [0.0] * len(UNITS)
