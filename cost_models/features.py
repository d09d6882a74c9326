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
    "sent_bytes": "online bytes that the busiest party sends",
    "ring_bytes": "payload that opens ring elements: products, squares, truncations, bits",
    "binary_bytes": "payload that opens single bits: operands of conjunctions, of which comparisons are made",
    "dealer_bytes": "bytes that a seed-compressing dealer sends",
    "correlations": "correlations used up",
    "macs": "multiply-accumulates of linear layers, convolutions and matrix products",
    "operations": "operations of the table, free ones included",
}


@dataclass(frozen=True, slots=True)
class Features:
    """Counts of a trace under one scheme. Linear: the features of two traces in a row are the sum of theirs.

    `online` keeps a value per party, because the busiest party of a sum need not be the busiest of its terms. Every
    other field is described in UNITS.
    """

    online: PhaseTraffic
    ring_bytes: int
    binary_bytes: int
    dealer_bytes: int
    correlations: int
    macs: int
    operations: int

    @classmethod
    def zero(cls, parties: int) -> Features:
        """Features of the empty trace."""
        return cls(PhaseTraffic.zero(parties), 0, 0, 0, 0, 0, 0)

    def __add__(self, other: Features) -> Features:
        return Features(
            self.online + other.online,
            self.ring_bytes + other.ring_bytes,
            self.binary_bytes + other.binary_bytes,
            self.dealer_bytes + other.dealer_bytes,
            self.correlations + other.correlations,
            self.macs + other.macs,
            self.operations + other.operations,
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
    events = operation_events(operation, scheme)
    correlations = [event for event in events if isinstance(event, Correlation)]
    opens_bits = False
    ring_bytes = binary_bytes = 0
    for event in events:
        if isinstance(event, Correlation):
            opens_bits = event.kind == "and"  # under CrypTen, one is drawn just before the message that uses it
        elif event.phase == "online":
            payload_bytes = sum(event.payload_bytes)
            if event.collective == "open_bits" or opens_bits:
                binary_bytes += payload_bytes
            else:
                ring_bytes += payload_bytes
    return Features(
        online=operation_traffic(operation, scheme).online,
        ring_bytes=ring_bytes,
        binary_bytes=binary_bytes,
        dealer_bytes=sum(correlation.dealer_bytes for correlation in correlations),
        correlations=len(correlations),
        macs=Trace((operation,)).macs,
        operations=1,
    )
