"""A run measured on loopback, re-timed on another link: the timelines of all its parties, simulated together.

What a party computes between two messages takes as long as it took. A message begins at each party when that party has
come to it, and ends where the link has brought the others' data and they are handled. Handling takes what it took on
loopback; it goes on while data arrive, but does not shorten a delay.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cost_models.waking import resume_s
from mpc.congestion import LINUX, Flow, Tcp
from mpc.elapsed import early_s, together_s
from mpc.ledger import LogEntry, MessageLog, Span
from mpc.network import NetworkProfile
from mpc.traffic import Message, PhaseTraffic, message_traffic
from mpc.transport import HEADER_BYTES

_PROBE_S = 1e-4  # replay is all but linear in `wake_s`: two points give the line


@dataclass(frozen=True, slots=True)
class Seconds:
    """Online seconds by where they come from; `delay_s` and `transfer_s` are what the link adds.

    `compute_s` is what the run would take without the link: local work, handling of messages, waiting for a party that
    comes later, and waking up.
    """

    compute_s: float = 0.0
    delay_s: float = 0.0
    transfer_s: float = 0.0

    @property
    def total_s(self) -> float:
        """All of it."""
        return self.compute_s + self.delay_s + self.transfer_s

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(
            self.compute_s + other.compute_s, self.delay_s + other.delay_s, self.transfer_s + other.transfer_s
        )

    def to_json(self) -> dict[str, float]:
        """Plain values for a record."""
        parts = {"compute_s": self.compute_s, "delay_s": self.delay_s, "transfer_s": self.transfer_s}
        return {"total_s": self.total_s, **parts}


@dataclass(frozen=True, slots=True)
class Replay:
    """A run on `network` at its slowest party: in all, by operation and by module; `logs` are those of all parties.

    Local work counts for the operation whose message ends it; what follows the last message is under the name "". So
    `by_op` and `by_module` both add up to `online`.
    """

    network: str
    online: Seconds
    by_op: dict[str, Seconds]
    by_module: dict[str, Seconds]
    logs: tuple[MessageLog, ...]

    @property
    def log(self) -> MessageLog:
        """The re-timed log of the slowest party."""
        return max(self.logs, key=lambda log: log.online_s)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a record; `mode` says that no such link was there."""
        return {
            "network": self.network,
            "mode": "replayed",
            "online": self.online.to_json(),
            "by_op": {name: part.to_json() for name, part in self.by_op.items()},
            "by_module": {name: part.to_json() for name, part in self.by_module.items()},
        }


def replay(logs: Sequence[MessageLog], network: NetworkProfile, tcp: Tcp | None = None, wake_s: float = 0.0) -> Replay:
    """The run that `logs` hold, one of each party, measured on loopback, as it would be on `network`.

    Connections have carried the same run once before, as those of a benchmark have after its warm-up; `tcp` says how
    they grow (default: as on the shaped link). `wake_s` is what it costs to resume after a long sleep (`resume_s`),
    paid where a party sleeps longer for a message than it did on loopback; `fit_wake` fits it. Raises ValueError where
    the logs are not those of one run, or hold no online message: they would replay to loopback's seconds on any link.
    """
    _demand_one_run(logs)
    logs = sorted(logs, key=lambda log: log.party)
    wire = _Wire(network, tcp or LINUX, len(logs), logs[0].transport)
    first = [_Timeline(log) for log in logs]
    _simulate(first, wire, wake_s)  # to warm up
    began_s, ended_s = min(log.start_s for log in logs), max(party.clock_s for party in first)
    parties = [_Timeline(log, later_s=ended_s - began_s) for log in logs]
    _simulate(parties, wire, wake_s)
    retimed = tuple(party.retimed() for party in parties)
    ready = list(zip(parties, early_s(retimed), strict=True))
    slowest, waited_s = max(ready, key=lambda pair: pair[0].online_s - pair[1])
    return Replay(network.name, *slowest.parts(waited_s), retimed)


def _simulate(parties: Sequence[_Timeline], wire: _Wire, wake_s: float) -> None:
    """Take every timeline to its end, one message of all parties after the other."""
    for entries in zip(*(party.log.messages for party in parties), strict=True):
        message = entries[0].event
        assert isinstance(message, Message)
        traffic = message_traffic(message, len(parties), parties[0].log.transport)
        measured_s = max(entry.start_s for entry in entries)
        begun_s = [party.begin(entry) for party, entry in zip(parties, entries, strict=True)]
        arrivals_s = wire.carry(message, traffic, begun_s)
        for number, (party, entry) in enumerate(zip(parties, entries, strict=True)):
            if traffic.rounds[number]:
                handled_s = entry.start_s + entry.wait_s - measured_s
                loopback_s = max(begun_s) + handled_s
                first_s, last_s = arrivals_s[number]
                after_s = max(0.0, handled_s - max(0.0, last_s - max(first_s, begun_s[number])))
                asleep_s = max(0.0, last_s - begun_s[number])
                woken_s = max(0.0, resume_s(wake_s, asleep_s) - resume_s(wake_s, entry.wait_s))
                held_up_s = max(0.0, last_s + after_s + woken_s - loopback_s)
                delay_s = wire.delay_s(traffic.hops[number])
            else:  # it hands its data to the socket and goes on
                loopback_s, woken_s, held_up_s, delay_s = begun_s[number] + entry.wait_s, 0.0, 0.0, 0.0
            woken_s = min(woken_s, held_up_s)
            party.end(entry, begun_s[number], loopback_s, woken_s, min(delay_s, held_up_s - woken_s), held_up_s)


def fit_wake(pairs: Iterable[tuple[Sequence[MessageLog], NetworkProfile, float]], tcp: Tcp | None = None) -> float:
    """The `wake_s` with the least sum of absolute relative errors of replay over `pairs`.

    A pair is the logs of a run on loopback, a link, and seconds measured on that link as `together_s` counts them.
    Never negative. Raises ValueError without pairs.
    """
    found = []  # `wake_s` that is right for a pair, and how much its error moves with it
    for logs, network, measured_s in pairs:
        without_s, with_s = (together_s(replay(logs, network, tcp, wake_s).logs) for wake_s in (0.0, _PROBE_S))
        if with_s > without_s:
            per_s = (with_s - without_s) / _PROBE_S
            found.append(((measured_s - without_s) / per_s, per_s / measured_s))
    if not found:
        raise ValueError("there is nothing to fit the cost of waking up to; measure at least one run on a link")
    return max(0.0, _weighted_median(sorted(found)))


def _weighted_median(weighted: Sequence[tuple[float, float]]) -> float:
    """Of values in order, each with its weight."""
    half = sum(weight for _, weight in weighted) / 2
    for value, weight in weighted:
        half -= weight
        if half <= 0:
            return value
    return weighted[-1][0]


def _demand_one_run(logs: Sequence[MessageLog]) -> None:
    if not logs or not logs[0].messages:
        raise ValueError("the log holds no online message; record the run with a ledger before replaying it")
    if sorted(log.party for log in logs) != list(range(logs[0].parties)):
        found = ", ".join(str(log.party) for log in logs)
        raise ValueError(f"replay takes the logs of all {logs[0].parties} parties, got those of party {found}")
    for log in logs[1:]:
        if [e.event for e in log.messages] != [e.event for e in logs[0].messages]:
            raise ValueError(f"parties {logs[0].party} and {log.party} sent different messages: not logs of one run")


class _Wire:
    """Connections between all parties, each with its own direction, rate and window."""

    def __init__(self, network: NetworkProfile, tcp: Tcp, parties: int, transport: str) -> None:
        self._network, self._gloo = network, transport == "gloo"
        pairs = [(a, b) for a in range(parties) for b in range(parties) if a != b]
        self._flows = {pair: Flow(network, tcp) for pair in pairs}

    def delay_s(self, hops: int) -> float:
        """One-way delays, one after the other."""
        return self._network.link_s(hops, 0)

    def carry(self, message: Message, traffic: PhaseTraffic, begun_s: Sequence[float]) -> list[tuple[float, float]]:
        """When the first and the last bytes are there that each party waits for, from when each began to send."""
        parties = len(begun_s)
        if message.collective == "gather":
            pairs = [(party, message.root) for party in range(parties) if party != message.root]
        else:
            pairs = [(party, (party + 1) % parties) for party in range(parties)] if self._gloo else list(self._flows)
        pairs = [(sender, receiver) for sender, receiver in pairs if traffic.bytes[sender]]
        if self._gloo:
            return self._in_steps(pairs, traffic, begun_s)
        arrivals_s = [(begun, begun) for begun in begun_s]
        payload_bytes = sum(message.payload_bytes)  # each of the others gets a copy
        answer_bytes = 0 if message.collective == "gather" else payload_bytes
        for sender, receiver in pairs:
            flow = self._flows[sender, receiver]
            last_s = flow.due_s(begun_s[sender], HEADER_BYTES + payload_bytes, answer_bytes)
            if last_s > arrivals_s[receiver][1]:
                arrivals_s[receiver] = begun_s[sender] + self.delay_s(1), last_s
        return arrivals_s

    def _in_steps(
        self, pairs: Sequence[tuple[int, int]], traffic: PhaseTraffic, begun_s: Sequence[float]
    ) -> list[tuple[float, float]]:
        """A collective of gloo: every step is an announcement by who receives, and a part of the data.

        A step depends on both ends: none begins before all have come, and have what the step before brought.
        """
        ready_s = came_s = max(begun_s)
        steps = max(traffic.hops) // 2
        for _ in range(steps):
            announced_s = ready_s + self.delay_s(1)
            for sender, receiver in pairs:
                flow = self._flows[sender, receiver]
                ready_s = max(ready_s, flow.due_s(announced_s, traffic.bytes[sender] / steps))
        waiting = {receiver for _, receiver in pairs}
        return [
            (came_s + self.delay_s(traffic.hops[party]), ready_s) if party in waiting else (begun, begun)
            for party, begun in enumerate(begun_s)
        ]


class _Timeline:
    """One party's run: where its clock stood after each message as measured, and how much later it stands replayed.

    The replayed run begins `later_s` after the measured one.
    """

    def __init__(self, log: MessageLog, later_s: float = 0.0) -> None:
        self.log = log
        self._later_s = later_s
        self._ends_s = [log.start_s]  # as measured, of the start and of every message
        self._shifts_s = [0.0]  # of what follows that moment, beside `later_s`
        self._waits_s: list[tuple[float, float]] = []  # begin and wait, replayed, as if nothing were later
        self._seconds: list[Seconds] = []

    @property
    def online_s(self) -> float:
        """Replayed online seconds."""
        return self.log.online_s + self._shifts_s[-1]

    @property
    def clock_s(self) -> float:
        """When the replayed run ends."""
        return self.log.start_s + self.log.online_s + self.log.dealer_s + self._later_s + self._shifts_s[-1]

    def begin(self, entry: LogEntry) -> float:
        """When this party comes to a message: after the same time since the one before."""
        return entry.start_s + self._later_s + self._shifts_s[-1]

    def end(
        self, entry: LogEntry, begun_s: float, loopback_s: float, woken_s: float, delay_s: float, held_up_s: float
    ) -> None:
        """A message is over: it would be at `loopback_s` without the link, which holds it up."""
        wait_s = loopback_s + held_up_s - begun_s
        self._ends_s.append(entry.start_s + entry.wait_s)
        self._shifts_s.append(self._shifts_s[-1] + wait_s - entry.wait_s)
        self._waits_s.append((begun_s - self._later_s, wait_s))
        transfer_s = held_up_s - woken_s - delay_s
        self._seconds.append(Seconds(entry.compute_s + wait_s - delay_s - transfer_s, delay_s, transfer_s))

    def parts(self, early_s: float) -> tuple[Seconds, dict[str, Seconds], dict[str, Seconds]]:
        """In all, by operation, by module; being ready `early_s` before the last party is in none of them."""
        by_op: dict[str, Seconds] = defaultdict(Seconds)
        by_module: dict[str, Seconds] = defaultdict(Seconds)
        online = Seconds()
        first, *others = self._seconds
        together = [replace(first, compute_s=first.compute_s - early_s), *others]
        for entry, seconds in zip(self.log.messages, together, strict=True):
            online += seconds
            by_op[entry.op] += seconds
            by_module[entry.site] += seconds
        rest = Seconds(self.online_s - early_s - online.total_s)
        by_op[""] += rest
        by_module[""] += rest
        return online + rest, dict(by_op), dict(by_module)

    def retimed(self) -> MessageLog:
        """The log as this party would have kept it on the link."""
        waits_s = iter(self._waits_s)
        entries = []
        for entry in self.log.entries:
            if not isinstance(entry.event, Message):
                entries.append(entry)
            elif entry.of_dealer:
                entries.append(replace(entry, start_s=entry.start_s + self._shift_s(entry.start_s)))
            else:
                begun_s, wait_s = next(waits_s)
                entries.append(replace(entry, start_s=begun_s, wait_s=wait_s))
        spans = tuple(map(self._retimed_span, self.log.spans))
        return replace(self.log, entries=tuple(entries), spans=spans, online_s=self.online_s)

    def _retimed_span(self, span: Span) -> Span:
        before_s, after_s = self._shift_s(span.start_s), self._shift_s(span.end_s)
        return replace(
            span,
            start_s=span.start_s + before_s,
            end_s=span.end_s + after_s,
            online_s=span.online_s + after_s - before_s,
            until_s=span.until_s + after_s,
        )

    def _shift_s(self, at_s: float) -> float:
        """How much later than measured this party is at a moment between two messages."""
        return self._shifts_s[max(0, bisect_right(self._ends_s, at_s) - 1)]
