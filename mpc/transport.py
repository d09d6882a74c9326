"""The `direct` transport: one duplex TCP socket for each pair of processes, both directions in flight at once.

A message is a fixed header and its payload. The header holds what the receiver already expects (sequence number, tag,
length): parties that fell out of step stop at once with a clear line, and nothing that arrives is ever interpreted.

A link can be an emulated network: its header then also says when the message is due, by the clock that all processes of
one machine share, and whoever receives it is held until then (`mpc/congestion.py` has the law). Payload is the same.
"""

from __future__ import annotations

import ctypes
import math
import select
import socket
import ssl
import struct
import sys
import time
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn, Self, cast
from zlib import crc32

from mpc.congestion import Flow
from mpc.network import NetworkProfile

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Readable
    from _typeshed import WriteableBuffer as Writable
    from numpy.typing import NDArray

    # Before Python 3.12 no array says in its type that it is a buffer.
    ReadableBuffer = Readable | NDArray[Any]
    WriteableBuffer = Writable | NDArray[Any]

_HEADER = struct.Struct("<IIQQ")  # magic, tag, sequence number, payload bytes
_DUE = struct.Struct("<d")  # of an emulated link: when the message is due
_MAGIC = 0x4D50434C
HEADER_BYTES = _HEADER.size
_PR_SET_TIMERSLACK = 29  # Linux, include/uapi/linux/prctl.h
_LAST_PIECE_BYTES = 64 << 10  # what a network brings at once: whoever waits for its last bit can read none of it before
_SHORT_BYTES = 16 << 10  # up to here, to read the payload takes less time than asking for it once more
_TLS_PIECE_BYTES = 64 << 10  # OpenSSL wants a blocked write repeated whole, so a write is never long


class TransportError(RuntimeError):
    """A link failed or its peer fell out of step; the message names the peer."""


class PeerClosedError(TransportError):
    """The peer has closed the link, or its process is gone."""


@lru_cache(maxsize=4096)
def tag_of(operation: str, *shapes: tuple[int, ...]) -> int:
    """What the header of a message says of its content: CRC-32 of an operation's name and its shapes."""
    return crc32(repr((operation, *map(tuple, shapes))).encode())


class Link:
    """One end of a connected stream socket, plain or TLS, to process number `peer`.

    Every wait for the peer ends after `deadline_s` without progress. After an error the link is of no use. The counters
    hold what the socket took: `payload_bytes_sent` without headers, `messages_sent` those written whole.

    With an `emulated` network, what is received is held until that network would have brought it. Both ends must be
    given the same one, and be processes of one machine. What arrived is no silence, however long it is held.

    A process with a core of its own may set `spin_s`: for so long it asks for what it waits for without going to sleep.
    """

    def __init__(
        self,
        connected: socket.socket,
        peer: int,
        deadline_s: float = 3600.0,
        emulated: NetworkProfile | None = None,
    ) -> None:
        connected.setblocking(False)
        self.peer = peer
        self.deadline_s = deadline_s
        self.payload_bytes_sent = 0
        self.messages_sent = 0
        self.messages_received = 0
        self._socket = connected
        self._tls = isinstance(connected, ssl.SSLSocket)
        self._flow = Flow(emulated) if emulated is not None else None
        self.spin_s = 0.0
        self.header_bytes = HEADER_BYTES + (_DUE.size if self._flow else 0)

    def exchange(self, outgoing: ReadableBuffer, incoming: WriteableBuffer, tag: int) -> None:
        """Send one message and receive one, both C-contiguous, in one hop whatever their sizes."""
        _complete([_Outgoing(self, outgoing, tag, incoming), _Incoming(self, incoming, tag)])

    def send(self, payload: ReadableBuffer, tag: int) -> None:
        """Send one message; returns when the socket has taken it all."""
        _complete([_Outgoing(self, payload, tag)])

    def receive_into(self, buffer: WriteableBuffer, tag: int) -> None:
        """Receive one message of exactly the length of `buffer`."""
        _complete([_Incoming(self, buffer, tag)])

    def receive(self, tag: int, limit_bytes: int) -> bytearray:
        """Receive one message of unknown length; TransportError, and nothing allocated, beyond `limit_bytes`."""
        announced = _Incoming(self, None, tag)
        announced.limit_bytes = limit_bytes
        _complete([announced])
        return announced.payload

    def header_of(self, payload_bytes: int, tag: int, answer_bytes: int) -> bytes:
        """The header of the next message out; `answer_bytes` are expected at the same time."""
        header = _HEADER.pack(_MAGIC, tag, self.messages_sent, payload_bytes)
        if self._flow is None:
            return header
        sent_bytes = payload_bytes + self.header_bytes
        return header + _DUE.pack(self._flow.due_s(time.monotonic(), sent_bytes, answer_bytes))

    def fileno(self) -> int:
        """The socket's descriptor, for select."""
        return self._socket.fileno()

    def close(self) -> None:
        """End the link; the peer sees PeerClosedError."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, parts: list[memoryview]) -> int:
        """Hand bytes to the socket without waiting; how many it took."""
        if self._tls:
            whole = len(parts) == 1 or sum(map(len, parts)) > _TLS_PIECE_BYTES
            return self._socket.send(parts[0][:_TLS_PIECE_BYTES] if whole else b"".join(parts))
        return self._socket.sendmsg(parts)

    def read(self, parts: list[memoryview]) -> int:
        """Take bytes that have arrived, without waiting; how many."""
        count = self._socket.recv_into(parts[0]) if self._tls else self._socket.recvmsg_into(parts)[0]
        if not count:
            raise PeerClosedError(f"party {self.peer} closed its connection")
        return count

    def lost(self, error: OSError) -> NoReturn:
        """Name the peer of a failed socket."""
        if isinstance(error, ConnectionError | ssl.SSLEOFError | ssl.SSLZeroReturnError):
            raise PeerClosedError(f"party {self.peer} closed its connection ({error})") from error
        raise TransportError(f"the connection to party {self.peer} failed: {error}") from error


class _Transfer:
    """A message on its way: `parts` is what is left of it, `wants` what to wait for; before `due_s`, not for `held`."""

    __slots__ = ("due_s", "held", "link", "parts", "wants")

    def __init__(self, link: Link, wants: int) -> None:
        self.link = link
        self.due_s = 0.0
        self.held: memoryview | None = None
        self.parts: list[memoryview] = []
        self.wants = wants

    def move(self) -> int:
        """Move some bytes without waiting; how many."""
        raise NotImplementedError

    def step(self) -> bool:
        """Move what can be moved now; whether anything was."""
        try:
            count = self.move()
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError) as blocked:
            if isinstance(blocked, ssl.SSLError):
                self.wants = select.POLLIN if isinstance(blocked, ssl.SSLWantReadError) else select.POLLOUT
            return False
        except OSError as error:
            self.link.lost(error)
        parts = self.parts
        while parts and count >= len(parts[0]):
            count -= len(parts.pop(0))
        if count:
            parts[0] = parts[0][count:]
        return True


class _Outgoing(_Transfer):
    __slots__ = ("begun", "header", "header_left", "sizes", "tag")

    def __init__(self, link: Link, payload: ReadableBuffer, tag: int, answer: WriteableBuffer | None = None) -> None:
        super().__init__(link, select.POLLOUT)
        view = _flat(payload)
        self.tag, self.sizes = tag, (len(view), 0 if answer is None else len(_flat(answer)))
        self.header, self.begun = bytearray(link.header_bytes), False
        self.parts = [memoryview(self.header)]
        if len(view):
            self.parts.append(view)
        self.header_left = link.header_bytes

    def move(self) -> int:
        """Write; count what the socket took beyond the header, which says when writing began."""
        if not self.begun:
            payload_bytes, answer_bytes = self.sizes
            self.header[:] = self.link.header_of(payload_bytes, self.tag, answer_bytes)
            self.begun = True
        count = self.link.write(self.parts)
        of_header = min(count, self.header_left)
        self.header_left -= of_header
        self.link.payload_bytes_sent += count - of_header
        return count

    def step(self) -> bool:
        """Move what can be moved now; a message written whole is counted."""
        moved = super().step()
        self.link.messages_sent += not self.parts
        return moved


class _Incoming(_Transfer):
    """`payload` is allocated once the header has announced no more than `limit_bytes`, where no buffer was given."""

    __slots__ = ("header", "header_left", "length_bytes", "limit_bytes", "payload", "tag")

    def __init__(self, link: Link, buffer: WriteableBuffer | None, tag: int) -> None:
        super().__init__(link, select.POLLIN)
        self.tag = tag
        self.header = bytearray(link.header_bytes)
        self.header_left = link.header_bytes
        self.limit_bytes = 0
        self.payload = bytearray()
        self.parts = [memoryview(self.header)]
        self.length_bytes: int | None = None
        if buffer is not None:
            view = _flat(buffer)
            if view.readonly:
                raise ValueError("a message is received into a writable buffer; this one is read-only")
            self.length_bytes = len(view)
            self._expect(view)

    def move(self) -> int:
        """Read; a header that has arrived whole is checked before anything more is waited for."""
        count = self.link.read(self.parts)
        if self.header_left:
            self.header_left -= min(count, self.header_left)
            if not self.header_left:
                self._check()
        return count

    def _check(self) -> None:
        link = self.link
        magic, tag, sequence, length_bytes = _HEADER.unpack_from(self.header)
        if magic != _MAGIC:
            raise TransportError(f"party {link.peer} sent something that is no message of this protocol")
        known = self.length_bytes is not None
        fits = length_bytes == self.length_bytes if known else length_bytes <= self.limit_bytes
        if (sequence, tag) != (link.messages_received, self.tag) or not fits:
            size = f"{self.length_bytes} bytes" if known else f"at most {self.limit_bytes} bytes"
            raise TransportError(
                f"party {link.peer} is out of step: expected message {link.messages_received} with tag "
                f"{self.tag:#010x} and {size}, got message {sequence} with tag {tag:#010x} and {length_bytes} bytes"
            )
        link.messages_received += 1
        if link.header_bytes > HEADER_BYTES:
            (self.due_s,) = _DUE.unpack_from(self.header, HEADER_BYTES)
            if not math.isfinite(self.due_s):
                raise TransportError(f"party {link.peer} sent no time that a message can be due")
        if not known:
            self.payload = bytearray(length_bytes)
            self._expect(memoryview(self.payload))

    def _expect(self, payload: memoryview) -> None:
        """Read the payload next; on an emulated network the last piece of a long one only when it is due."""
        held = self.link.header_bytes > HEADER_BYTES and len(payload) > _SHORT_BYTES
        first_bytes = max(0, len(payload) - _LAST_PIECE_BYTES) if held else len(payload)
        if first_bytes:
            self.parts.append(payload[:first_bytes])
        if first_bytes < len(payload):
            self.held = payload[first_bytes:]


def exchange_all(messages: Iterable[tuple[Link, ReadableBuffer | None, WriteableBuffer | None]], tag: int) -> None:
    """Send and receive over several links at once, at most one message each way: one hop in all.

    Each entry is a link, what to send over it and where to receive; None for nothing.
    """
    transfers: list[_Transfer] = []
    for link, outgoing, incoming in messages:
        if outgoing is not None:
            transfers.append(_Outgoing(link, outgoing, tag, incoming))
        if incoming is not None:
            transfers.append(_Incoming(link, incoming, tag))
    _complete(transfers)


def _complete(transfers: Sequence[_Transfer]) -> None:
    """Run all transfers to their ends, waiting only when none of them can move, or what is left is due later."""
    due_s = 0.0
    while transfers:
        moved = False
        for transfer in transfers:
            moved |= bool(transfer.parts) and transfer.step()
        if not moved:
            _wait(transfers)
        due_s = max(due_s, *[transfer.due_s for transfer in transfers])
        transfers = [transfer for transfer in transfers if transfer.parts or transfer.held is not None]
    if due_s:
        _hold_until(due_s)


def _hold_until(due_s: float) -> None:
    """Sleep until `due_s`; this process then wakes as late as one that waits for a socket does."""
    _demand_prompt_wakes()
    left_s = due_s - time.monotonic()
    if left_s > 0:
        time.sleep(left_s)


@lru_cache(maxsize=1)
def _demand_prompt_wakes() -> None:
    """Linux lets a sleep end 50 us late to save wakes, which a socket's wake does not have; 1 us for this thread."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1000, 0, 0, 0)


def _wait(transfers: Sequence[_Transfer]) -> None:
    """Sleep until a socket is ready for one of `transfers`, or a piece that is held becomes due."""
    waiting = [transfer for transfer in transfers if transfer.parts]
    held = [transfer for transfer in transfers if not transfer.parts]
    next_s = min((transfer.due_s for transfer in held), default=math.inf)
    if waiting:
        _wait_for_sockets(waiting, next_s)
    else:
        _hold_until(next_s)
    for transfer in held:
        if transfer.held is not None and transfer.due_s <= time.monotonic():
            transfer.parts, transfer.held = [transfer.held], None


def _wait_for_sockets(transfers: Sequence[_Transfer], until_s: float) -> None:
    """Sleep until a socket is ready, or the last millisecond before `until_s`; TransportError after a deadline."""
    wants: dict[int, int] = {}
    for transfer in transfers:
        descriptor = transfer.link.fileno()
        wants[descriptor] = wants.get(descriptor, 0) | transfer.wants
    poller = select.poll()
    for descriptor, events in wants.items():
        poller.register(descriptor, events)
    spin_s = min(transfer.link.spin_s for transfer in transfers)
    if spin_s and _spin(poller, min(spin_s, until_s - time.monotonic())):
        return
    deadline_s = min(transfer.link.deadline_s for transfer in transfers)
    if (left_s := until_s - time.monotonic()) < deadline_s:
        poller.poll(max(0, math.floor(left_s * 1000)))
    elif not poller.poll(None if math.isinf(deadline_s) else deadline_s * 1000):
        peers = ", ".join(sorted({str(transfer.link.peer) for transfer in transfers}))
        raise TransportError(f"party {peers} was silent for {deadline_s:g} s")


def _spin(poller: select.poll, spin_s: float) -> bool:
    """Ask until a socket is ready; False once that took `spin_s`. A sleeping core takes 20 to 100 us to come back."""
    until_s = time.monotonic() + spin_s
    while not poller.poll(0):
        if time.monotonic() > until_s:
            return False
    return True


def _flat(buffer: ReadableBuffer) -> memoryview:
    """The bytes of a C-contiguous buffer, not copied."""
    view = memoryview(cast("Readable", buffer))
    if not view.c_contiguous:
        raise ValueError("a message is a C-contiguous buffer; make this one contiguous first")
    return view.cast("B") if view.nbytes else memoryview(bytearray())
