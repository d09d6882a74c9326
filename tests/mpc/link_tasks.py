"""Tasks for party processes that are joined by direct links."""

from __future__ import annotations

import fcntl
import struct
import sys
import termios
import time
from pathlib import Path

import torch

from mpc.joining import HELLO_BYTES
from mpc.party import Party
from mpc.transport import HEADER_BYTES, Link
from tests.mpc.tasks import _tcp_bytes_sent


def all_reduce_lists(party: Party, elements: tuple[int, ...]) -> list[torch.Tensor]:
    """One batched sum of (party + 1) and one batched xor, of tensors of these lengths."""
    import crypten.communicator as comm
    from torch.distributed import ReduceOp

    values = [torch.full((1, length), party.number + 1, dtype=torch.long) for length in elements]
    sums: list[torch.Tensor] = comm.get().all_reduce(values, batched=True)
    return [*sums, *comm.get().all_reduce(values, op=ReduceOp.BXOR, batched=True)]


def other_collectives(party: Party) -> dict[str, object]:
    """Every collective but all_reduce, on tensors that hold the party's number."""
    import crypten.communicator as comm

    own = torch.tensor([party.number, 10])
    pieces = [torch.tensor([number, party.number]) for number in range(party.count)]
    world = comm.get()
    world.barrier()
    if party.number == 0:
        world.send(own + 5, 1)
    return {
        "received": world.recv(own, 0) if party.number == 1 else None,
        "gather": world.gather(own, 1),
        "all_gather": world.all_gather(own),
        "reduce": world.reduce(own, 1),
        "scatter": world.scatter(pieces if party.number == 1 else None, 1, size=(2,)),
        "broadcast": world.broadcast(own.clone(), 1),
    }


def sent_and_counted(party: Party, elements: int) -> tuple[int, int]:
    """Bytes that an all_reduce puts on the wire, as the kernel counts them and as the links do with headers."""
    before, counted = _kernel_count(party), _counted(party)
    all_reduce_lists(party, (elements, 3))
    return _kernel_count(party) - before, _counted(party) - counted


def sent_in_all(party: Party) -> tuple[int, int]:
    """All bytes of this process's sockets, by the kernel, and what the links say of them with hello and headers."""
    for link in party.links.values():
        outgoing, incoming = bytearray(1000 * (1 + party.number)), bytearray(1000 * (1 + link.peer))
        link.exchange(outgoing, incoming, 7)
    return _kernel_count(party), _counted(party) + HELLO_BYTES * len(party.links)


def _kernel_count(party: Party) -> int:
    """Bytes sent once all that the links' sockets took has been acknowledged: the kernel counts what left them."""
    until_s = time.monotonic() + 20
    while any(_unacknowledged_bytes(link) for link in party.links.values()):
        if time.monotonic() > until_s:
            raise TimeoutError("a socket keeps what it took")
        time.sleep(0.001)
    return _tcp_bytes_sent()


def _unacknowledged_bytes(link: Link) -> int:
    (count,) = struct.unpack("i", fcntl.ioctl(link, termios.TIOCOUTQ, bytes(4)))
    return int(count)


def _counted(party: Party) -> int:
    links = party.links.values()
    return sum(link.payload_bytes_sent + HEADER_BYTES * link.messages_sent for link in links)


def exchange_or_fail(party: Party, number: int) -> None:
    """Raise at one party while the others wait for its message."""
    if party.number == number:
        raise ArithmeticError("this party gives up")
    for link in party.links.values():
        link.exchange(b"12345678", bytearray(8), 1)


def out_of_step(party: Party) -> None:
    """Two parties that send different things."""
    for link in party.links.values():
        link.exchange(bytearray(8), bytearray(8), tag=party.number)


def wait_for_ever(party: Party) -> None:
    """Wait for messages that nobody sends."""
    for link in party.links.values():
        link.receive_into(bytearray(8), 1)


def surroundings(_: Party) -> tuple[str, bool]:
    """The network namespace of this process, and whether it has imported CrypTen."""
    return str(Path("/proc/self/ns/net").readlink()), "crypten" in sys.modules


def peers(party: Party) -> list[int]:
    """The numbers that this party has links to."""
    return sorted(party.links)


def header_bytes(party: Party) -> dict[int, int]:
    """How long the headers on each link of a party are."""
    return {peer: link.header_bytes for peer, link in party.links.items()}
