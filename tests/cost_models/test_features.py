from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cost_models.features import UNITS, Features, features
from mpc.reading import shape_reading
from mpc.scheme import Scheme
from mpc.trace import Operand, Operation, Trace

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


@given(TRACES, TRACES, st.sampled_from([2, 3]))
def test_features_of_traces_in_a_row_add_up(a: Trace, b: Trace, parties: int) -> None:
    scheme = Scheme(parties=parties)
    both = Trace(a.operations + b.operations)
    assert features(both, scheme) == features(a, scheme) + features(b, scheme)


@given(TRACES, st.sampled_from([2, 3]))
def test_features_are_the_traffic_of_the_trace(trace: Trace, parties: int) -> None:
    scheme = Scheme(parties=parties)
    counted, traffic = features(trace, scheme), trace.traffic(scheme)
    assert counted.online == traffic.online
    assert counted.dealer_bytes == sum(traffic.offline.bytes)
    assert counted.rounds == max(traffic.online.rounds)


def test_relu_by_hand() -> None:
    # Of 232 bytes an element, 16 + 6 x 32 open bits of the adder, 8 the sign and 16 the product with it.
    counted = features(Trace((Operation("relu", (Operand((10,), "secret"),), (10,)),)), Scheme())
    assert (counted.rounds, counted.hops, counted.sent_bytes) == (9, 36, 2320)
    assert (counted.binary_bytes, counted.ring_bytes) == (2080, 240)
    assert (counted.operations, counted.macs) == (1, 0)


def test_tuned_openings_of_bits_and_of_words_are_told_apart_and_setup_is_left_out() -> None:
    tuned = Scheme("tuned", transport="direct")
    trace = shape_reading(nn.Sequential(nn.Linear(8, 8), nn.ReLU()).eval(), (3, 8))
    counted, messages = features(trace, tuned), [m for _, es in trace.events(tuned) for m in es if hasattr(m, "phase")]
    online = [m for m in messages if m.phase == "online"]
    by_collective = {c: sum(sum(m.payload_bytes) for m in online if m.collective == c) for c in ("open", "open_bits")}
    assert (counted.ring_bytes, counted.binary_bytes) == (by_collective["open"], by_collective["open_bits"])
    assert counted.ring_bytes > 0 < counted.binary_bytes
    assert counted.ring_bytes + counted.binary_bytes == counted.sent_bytes
    assert len(online) < len(messages) and counted.dealer_bytes == sum(trace.traffic(tuned).offline.bytes)


def test_macs_of_a_module() -> None:
    module = nn.Sequential(nn.Linear(6, 4), nn.Identity()).eval()
    counted = features(shape_reading(module, (5, 6)), Scheme())
    assert counted.macs == 5 * 6 * 4
    assert counted.operations == 1


def test_vector_follows_the_names() -> None:
    counted = features(shape_reading(nn.ReLU().eval(), (3, 7)), Scheme())
    names = list(UNITS)
    vector = counted.vector(names)
    assert [vector[names.index(n)] for n in ("rounds", "binary_bytes")] == [9, 208 * 21]
    assert not Features.zero(2).vector(names).any()
