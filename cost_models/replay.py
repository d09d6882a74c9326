"""A run measured on loopback, re-timed on another link: what was sent stays, the link's delay and bandwidth are added.

The law is additive: loopback seconds + hops x one-way delay + bytes / bandwidth. It overlaps nothing, and knows neither
TCP's slow start nor its window, so on long links it is a lower bound for large messages.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mpc.network import NetworkProfile
from mpc.scheme import Transport
from mpc.traffic import Event, Message, message_traffic


class Entry(Protocol):
    """One online message of a log: `compute_s` since the message before it, `wait_s` inside the call."""

    @property
    def op(self) -> str: ...  # noqa: D102
    @property
    def site(self) -> str: ...  # noqa: D102
    @property
    def event(self) -> Event: ...  # noqa: D102
    @property
    def compute_s(self) -> float: ...  # noqa: D102
    @property
    def wait_s(self) -> float: ...  # noqa: D102


class Log(Protocol):
    """What one party sent in one run; `mpc.ledger.MessageLog` is one."""

    @property
    def party(self) -> int: ...  # noqa: D102
    @property
    def parties(self) -> int: ...  # noqa: D102
    @property
    def messages(self) -> Sequence[Entry]: ...  # noqa: D102
    @property
    def online_s(self) -> float: ...  # noqa: D102
    @property
    def transport(self) -> Transport: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Seconds:
    """Online seconds by where they come from: the run on loopback, one-way delays, bytes over bandwidth."""

    loopback_s: float = 0.0
    delay_s: float = 0.0
    transfer_s: float = 0.0

    @property
    def total_s(self) -> float:
        """All of it."""
        return self.loopback_s + self.delay_s + self.transfer_s

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(
            self.loopback_s + other.loopback_s, self.delay_s + other.delay_s, self.transfer_s + other.transfer_s
        )

    def to_json(self) -> dict[str, float]:
        """Plain values for a record."""
        parts = {"loopback_s": self.loopback_s, "delay_s": self.delay_s, "transfer_s": self.transfer_s}
        return {"total_s": self.total_s, **parts}


@dataclass(frozen=True, slots=True)
class Replay:
    """A run on `network`: in all, by operation and by module.

    Local work counts for the operation whose message ends it; what follows the last message is under the name "". So
    `by_op` and `by_module` both add up to `online`.
    """

    network: str
    online: Seconds
    by_op: dict[str, Seconds]
    by_module: dict[str, Seconds]

    def to_json(self) -> dict[str, Any]:
        """Plain values for a record; `mode` says that no such link was there."""
        return {
            "network": self.network,
            "mode": "replayed",
            "online": self.online.to_json(),
            "by_op": {name: part.to_json() for name, part in self.by_op.items()},
            "by_module": {name: part.to_json() for name, part in self.by_module.items()},
        }


def replay(log: Log, network: NetworkProfile) -> Replay:
    """The run of `log`, measured on loopback, as it would be on `network` for the party that kept the log.

    Raises ValueError for a log without online messages: it would replay to loopback's seconds on any link.
    """
    if not log.messages:
        raise ValueError("the log holds no online message; record the run with a ledger before replaying it")
    by_op: dict[str, Seconds] = defaultdict(Seconds)
    by_module: dict[str, Seconds] = defaultdict(Seconds)
    online = Seconds()
    for entry in log.messages:
        part = _entry_seconds(entry, log, network)
        online += part
        by_op[entry.op] += part
        by_module[entry.site] += part
    rest = Seconds(loopback_s=log.online_s - online.loopback_s)
    by_op[""] += rest
    by_module[""] += rest
    return Replay(network.name, online + rest, dict(by_op), dict(by_module))


def _entry_seconds(entry: Entry, log: Log, network: NetworkProfile) -> Seconds:
    if not isinstance(entry.event, Message):
        raise ValueError("a correlation is no message; replay takes the online messages of a log")
    traffic = message_traffic(entry.event, log.parties, log.transport)
    return Seconds(
        loopback_s=entry.compute_s + entry.wait_s,
        delay_s=network.link_s(traffic.hops[log.party], 0),
        transfer_s=network.link_s(0, traffic.bytes[log.party]),
    )
