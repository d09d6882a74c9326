"""What an operation costs, counted: the quantities that its fitted seconds are proportional to."""

from __future__ import annotations

from functools import lru_cache
from math import prod

import numpy as np
from numpy.typing import NDArray

from mpc.scheme import Scheme
from mpc.trace import Operation, Trace, operation_events
from mpc.traffic import WORD_BYTES, Correlation, Message

Vector = NDArray[np.float64]

# What a core keeps near itself, and what it still reaches without main memory; about right for any machine, and
# where it is not, the coefficients of the parts below and above come out alike.
_NEAR_BYTES = 300_000
_FAR_BYTES = 3_000_000
# torch multiplies integers by adding a row at a time to the whole result, which is read and written once for every
# element that is summed: in the fastest cache, in the core's own, or beyond.
_FIRST_CACHE_BYTES = 32_768
_SECOND_CACHE_BYTES = 524_288

UNITS: dict[str, str] = {
    "operations": "1 for every operation of the table",
    "rounds": "messages that a party waits for",
    "ring_bytes": "payload that opens ring elements: products, squares, truncations, bits",
    "binary_bytes": "payload that opens single bits: operands of conjunctions, of which comparisons are made",
    "macs": "multiply-accumulates of linear layers, convolutions and matrix products",
    "row_starts": "elements of the first operand of a matrix product: each multiplies a row of the second",
    "second_cache_macs": f"multiply-accumulates on what of a result is beyond {_FIRST_CACHE_BYTES:,} bytes",
    "far_macs": f"multiply-accumulates on what of a result is beyond {_SECOND_CACHE_BYTES:,} bytes",
    "input_elements": "elements of all operands",
    "output_elements": "elements of the result",
    "far_bytes": f"bytes sent and made beyond {_NEAR_BYTES:,} in one operation: no longer in a core's own cache",
    "memory_bytes": f"bytes sent and made beyond {_FAR_BYTES:,} in one operation: in main memory",
    "correlations": "correlations used up",
    "dealer_bytes": "bytes that a seed-compressing dealer sends",
}
PLACES: dict[str, int] = {name: place for place, name in enumerate(UNITS)}  # in a vector of counts
ONLINE_FEATURES = tuple(UNITS)[:12]
DEALER_FEATURES = ("correlations", "dealer_bytes", "ring_bytes", "binary_bytes", "macs")


def counts(operation: Operation, scheme: Scheme) -> Vector:
    """The features of one operation under `scheme`, in the order of UNITS. Not to be written to."""
    return _counts(Operation(operation.op, operation.operands, operation.output, operation.attributes), scheme)


def trace_counts(trace: Trace, scheme: Scheme) -> Vector:
    """Features of a trace: the sums over its operations."""
    rows = [counts(operation, scheme) for operation in trace.operations]
    return np.asarray(np.sum(rows, axis=0)) if rows else np.zeros(len(UNITS))


@lru_cache(maxsize=100_000)
def _counts(operation: Operation, scheme: Scheme) -> Vector:
    rounds = ring_bytes = binary_bytes = correlations = dealer_bytes = 0
    opens_bits = False
    for event in operation_events(operation, scheme):
        if isinstance(event, Correlation):
            opens_bits = event.kind == "and"  # under CrypTen, one is drawn just before the message that uses it
            correlations += 1
            dealer_bytes += event.dealer_bytes
        elif event.phase == "online":
            payload_bytes = sum(event.payload_bytes)
            rounds += 1
            if event.collective == "open_bits" or opens_bits:
                binary_bytes += payload_bytes
            else:
                ring_bytes += payload_bytes
    touched_bytes = ring_bytes + binary_bytes + WORD_BYTES * operation.elements
    vector = np.array(
        [
            1,
            rounds,
            ring_bytes,
            binary_bytes,
            *_products(operation),
            sum(operand.elements for operand in operation.operands),
            operation.elements,
            max(0, touched_bytes - _NEAR_BYTES),
            max(0, touched_bytes - _FAR_BYTES),
            correlations,
            dealer_bytes,
        ],
        dtype=np.float64,
    )
    vector.flags.writeable = False
    return vector


def _products(operation: Operation) -> tuple[float, float, float, float]:
    """macs, row_starts, second_cache_macs and far_macs."""
    macs = Trace((operation,)).macs
    if not macs:
        return 0.0, 0.0, 0.0, 0.0
    many = operation.op == "matmul" and all(len(operand.shape) > 2 for operand in operation.operands[:2])
    products = prod(operation.output[:-2]) if many else 1  # one for each image and head, where both operands have them
    columns = 1 if not operation.output else operation.output[1 if operation.op == "convolution" else -1]
    result_bytes = WORD_BYTES * operation.elements / products
    second, far = (macs * max(0.0, 1 - near / result_bytes) for near in (_FIRST_CACHE_BYTES, _SECOND_CACHE_BYTES))
    return float(macs), macs / columns, second, far


def largest_message_bytes(operation: Operation, scheme: Scheme) -> int:
    """Payload of the operation's largest online message, all its tensors together; 0 where it sends none."""
    messages = (e for e in operation_events(operation, scheme) if isinstance(e, Message) and e.phase == "online")
    return max((sum(message.payload_bytes) for message in messages), default=0)


def moved_bytes(operation: Operation, scheme: Scheme) -> float:
    """Payload that the operation sends online, and what it reads and makes, a word an element."""
    counted = counts(operation, scheme)
    sent, words = (
        sum(counted[PLACES[name]] for name in names)
        for names in (("ring_bytes", "binary_bytes"), ("input_elements", "output_elements"))
    )
    return float(sent + WORD_BYTES * words)


def model_key(operation: Operation) -> str:
    """The operations that are fitted together: of one row, with second operands that the same parties can see.

    Matrix products of all pairs of rows, such as attention's scores, are apart: their second operand is transposed,
    and its elements lie scattered.
    """
    seen = "+".join(sorted({operand.visibility for operand in operation.operands[1:2]}))
    pairs = operation.op == "matmul" and operation.output[-2:-1] == operation.output[-1:]
    return f"{operation.op} {seen}{' of pairs' if pairs else ''}".strip()
