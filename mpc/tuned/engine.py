"""The online part at one party: open masked values, use up correlations, truncate."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, Protocol

import numpy as np

from mpc.ledger import Ledger
from mpc.scheme import Scheme
from mpc.traffic import Correlation, Event, Message
from mpc.tuned.prg import Ring
from mpc.tuned.sources import Source

_MEETING_TAG = 5

Events = list[Event]
Deal = Callable[..., Any]
DEALS: dict[str, Deal] = {}


class Peer(Protocol):
    """The link to the other party."""

    def exchange(self, outgoing: Any, incoming: Any, tag: int) -> None: ...  # noqa: D102


def dealt(kind: str) -> Callable[[Deal], Deal]:
    """Register the decorated script, called as `deal(source, *sizes)`, as the one that deals correlations of `kind`."""

    def register(deal: Deal) -> Deal:
        if kind in DEALS:
            raise ValueError(f"correlation {kind!r} has a script already")
        DEALS[kind] = deal
        return deal

    return register


def opening(*elements: int, bits: bool = False) -> Message:
    """The message in which both parties open so many 8-byte words."""
    return Message("open_bits" if bits else "open", (8 * sum(elements),))


# Correlations are dealt ahead up to this many bytes of corrections, about a third of the memory that they take. Most
# networks fit into one slice; of a larger one, the next slice is dealt when the last is used up, at both parties alike.
SLICE_BYTES = 1 << 27


class Engine:
    """One party's online work for one network: `stock` it with correlations, then run rows.

    Share arrays are numpy int64 (ring) or uint64 (packed bits); every array that a row hands back is this party's
    additive share.
    """

    def __init__(self, party: int, peer: Peer, scheme: Scheme, ledger: Ledger, source: Source) -> None:
        self.party, self.peer, self.scheme, self.ledger, self.source = party, peer, scheme, ledger, source
        self.first = party == 0
        self.fraction_bits = scheme.precision_bits
        self.one = 1 << scheme.precision_bits
        self.outside = np.zeros(1, np.int64)  # share of how many values lay outside their ranges
        self._stock: deque[tuple[Correlation, Any]] = deque()
        self._program: Iterator[Correlation] = iter(())

    def stock(self, program: Iterable[Correlation]) -> None:
        """Deal the correlations of one inference ahead of their use, up to a slice; the rest follows when it is needed.

        Records what each one really took, and counts as the dealer's time. Both parties leave together.
        """
        self.source.restart()
        self._program = iter(program)
        self._deal_slice()

    def _deal_slice(self) -> None:
        start = self.source.dealt_bytes
        with self.ledger.dealing():
            for wanted in self._program:
                before = self.source.dealt_bytes
                material = DEALS[wanted.kind](self.source, *wanted.sizes)
                seen = Correlation(wanted.kind, self.source.dealt_bytes - before, wanted.sizes)
                self.ledger.dealt(seen)
                self._stock.append((seen, material))
                if self.source.dealt_bytes - start >= SLICE_BYTES:
                    break
        self.meet()

    def meet(self) -> None:
        """Return when both parties are here; the time that takes is nobody's."""
        with self.ledger.apart():
            self._meet()

    def _meet(self) -> None:
        self.peer.exchange(np.zeros(1, np.uint8), np.zeros(1, np.uint8), _MEETING_TAG)

    @property
    def left(self) -> int:
        """Correlations that were promised and not used."""
        return len(self._stock) + sum(1 for _ in self._program)

    def take(self, kind: str, *sizes: Any) -> Any:
        """The next correlation; RuntimeError where the one in stock is of another kind or size."""
        if not self._stock:
            self._deal_slice()
        if not self._stock:
            raise RuntimeError(f"a {kind} of {sizes} is wanted in {self.ledger.op}, but nothing is in stock")
        dealt_as, material = self._stock.popleft()
        if (dealt_as.kind, dealt_as.sizes) != (kind, sizes):
            raise RuntimeError(f"{self.ledger.op} wants a {kind} of {sizes}, but {dealt_as} is next in stock")
        return material

    def open(self, *shares: Ring) -> list[Ring]:
        """Reveal ring elements to both parties, all in one message."""
        return self.exchange([(share, "ring") for share in shares])

    def open_bits(self, *shares: Any) -> list[Any]:
        """Reveal packed bits to both parties, all in one message."""
        return self.exchange([(share, "bits") for share in shares])

    def exchange(
        self, parts: list[tuple[Any, Literal["ring", "bits"]]], phase: Literal["setup", "online"] = "online"
    ) -> list[Any]:
        """Send this party's shares and receive the other's: one round, one hop. Shapes as they came."""
        outgoing = (
            parts[0][0].reshape(-1)
            if len(parts) == 1
            else np.concatenate([share.reshape(-1).view(np.int64) for share, _ in parts])
        )
        outgoing = np.ascontiguousarray(outgoing).view(np.int64)
        incoming = np.empty_like(outgoing)
        collective = "open_bits" if all(kind == "bits" for _, kind in parts) else "open"
        tag = zlib.crc32(f"{self.ledger.op}@{self.ledger.site}:{[share.shape for share, _ in parts]}".encode())
        with self.ledger.message(collective, phase=phase):
            self.ledger.payload(outgoing.nbytes)
            self.peer.exchange(outgoing, incoming, tag)
        opened, start = [], 0
        for share, kind in parts:
            mine, theirs = (side[start : start + share.size] for side in (outgoing, incoming))
            both = mine + theirs if kind == "ring" else (mine ^ theirs).view(np.uint64)
            opened.append(both.reshape(share.shape))
            start += share.size
        return opened

    def encode(self, value: float, fraction_bits: int | None = None) -> int:
        """A public number to the nearest fixed-point value, as a Python integer."""
        return round(value * (1 << (self.fraction_bits if fraction_bits is None else fraction_bits)))

    def plus(self, share: Ring, public: Any) -> Ring:
        """share + a public encoded value: the first party adds it."""
        return share + public if self.first else share

    def truncate(self, share: Ring, bits: int | None = None) -> Ring:
        """share / 2^bits, as the scheme truncates; `bits` None means the fraction bits of one product.

        Local: nothing is sent, the result is off by at most one unit, except that a value v at 2^(2 f) is ruined with
        probability |v| 2^(2 f - 64). By the dealer: one opening of 8 n bytes, never ruined for |v| < 2^62.
        """
        bits = self.fraction_bits if bits is None else bits
        if self.scheme.truncation == "dealer":
            return self._truncate_with_dealer(share, bits)
        return truncate_locally(self, share, bits)

    def divide(self, share: Ring, divisor: int) -> Ring:
        """share / divisor for a positive integer: local, or a public product with dealer truncation."""
        if self.scheme.truncation == "dealer":
            bits = _division_bits(divisor)
            return self.truncate(share * round(2**bits / divisor), bits)
        return share // divisor if self.first else -((-share) // divisor)

    def _truncate_with_dealer(self, share: Ring, bits: int) -> Ring:
        mask, high, top = self.take("truncation", share.shape, bits)
        (opened,) = self.open(self.plus(share, 1 << 62) + mask)
        unsigned = opened.view(np.uint64)
        kept = (unsigned >> np.uint64(bits)).view(np.int64)
        not_wrapped = 1 - (unsigned >> np.uint64(63)).view(np.int64)  # the sum wrapped iff top is 1 and this is 1
        result = ((top * not_wrapped) << (64 - bits)) - high
        return self.plus(result, kept - (1 << (62 - bits)))


def truncate_locally(engine: Engine, share: Ring, bits: Any) -> Ring:
    """This party's share of a value shifted right by `bits`; nothing is sent."""
    shifted: Ring = share >> bits if engine.first else -((-share) >> bits)
    return shifted


def truncation_events(scheme: Scheme, shape: tuple[int, ...], bits: int | None = None) -> Events:
    """Traffic of `Engine.truncate`."""
    if scheme.truncation == "local":
        return []
    elements = int(np.prod(shape))
    sizes = (shape, scheme.precision_bits if bits is None else bits)
    return [Correlation("truncation", 16 * elements, sizes), opening(elements)]


def division_events(scheme: Scheme, shape: tuple[int, ...], divisor: int) -> Events:
    """Traffic of `Engine.divide`."""
    return truncation_events(scheme, shape, _division_bits(divisor))


def _division_bits(divisor: int) -> int:
    """Fraction bits of 1 / divisor: 12 digits of it, and few enough that the product stays below 2^62."""
    return 12 + divisor.bit_length()


@dealt("truncation")
def _deal_truncation(source: Source, shape: tuple[int, ...], bits: int) -> tuple[Any, Any, Any]:
    mask = source.ring(shape)
    high = source.share_ring(shape, lambda: (mask.value.view(np.uint64) >> np.uint64(bits)).view(np.int64))
    top = source.share_ring(shape, lambda: (mask.value.view(np.uint64) >> np.uint64(63)).view(np.int64))
    return mask.share, high, top
