"""Links that are an emulated network: what they hold is due, what they carry is unchanged."""

from __future__ import annotations

import fcntl
import math
import os
import socket
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mpc.joining import connect_all
from mpc.network import LOOPBACK, NetworkProfile, Wire, network
from mpc.parties import Parties
from mpc.scheme import Scheme
from mpc.transport import HEADER_BYTES, Link, PeerClosedError, TransportError, exchange_all
from tests.mpc import link_tasks
from tests.mpc.certificates import Authority
from tests.mpc.test_transport import LOCAL, both

DELAY_S = 0.03
FAR = NetworkProfile("far", DELAY_S, math.inf, "delay alone")
SLOW = NetworkProfile("slow", 0.0, 1e6, "rate alone")


def pair_on(profile: NetworkProfile | None, deadline_s: float = 20.0) -> tuple[Link, Link]:
    zero, one = socket.socketpair()
    return Link(zero, 1, deadline_s, profile), Link(one, 0, deadline_s, profile)


@pytest.fixture
def far() -> Iterator[tuple[Link, Link]]:
    zero, one = pair_on(FAR)
    with zero, one:
        yield zero, one


def test_an_exchange_takes_at_least_one_delay_and_a_round_trip_two(far: tuple[Link, Link]) -> None:
    zero, one = far
    seen = bytearray(3), bytearray(3)
    start_s = time.monotonic()
    both(lambda: zero.exchange(b"abc", seen[0], 1), lambda: one.exchange(b"xyz", seen[1], 1))
    assert time.monotonic() - start_s >= DELAY_S
    assert seen == (b"xyz", b"abc")
    start_s = time.monotonic()

    def echo() -> None:
        one.send(one.receive(2, 10), 2)

    both(lambda: zero.send(b"there", 2), echo)
    assert zero.receive(2, 10) == b"there"
    assert time.monotonic() - start_s >= 2 * DELAY_S


def test_a_message_that_was_sent_long_ago_is_not_held(far: tuple[Link, Link], monkeypatch: pytest.MonkeyPatch) -> None:
    zero, one = far
    zero.send(b"early", 1)
    time.sleep(2 * DELAY_S)
    monkeypatch.setattr("mpc.transport.time.sleep", lambda _: pytest.fail("the message was held"))
    one.receive_into(bytearray(5), 1)


def test_bytes_take_their_time_at_the_rate() -> None:
    zero, one = pair_on(SLOW)
    with zero, one:
        start_s = time.monotonic()
        both(lambda: zero.send(bytes(50_000), 1), lambda: one.receive_into(bytearray(50_000), 1))
        assert time.monotonic() - start_s >= 0.05


def unread(link: Link) -> int:
    """Bytes that have arrived and were not read."""
    return int.from_bytes(fcntl.ioctl(link.fileno(), termios.FIONREAD, bytes(4)), sys.byteorder)


@pytest.mark.parametrize(("size", "held"), [(16 << 10, 0), (16_385, 16_385), (50_000, 50_000), (100_000, 64 << 10)])
def test_the_last_piece_of_a_message_is_read_when_it_is_due(size: int, held: int) -> None:
    zero, one = pair_on(NetworkProfile("farther", 0.5, math.inf, ""))
    with zero, one:
        seen = bytearray(size)

        def later() -> int:
            time.sleep(0.25)
            return unread(one)

        _, _, waiting = both(lambda: zero.send(b"m" * size, 1), lambda: one.receive_into(seen, 1), later)
        assert waiting == held
        assert seen == b"m" * size and unread(one) == 0


@pytest.mark.parametrize("due_s", [math.nan, math.inf])
def test_a_due_time_that_is_none_is_refused(due_s: float, far: tuple[Link, Link]) -> None:
    zero, one = far
    flow = SimpleNamespace(due_s=lambda *_: due_s)
    zero._flow = flow  # a peer out of its mind
    zero.send(b"message", 1)
    with pytest.raises(TransportError, match="party 0 sent no time that a message can be due"):
        one.receive(1, 10)


def test_small_socket_buffers_hold_nobody_up() -> None:
    zero, one = pair_on(FAR)
    with zero, one:
        for link in (zero, one):
            with socket.socket(fileno=os.dup(link.fileno())) as same:
                same.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        outgoing, seen = bytes(range(250)) * 2000, (bytearray(500_000), bytearray(500_000))
        both(lambda: zero.exchange(outgoing, seen[0], 1), lambda: one.exchange(outgoing, seen[1], 1))
        assert seen == (outgoing, outgoing)


def test_payload_counts_are_those_of_a_plain_link(far: tuple[Link, Link]) -> None:
    plain = pair_on(None)
    with plain[0], plain[1]:
        counts = []
        for zero, one in (plain, far):
            both(lambda z=zero: z.send(bytes(1000), 1), lambda o=one: o.receive_into(bytearray(1000), 1))
            counts.append((zero.payload_bytes_sent, zero.messages_sent, one.messages_received))
        assert counts == [(1000, 1, 1)] * 2
        assert (plain[0].header_bytes, far[0].header_bytes) == (HEADER_BYTES, HEADER_BYTES + 8)


def test_a_delay_longer_than_the_deadline_is_no_silence_but_silence_is() -> None:
    zero, one = pair_on(NetworkProfile("farther", 1.0, math.inf, ""), deadline_s=0.5)
    with zero, one:
        seen = bytearray(1), bytearray(1)
        both(lambda: zero.exchange(b"a", seen[0], 1), lambda: one.exchange(b"b", seen[1], 1))
        assert seen == (b"b", b"a")
        with pytest.raises(TransportError, match="party 1 was silent"):
            zero.receive(1, 10)


def test_a_peer_that_goes_is_noticed_once_its_last_message_is_taken(far: tuple[Link, Link]) -> None:
    zero, one = far
    one.send(b"last", 1)
    one.close()
    assert zero.receive(1, 10) == b"last"
    threading.Timer(0.05, one.close).start()
    with pytest.raises(PeerClosedError, match="party 1 closed"):
        zero.receive(1, 10)


def test_three_processes_wait_for_the_last_of_their_messages_over_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    tls = [authority.tls(f"party-{number}") for number in range(3)]

    def joined(number: int) -> dict[int, Link]:
        return connect_all(number, 3, LOCAL, tmp_path, tls[number], 20.0, emulated=FAR)

    worlds: list[dict[int, Link]] = both(*(lambda number=number: joined(number) for number in range(3)))
    seen = [{peer: bytearray(4) for peer in links} for links in worlds]
    start_s = time.monotonic()

    def everyone(number: int) -> None:
        exchange_all([(link, b"%04d" % number, seen[number][peer]) for peer, link in worlds[number].items()], 9)

    both(*(lambda number=number: everyone(number) for number in range(3)))
    assert time.monotonic() - start_s >= DELAY_S
    assert all(seen[i][peer] == b"%04d" % peer for i in range(3) for peer in seen[i])
    for links in worlds:
        for link in links.values():
            link.close()


def test_a_wire_says_what_records_call_it() -> None:
    wan = network("cheetah-wan")
    assert Wire().mode == "measured" and Wire().stamped is None
    assert Wire(profile=wan, emulation="transport").mode == "emulated-transport"
    assert Wire(profile=wan, emulation="transport").stamped == wan
    assert Wire(profile=wan).mode == "emulated-link" and Wire(profile=wan).stamped is None


def test_gloo_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"hide their hops.*use transport direct, or a shaped link$") as refusal:
        Parties(Scheme(), wire=Wire(profile=FAR, emulation="transport"))
    assert "\n" not in str(refusal.value)


@pytest.mark.parties
@pytest.mark.parametrize("scheme", [Scheme("tuned", transport="direct"), Scheme(parties=3, transport="direct")])
def test_traffic_on_an_emulated_network_is_that_of_loopback_and_every_hop_takes_its_delay(scheme: Scheme) -> None:
    from bench.attention import AttentionShape, attention_layer, unit_input
    from bench.running import parties_on, ranges_for, run_in_turn

    shape = AttentionShape(tokens=5, dim=8, heads=2)
    layer, x = attention_layer("scaling", shape), unit_input(shape)
    ranges = ranges_for([scheme], layer, x)
    runs = []
    for place in (LOOPBACK, NetworkProfile("near", 0.004, 1e9, "")):
        with parties_on([scheme], place, emulate="transport") as running:
            runs.append(run_in_turn(running, layer, x, [scheme], None, 1, ranges)[scheme])
    assert runs[0].traffic == runs[1].traffic
    assert min(runs[1].online_s) >= max(runs[1].traffic.online.hops) * 0.004


@pytest.mark.parties
def test_a_third_party_dealer_is_on_the_emulated_network_too() -> None:
    scheme = Scheme("tuned", transport="direct", dealer="ttp")
    with Parties(scheme, wire=Wire(profile=FAR, emulation="transport")) as parties:
        headers: list[Any] = parties.run(link_tasks.header_bytes, [()] * 2)
    assert headers == [{1: HEADER_BYTES + 8, 2: HEADER_BYTES + 8}, {0: HEADER_BYTES + 8, 2: HEADER_BYTES + 8}]
