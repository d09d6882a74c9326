"""Where correlations come from: the first party itself (TFP, benchmarks only) or a third process that streams them.

The third party learns the shapes of a network, never a value: it draws one key for each party and sends party 0 what is
not in its key stream. All messages are bytes of fixed form or JSON.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from mpc.scheme import Scheme
from mpc.traffic import Correlation
from mpc.transport import PeerClosedError
from mpc.tuned import rows  # noqa: F401 - importing registers the script of every correlation
from mpc.tuned.engine import DEALS
from mpc.tuned.prg import KEY_BYTES, Ring
from mpc.tuned.sources import DealerSource, FirstPartySource, SecondPartySource, Source

_PROGRAM_TAG, _KEY_TAG, _ORDER_TAG, _STREAM_TAG = 1, 2, 3, 4
_PROGRAM_LIMIT_BYTES = 1 << 28
_FLUSH_BYTES = 1 << 20
_DEAL, _END = b"deal", b"end!"


class Link(Protocol):
    """What dealing needs of a link."""

    def send(self, payload: Any, tag: int) -> None: ...  # noqa: D102
    def receive(self, tag: int, limit_bytes: int) -> bytearray: ...  # noqa: D102


def fixed_shapes(program: Sequence[Correlation]) -> list[tuple[int, ...]]:
    """Shapes of the weights that stay, in the order in which the setup opens them."""
    shapes = []
    for wanted in program:
        if wanted.kind == "fixed_product":
            shapes.append(wanted.sizes[2])
        elif wanted.kind == "layer_norm" and wanted.sizes[2]:
            shapes.append((wanted.sizes[1],))
    return shapes


class Dealings:
    """One party's end of all dealing for one network: its source of correlations, and the dealer to ask for more."""

    def __init__(self, number: int, links: dict[int, Any], scheme: Scheme, program: Sequence[Correlation]) -> None:
        self._dealer = links.get(scheme.parties) if number == 0 else None
        self._stream: _Stream | None = None
        if scheme.dealer == "tfp":
            self.source = _first_party_deals(number, links[1 - number])
        else:
            self.source = self._third_party_deals(number, links[scheme.parties], program)

    def _third_party_deals(self, number: int, dealer: Link, program: Sequence[Correlation]) -> Source:
        if number:
            return SecondPartySource(bytes(dealer.receive(_KEY_TAG, KEY_BYTES)))
        wanted = [[c.kind, c.dealer_bytes, c.sizes] for c in program]
        dealer.send(json.dumps(wanted).encode(), _PROGRAM_TAG)
        key = bytes(dealer.receive(_KEY_TAG, KEY_BYTES))
        self._stream = _Stream(dealer, _FLUSH_BYTES + max((c.dealer_bytes for c in program), default=0))
        return FirstPartySource(key, self._stream.take)

    def order(self) -> None:
        """Ask a third-party dealer for the correlations of one more inference."""
        if self._dealer is not None:
            self._dealer.send(_DEAL, _ORDER_TAG)

    def end(self) -> None:
        """Tell a third-party dealer that this network needs no more."""
        if self._dealer is not None:
            self._dealer.send(_END, _ORDER_TAG)


def _first_party_deals(number: int, peer: Link) -> Source:
    """Party 0 draws both keys: it could read every secret, so this is for benchmarks only."""
    if number:
        return SecondPartySource(bytes(peer.receive(_KEY_TAG, KEY_BYTES)))
    keys = os.urandom(KEY_BYTES), os.urandom(KEY_BYTES)
    peer.send(keys[1], _KEY_TAG)
    return DealerSource(*keys)


def pairwise_key(number: int, peer: Link) -> bytes:
    """A key that both parties hold and the dealer does not, for sharing inputs and weights without a message."""
    if number:
        return bytes(peer.receive(_KEY_TAG, KEY_BYTES))
    key = os.urandom(KEY_BYTES)
    peer.send(key, _KEY_TAG)
    return key


class _Stream:
    """Ring elements as they arrive from the dealer, in messages of any length."""

    def __init__(self, dealer: Link, limit_bytes: int) -> None:
        self._dealer, self._limit_bytes = dealer, limit_bytes
        self._arrived = np.empty(0, np.int64)

    def take(self, count: int) -> Ring:
        """The next `count` elements."""
        parts: list[Ring] = []
        while count > len(self._arrived):
            parts.append(self._arrived)
            count -= len(self._arrived)
            self._arrived = np.frombuffer(self._dealer.receive(_STREAM_TAG, self._limit_bytes), np.int64)
        parts.append(self._arrived[:count])
        self._arrived = self._arrived[count:]
        return np.concatenate(parts) if len(parts) > 1 else parts[0]


def serve(links: dict[int, Any]) -> None:
    """The third process: deal for one network after the other until the parties leave."""
    try:
        while True:
            _serve_network(links)
    except PeerClosedError:
        return


def _serve_network(links: dict[int, Any]) -> None:
    wanted = json.loads(links[0].receive(_PROGRAM_TAG, _PROGRAM_LIMIT_BYTES))
    program = [Correlation(kind, size, _tuples(sizes)) for kind, size, sizes in wanted]
    keys = os.urandom(KEY_BYTES), os.urandom(KEY_BYTES)
    for number in range(2):
        links[number].send(keys[number], _KEY_TAG)
    waiting: list[Ring] = []

    def flush() -> None:
        if waiting:
            links[0].send(np.concatenate(waiting), _STREAM_TAG)
            waiting.clear()

    def send(correction: Any) -> None:
        waiting.append(correction.reshape(-1).view(np.int64))
        if sum(part.nbytes for part in waiting) >= _FLUSH_BYTES:
            flush()

    source = DealerSource(*keys, send)
    for shape in fixed_shapes(program):
        source.fix(shape)
    while bytes(links[0].receive(_ORDER_TAG, len(_DEAL))) == _DEAL:
        source.restart()
        for correlation in program:
            DEALS[correlation.kind](source, *correlation.sizes)
        flush()


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples that sizes are made of."""
    return tuple(_tuples(part) for part in value) if isinstance(value, list) else value
