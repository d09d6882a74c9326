"""What crosses the wire: messages, what they cost each party, and exact sums by phase.

A *round* is a message that a party waits for, in program order. *Bytes* are payload that a party sends, without
headers. *Hops* are nominal one-way delays: how often the slowest bit of a round crosses the link in sequence.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from mpc.scheme import Transport

WORD_BYTES = 8
Phase = Literal["setup", "online"]
_GLOO_MAX_SEGMENT_BYTES = 1 << 20  # gloo's AllreduceOptions default


@dataclass(frozen=True, slots=True)
class Message:
    """One blocking collective: `payload_bytes` holds the size of each tensor in the call, all in flight together.

    `open` and `open_bits` are exchanges of the tuned scheme, of ring elements and of packed bits. A message of the
    `setup` phase is sent once for fixed weights.
    """

    collective: str
    payload_bytes: tuple[int, ...]
    root: int = 0
    phase: Phase = "online"


@dataclass(frozen=True, slots=True)
class Correlation:
    """Dealer randomness that an operation uses up.

    `dealer_bytes` is what a seed-compressing dealer sends to party 0. Where `sizes` says all that is needed to deal it
    (the tuned scheme), the dealer works ahead and streams; otherwise it is asked for each correlation.
    """

    kind: str
    dealer_bytes: int
    sizes: tuple[Any, ...] = ()


Event = Message | Correlation


@dataclass(frozen=True, slots=True)
class PhaseTraffic:
    """Rounds, bytes and hops of one phase, one value for each party."""

    rounds: tuple[int, ...]
    bytes: tuple[int, ...]
    hops: tuple[int, ...]

    @classmethod
    def zero(cls, parties: int) -> PhaseTraffic:
        """Nothing sent by any of `parties`."""
        return cls((0,) * parties, (0,) * parties, (0,) * parties)

    def __add__(self, other: PhaseTraffic) -> PhaseTraffic:
        return PhaseTraffic(_add(self.rounds, other.rounds), _add(self.bytes, other.bytes), _add(self.hops, other.hops))

    def __mul__(self, times: int) -> PhaseTraffic:
        return PhaseTraffic(
            tuple(times * r for r in self.rounds),
            tuple(times * b for b in self.bytes),
            tuple(times * h for h in self.hops),
        )

    def to_json(self) -> dict[str, Any]:
        """The largest value over parties, and all of them."""
        per_party = [
            {"rounds": r, "bytes": b, "hops": h} for r, b, h in zip(self.rounds, self.bytes, self.hops, strict=True)
        ]
        return {"rounds": max(self.rounds), "bytes": max(self.bytes), "hops": max(self.hops), "per_party": per_party}


@dataclass(frozen=True, slots=True)
class Traffic:
    """Traffic in three phases.

    Setup (fixed weights, once), offline (all that the dealer sends) and online (input to output). Offline bytes are
    indexed by the party that *receives* them from the dealer. Under TFP nothing is sent by a dealer: the figure is what
    a trusted third party would have sent, derived from the correlations used.
    """

    setup: PhaseTraffic
    offline: PhaseTraffic
    online: PhaseTraffic

    @classmethod
    def zero(cls, parties: int) -> Traffic:
        """No traffic at all between `parties`."""
        nothing = PhaseTraffic.zero(parties)
        return cls(nothing, nothing, nothing)

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.setup + other.setup, self.offline + other.offline, self.online + other.online)

    def __mul__(self, times: int) -> Traffic:
        return Traffic(self.setup * times, self.offline * times, self.online * times)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a record, a key for each phase."""
        return {"setup": self.setup.to_json(), "offline": self.offline.to_json(), "online": self.online.to_json()}


def _add(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(x + y for x, y in zip(a, b, strict=True))


def tally(events: Iterable[Event], parties: int, transport: Transport = "gloo") -> Traffic:
    """The exact traffic of `events` among `parties`: messages are setup or online, correlations offline."""
    phases = {"setup": PhaseTraffic.zero(parties), "online": PhaseTraffic.zero(parties)}
    dealer_bytes = asked = 0
    for event in events:
        if isinstance(event, Message):
            phases[event.phase] += message_traffic(event, parties, transport)
        else:
            dealer_bytes += event.dealer_bytes
            asked += not event.sizes
    others = (0,) * (parties - 1)
    offline = PhaseTraffic((asked, *others), (dealer_bytes, *others), (asked, *others))
    return Traffic(phases["setup"], offline, phases["online"])


@lru_cache(maxsize=100_000)
def message_traffic(message: Message, parties: int, transport: Transport = "gloo") -> PhaseTraffic:
    """What each party sends, waits for and crosses for one message, by the transport's algorithm."""
    return (_direct_traffic if transport == "direct" else _gloo_traffic)(message, parties)


def _direct_traffic(message: Message, parties: int) -> PhaseTraffic:
    """Every party hands its tensors to every other party that needs them: one hop."""
    size = sum(message.payload_bytes)
    if message.collective in ("all_reduce", "open", "open_bits"):
        return PhaseTraffic((1,) * parties, (size * (parties - 1),) * parties, (1,) * parties)
    if message.collective == "gather":
        waits = tuple(int(party == message.root) for party in range(parties))
        return PhaseTraffic(waits, tuple(0 if waits[party] else size for party in range(parties)), waits)
    raise ValueError(f"no wire model for collective {message.collective!r} over direct")


def _gloo_traffic(message: Message, parties: int) -> PhaseTraffic:
    """gloo's ring algorithms (pytorch/gloo)."""
    everyone = range(parties)
    if message.collective == "all_reduce":
        sent = tuple(sum(_ring_sent(size, parties, rank) for size in message.payload_bytes) for rank in everyone)
        return PhaseTraffic((1,) * parties, sent, (_all_reduce_hops(message.payload_bytes, parties),) * parties)
    if message.collective == "gather":
        size = sum(message.payload_bytes)
        is_root = [rank == message.root for rank in everyone]
        # The root announces its buffer, then the share arrives: two one-way delays.
        return PhaseTraffic(
            tuple(map(int, is_root)), tuple(0 if r else size for r in is_root), tuple(2 * r for r in is_root)
        )
    raise ValueError(f"no wire model for collective {message.collective!r}")


def _divided_up(dividend: int, divisor: int) -> int:
    """The quotient, rounded up."""
    return -(-dividend // divisor)


def _ring_sent(payload_bytes: int, parties: int, rank: int) -> int:
    """Payload bytes that `rank` writes in gloo's ring all_reduce of one int64 tensor.

    The tensor is cut into 2 or more segments a party; reduce-scatter sends every chunk but the rank's own
    successor order leaves out, all-gather the same, so a party sends the whole tensor and one more chunk
    for each further party: chunk lengths differ by rounding, which is why the rank matters.
    """
    segments = max(_divided_up(payload_bytes, _GLOO_MAX_SEGMENT_BYTES), 2 * parties)
    segments = _divided_up(segments, parties) * parties
    segment_bytes = _divided_up(payload_bytes, segments * WORD_BYTES) * WORD_BYTES
    chunk_bytes = segment_bytes * (segments // parties)

    def chunk(index: int) -> int:
        return min(chunk_bytes, max(0, payload_bytes - (index % parties) * chunk_bytes))

    reduce_scatter = sum(chunk(rank + 1 + step) for step in range(parties - 1))
    all_gather = sum(chunk(rank + step) for step in range(parties - 1))
    return reduce_scatter + all_gather


def _all_reduce_hops(payload_bytes: tuple[int, ...], parties: int) -> int:
    """Nominal one-way delays of a batch of all_reduce calls; gloo runs two of a batch at a time.

    Each ring step is one announcement and one payload crossing. Up to 2 elements live in the first party's chunk alone,
    so at two parties only one of the two ring steps carries anything in each direction.
    """
    steps = 2 * (parties - 1)
    hops = [steps if size <= 2 * WORD_BYTES and parties == 2 else 2 * steps for size in payload_bytes]
    return sum(max(hops[start : start + 2]) for start in range(0, len(hops), 2))
