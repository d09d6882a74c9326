"""What a trace costs, counted: the quantities that fitted seconds are proportional to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mpc.scheme import Scheme
from mpc.trace import Operation, Trace, operation_events, operation_traffic
from mpc.traffic import Correlation, PhaseTraffic

Vector = NDArray[np.float64]

UNITS: dict[str, str] = {
    "rounds": "messages that the busiest party waits for",
    "tensors": "tensors opened; several may travel in one round",
    "sent_bytes": "online bytes that the busiest party sends",
    "ring_bytes": "payload opened for sums and products in the ring",
    "binary_bytes": "payload opened for bitwise conjunctions, where comparisons are computed",
    "dealer_bytes": "bytes that a seed-compressing dealer sends",
    "correlations": "correlations used up",
    "macs": "multiply-accumulates of linear layers, convolutions and matrix products",
    "operations": "operations of the table, free ones included",
    "elements": "output elements of operations, free ones included",
}


@dataclass(frozen=True, slots=True)
class Features:
    """Counts of a trace under one scheme. Linear: the features of two traces in a row are the sum of theirs.

    `online` keeps a value per party, because the busiest party of a sum need not be the busiest of its terms. Every
    other field is described in UNITS.
    """

    online: PhaseTraffic
    tensors: int
    ring_bytes: int
    binary_bytes: int
    dealer_bytes: int
    correlations: int
    macs: int
    operations: int
    elements: int

    @classmethod
    def zero(cls, parties: int) -> Features:
        """Features of the empty trace."""
        return cls(PhaseTraffic.zero(parties), 0, 0, 0, 0, 0, 0, 0, 0)

    def __add__(self, other: Features) -> Features:
        return Features(
            self.online + other.online,
            self.tensors + other.tensors,
            self.ring_bytes + other.ring_bytes,
            self.binary_bytes + other.binary_bytes,
            self.dealer_bytes + other.dealer_bytes,
            self.correlations + other.correlations,
            self.macs + other.macs,
            self.operations + other.operations,
            self.elements + other.elements,
        )

    @property
    def rounds(self) -> int:
        """Messages that the busiest party waits for."""
        return max(self.online.rounds)

    @property
    def hops(self) -> int:
        """Nominal one-way delays that the busiest party waits for; no feature of compute, so not in UNITS."""
        return max(self.online.hops)

    @property
    def sent_bytes(self) -> int:
        """Online bytes that the busiest party sends."""
        return max(self.online.bytes)

    def vector(self, names: Sequence[str]) -> Vector:
        """The named features, in that order."""
        return np.array([getattr(self, name) for name in names], dtype=np.float64)


def features(trace: Trace, scheme: Scheme) -> Features:
    """Features of `trace` under `scheme`."""
    total = Features.zero(scheme.parties)
    for operation in trace.operations:
        anywhere = Operation(operation.op, operation.operands, operation.output, operation.attributes)
        total += _operation_features(anywhere, scheme)
    return total


@lru_cache(maxsize=100_000)
def _operation_features(operation: Operation, scheme: Scheme) -> Features:
    tensors = ring_bytes = binary_bytes = dealer_bytes = correlations = 0
    last_correlation = ""
    for event in operation_events(operation, scheme):
        if isinstance(event, Correlation):
            last_correlation = event.kind
            dealer_bytes += event.dealer_bytes
            correlations += 1
            continue
        tensors += len(event.payload_bytes)
        if last_correlation == "and":
            binary_bytes += sum(event.payload_bytes)
        else:
            ring_bytes += sum(event.payload_bytes)
    macs = Trace((operation,)).macs
    online = operation_traffic(operation, scheme).online
    return Features(
        online,
        tensors,
        ring_bytes,
        binary_bytes,
        dealer_bytes,
        correlations,
        macs,
        operations=1,
        elements=operation.elements,
    )
