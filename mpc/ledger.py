"""What a party really sends: every message is recorded where its tensors are handed to torch.distributed or to a link.

The ledger never asks a row of the table what an operation should cost. It sees tensors on their way to the wire, counts
their bytes, times the call, and notes which operation of which module was running.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from types import ModuleType
from typing import Any, Literal

import torch

from mpc.scheme import Transport
from mpc.traffic import WORD_BYTES, Correlation, Event, Message, Traffic, tally

_COLLECTIVES = (
    "all_reduce",
    "all_gather",
    "broadcast",
    "gather",
    "reduce",
    "scatter",
    "isend",
    "irecv",
    "send",
    "recv",
)
_CORRELATIONS = {
    "generate_additive_triple": "product",
    "square": "square",
    "generate_binary_triple": "and",
    "wrap_rng": "wraps",
    "B2A_rng": "bit",
}


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One event of a party: an online message, a message of the stand-in dealer, or a correlation used up.

    `compute_s` is the time since the previous message ended (dealer's work left out), `wait_s` the time inside the
    call, which began at `start_s` on the clock that all processes of a machine share (`time.perf_counter`).
    """

    op: str
    site: str
    event: Event
    compute_s: float
    wait_s: float
    of_dealer: bool = False
    start_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Span:
    """One operation of the table as a party ran it: from `start_s` to `end_s` on the shared clock.

    `online_s` is what of that was online, the dealer's work left out; `until_s` are the online seconds of the run up to
    its end, so that differences of them hold what Python does between operations too.
    """

    op: str
    site: str
    start_s: float
    end_s: float
    online_s: float
    until_s: float = 0.0


@dataclass(frozen=True, slots=True)
class MessageLog:
    """Everything one party sent in one run, in order; `online_s` and `dealer_s` are that party's wall time.

    `spans` are the operations, in order; `start_s` is when the run began on the clock of the entries.
    """

    party: int
    parties: int
    entries: tuple[LogEntry, ...]
    online_s: float
    dealer_s: float
    spans: tuple[Span, ...] = ()
    transport: Transport = "gloo"
    start_s: float = 0.0

    @property
    def op_s(self) -> dict[str, float]:
        """Online seconds by operation; what lies between operations is in none of them."""
        seconds: dict[str, float] = {}
        for span in self.spans:
            seconds[span.op] = seconds.get(span.op, 0.0) + span.online_s
        return seconds

    @property
    def messages(self) -> tuple[LogEntry, ...]:
        """The online messages, in program order."""
        return tuple(e for e in self.entries if isinstance(e.event, Message) and not e.of_dealer)

    @property
    def traffic(self) -> Traffic:
        """Traffic as this party counted it, for all parties alike (the wire model says who writes what)."""
        return tally((e.event for e in self.entries if not e.of_dealer), self.parties, self.transport)


@dataclass(slots=True)
class Ledger:
    """Records one run of one party; `start` and `stop` bound it, `operation` names what is running."""

    party: int
    parties: int
    transport: Transport = "gloo"
    entries: list[LogEntry] = field(default_factory=list)
    op: str = ""
    site: str = ""
    recording: bool = False
    _spans: list[Span] = field(default_factory=list)
    _open: list[int] | None = None
    _dealer_depth: int = 0
    _dealer_s: float = 0.0
    _apart_s: float = 0.0
    _since_message_dealer_s: float = 0.0
    _last_end_s: float = 0.0
    _start_s: float = 0.0

    def start(self) -> None:
        """Forget everything and record from now on."""
        self.entries.clear()
        self._spans.clear()
        self._dealer_s = self._apart_s = self._since_message_dealer_s = 0.0
        self.recording = True
        self._start_s = self._last_end_s = time.perf_counter()

    def stop(self) -> MessageLog:
        """End the run: its log, with wall time split into online and dealer."""
        total_s = time.perf_counter() - self._start_s
        self.recording = False
        online_s, entries, spans = total_s - self._dealer_s - self._apart_s, tuple(self.entries), tuple(self._spans)
        return MessageLog(
            self.party, self.parties, entries, online_s, self._dealer_s, spans, self.transport, self._start_s
        )

    @contextmanager
    def operation(self, op: str, site: str) -> Iterator[None]:
        """Everything sent inside belongs to this operation of this module, and so does the time that it takes."""
        before = self.op, self.site
        self.op, self.site = op, site
        start_s, dealer_s = time.perf_counter(), self._dealer_s + self._apart_s
        try:
            yield
        finally:
            end_s = time.perf_counter()
            others_s = self._dealer_s + self._apart_s
            if self.recording:
                online_s, until_s = end_s - start_s - (others_s - dealer_s), end_s - self._start_s - others_s
                self._spans.append(Span(op, site, start_s, end_s, online_s, until_s))
            self.op, self.site = before

    @contextmanager
    def message(self, collective: str, root: int = 0, phase: Literal["setup", "online"] = "online") -> Iterator[None]:
        """One call of the communicator: what reaches torch.distributed or a link inside is its payload."""
        if not self.recording:
            yield
            return
        self._open = []
        start_s = time.perf_counter()
        try:
            yield
        finally:
            end_s = time.perf_counter()
            compute_s = start_s - self._last_end_s - self._since_message_dealer_s
            event = Message(collective, tuple(self._open), root, phase)
            self._append(event, 0.0 if self._dealer_depth else compute_s, start_s, end_s)
            if not self._dealer_depth:
                self._last_end_s, self._since_message_dealer_s = end_s, 0.0
            self._open = None

    @contextmanager
    def dealing(self) -> Iterator[None]:
        """The dealer's work: its time is not online time, its messages are no part of the protocol's traffic."""
        self._dealer_depth += 1
        start_s = time.perf_counter()
        try:
            yield
        finally:
            self._dealer_depth -= 1
            if not self._dealer_depth:
                elapsed_s = time.perf_counter() - start_s
                self._dealer_s += elapsed_s
                self._since_message_dealer_s += elapsed_s

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Time that is neither online nor the dealer's: parties that meet so that a measurement starts for both."""
        start_s = time.perf_counter()
        try:
            yield
        finally:
            elapsed_s = time.perf_counter() - start_s
            self._apart_s += elapsed_s
            self._since_message_dealer_s += elapsed_s

    def payload(self, size_bytes: int) -> None:
        """A tensor of this size was handed to torch.distributed, or to a link."""
        if self._open is not None:
            self._open.append(size_bytes)
        elif self.recording and not self._dealer_depth:
            raise RuntimeError(f"{size_bytes} bytes were sent outside the collectives that the ledger knows")

    def correlation(self, kind: str, dealer_bytes: int) -> None:
        """The provider handed out a correlation whose correction for party 0 has this size."""
        if self.recording:
            self.entries.append(LogEntry(self.op, self.site, Correlation(kind, dealer_bytes), 0.0, 0.0))

    def dealt(self, correlation: Correlation) -> None:
        """A correlation was dealt ahead of its use."""
        if self.recording:
            self.entries.append(LogEntry(self.op, self.site, correlation, 0.0, 0.0))

    def _append(self, event: Event, compute_s: float, start_s: float, end_s: float) -> None:
        of_dealer = bool(self._dealer_depth)
        self.entries.append(LogEntry(self.op, self.site, event, compute_s, end_s - start_s, of_dealer, start_s))


class _RecordingDistributed(ModuleType):
    """torch.distributed as CrypTen's communicator sees it: every tensor that goes out is reported to the ledger."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__("torch.distributed")
        self._ledger = ledger

    def __getattr__(self, name: str) -> Any:
        target = getattr(torch.distributed, name)
        if name not in _COLLECTIVES:
            return target

        @wraps(target)
        def recorded(*args: Any, **kwargs: Any) -> Any:
            tensor = next(a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor))
            self._ledger.payload(tensor.nbytes)
            return target(*args, **kwargs)

        return recorded


def attach(ledger: Ledger) -> None:
    """Make CrypTen's communicator and its dealers report to `ledger`; once in the life of a party process."""
    import crypten.communicator.distributed_communicator as communicator
    from crypten.mpc.provider import TrustedFirstParty, TrustedThirdParty

    communicator.dist = _RecordingDistributed(ledger)
    cls = communicator.DistributedCommunicator
    for name in ("all_reduce", "gather", "scatter", "broadcast", "reduce", "all_gather"):
        setattr(cls, name, _recorded_call(ledger, name, getattr(cls, name)))
    for provider in (TrustedFirstParty, TrustedThirdParty):
        for name, kind in _CORRELATIONS.items():
            setattr(provider, name, _recorded_dealing(ledger, kind, getattr(provider, name)))


def _recorded_call(ledger: Ledger, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(call)
    def recorded(self: Any, *args: Any, **kwargs: Any) -> Any:
        root = args[1] if name in ("gather", "scatter") and len(args) > 1 else kwargs.get("dst", kwargs.get("src", 0))
        with ledger.message(name, root if isinstance(root, int) else 0):
            return call(self, *args, **kwargs)

    return recorded


def _recorded_dealing(ledger: Ledger, kind: str, deal: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(deal)
    def recorded(self: Any, *args: Any, **kwargs: Any) -> Any:
        with ledger.dealing():
            shares = deal(self, *args, **kwargs)
        # The correction is the last tensor of each correlation; for a random bit it is the arithmetic half.
        corrected = shares[0] if kind == "bit" else shares[-1]
        ledger.correlation(kind, corrected.share.numel() * WORD_BYTES)
        return shares

    return recorded
