"""The secure range check: how many arguments lie outside their declared range, counted without anyone seeing them.

An option of the scheme, at a stated cost for every checked value. The count of a whole inference is opened with the
result, to whom the result goes; it is all that the check reveals.
"""

from __future__ import annotations

import numpy as np

from mpc.scheme import Scheme
from mpc.traffic import Correlation
from mpc.tuned import comparison as c
from mpc.tuned.bits import unpacked, words_for
from mpc.tuned.engine import Engine, Events, dealt, opening
from mpc.tuned.prg import Ring
from mpc.tuned.selection import Signs, deal_signs, signs
from mpc.tuned.sources import Source

_CHUNKS = c.MAX_CHUNKS  # values and edges are told apart while both lie within +-2^(31 - f)


def check_range(engine: Engine, x: Ring, low: float, high: float) -> None:
    """Add to the engine's count how many entries of x lie outside [low, high], where the scheme checks ranges.

    3 rounds, 8 n bytes and 30 bits an element. Edges beyond +-2^(31 - f) are checked there, and a value that is out by
    more than 2^(32 - f) may go unnoticed.
    """
    if not engine.scheme.range_check:
        return
    flat = x.reshape(-1)
    n = flat.size
    mask, material, ring_bit = engine.take("range_check", n)
    (opened,) = engine.open(flat + mask)
    edges = np.clip([[engine.encode(low)], [engine.encode(high) + 1]], -(2**31), 2**31)
    (masked_bits,) = engine.open_bits(signs(engine, opened - edges, material, _CHUNKS))
    bit = unpacked(masked_bits, n)
    below = (1 - 2 * bit) * ring_bit
    if engine.first:
        below += bit
        below[1] -= 1
    engine.outside += (below[0] - below[1]).sum()


def check_range_events(scheme: Scheme, n: int) -> Events:
    """Traffic of `check_range`."""
    if not scheme.range_check:
        return []
    dealer_bytes = c.compare_correlation_bytes(n, 2, _CHUNKS, tables=1) + 16 * n
    return [
        Correlation("range_check", dealer_bytes, (n,)),
        opening(n),
        c.conjunction_opening(n, 2, _CHUNKS),
        opening(2 * words_for(n), bits=True),
    ]


@dealt("range_check")
def _deal_range_check(source: Source, n: int) -> tuple[Ring, Signs, Ring]:
    mask = source.ring((n,))
    material, bit = deal_signs(source, lambda: mask.value, n, (2,), _CHUNKS, shared_tables=True)
    return mask.share, material, source.share_ring((2, n), lambda: unpacked(bit.value, n))
