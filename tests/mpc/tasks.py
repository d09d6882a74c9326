"""Tasks for party processes that only tests need."""

from __future__ import annotations

import os
import socket
import struct
import time
from pathlib import Path
from typing import Any

import torch

from mpc.parties import Parties, Party

_TCP_IP_ETHERNET_BYTES = 14 + 20 + 32  # an Ethernet, an IPv4 and a TCP header with time stamps


def count_both_ways(party: Party) -> tuple[Any, dict[str, Any]]:
    """A softmax and a product, counted by the ledger and by CrypTen."""
    import crypten
    import crypten.communicator as comm
    from crypten.config import cfg

    with crypten.no_grad(), cfg.temp_override({"communicator.verbose": True}):
        x = crypten.cryptensor(torch.rand(3, 5))
        comm.get().reset_communication_stats()
        party.ledger.start()
        (x * x).softmax(-1)
        log = party.ledger.stop()
        return log.traffic.online, comm.get().get_communication_stats()


def all_reduce_many(party: Party, elements: int, times: int) -> None:
    """The same collective several times."""
    import crypten.communicator as comm

    values = torch.ones(elements, dtype=torch.long)
    for _ in range(times):
        comm.get().all_reduce(values)


def payload_on_loopback(parties: Parties, elements: int, times: int = 20) -> float:
    """Bytes that one collective puts on the loopback interface, headers of packets left out.

    What idle traffic puts there in the same time is subtracted; gloo's own message headers remain inside.
    """
    arguments = [(elements, times)] * parties.scheme.parties
    parties.run(all_reduce_many, arguments)
    before, start_s = _loopback(), time.monotonic()
    parties.run(all_reduce_many, arguments)
    after, elapsed_s = _loopback(), time.monotonic() - start_s
    time.sleep(elapsed_s)
    idle = _loopback()
    sent, noise = (b - a for a, b in zip(before, after, strict=True)), (b - a for a, b in zip(after, idle, strict=True))
    net_bytes, net_packets = (s - n for s, n in zip(sent, noise, strict=True))
    return (net_bytes - net_packets * _TCP_IP_ETHERNET_BYTES) / times


def sent_by_sockets(party: Party, elements: int, times: int = 20) -> float:
    """Bytes that one collective makes this party's own TCP sockets send, as the kernel counts them."""
    all_reduce_many(party, elements, times)
    before = _tcp_bytes_sent()
    all_reduce_many(party, elements, times)
    return (_tcp_bytes_sent() - before) / times


def _tcp_bytes_sent() -> int:
    """First transmissions only: tcpi_bytes_sent less tcpi_bytes_retrans of every TCP socket of this process."""
    total = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            with socket.socket(fileno=os.dup(int(entry.name))) as peek:
                if peek.family in (socket.AF_INET, socket.AF_INET6) and peek.type == socket.SOCK_STREAM:
                    info = peek.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 216)
                    bytes_sent, bytes_retransmitted = struct.unpack_from("QQ", info, 200)
                    total += bytes_sent - bytes_retransmitted
        except OSError:
            continue  # not a socket, or gone since the folder was listed
    return total


def _loopback() -> tuple[int, int]:
    """Bytes and packets that the loopback interface has sent so far."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == "lo":
            fields = counters.split()
            return int(fields[8]), int(fields[9])
    raise RuntimeError(f"no loopback interface seen by process {os.getpid()}")


def sleep(party: Party, seconds: float) -> int:
    """Wait, then say who waited."""
    time.sleep(seconds)
    return party.number


def fail(party: Party, number: int) -> None:
    """Raise at one party while the others wait for it in a collective."""
    if party.number == number:
        raise ArithmeticError("this party gives up")
    all_reduce_many(party, 10, 1)


def environment(party: Party) -> tuple[int, int]:
    """Party number and torch threads."""
    return party.number, torch.get_num_threads()
