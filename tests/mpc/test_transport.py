from __future__ import annotations

import itertools
import os
import random
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mpc import joining, transport
from mpc.joining import Tls, connect_all, demand_tls
from mpc.transport import HEADER_BYTES, Link, PeerClosedError, TransportError, exchange_all, tag_of
from tests.mpc.certificates import Authority

LOCAL = ("127.0.0.1",) * 3
MB = 1 << 20
Join = Callable[..., list[dict[int, Link]]]


def both(*calls: Callable[[], Any]) -> list[Any]:
    """Results of calls that run at the same time."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [running.result() for running in [pool.submit(call) for call in calls]]


@pytest.fixture
def join(tmp_path: Path) -> Iterator[Join]:
    folders = (tmp_path / f"join-{index}" for index in itertools.count())
    with ExitStack() as stack:

        def joined(count: int = 2, tls: tuple[Tls, ...] = (), deadline_s: float = 20.0) -> list[dict[int, Link]]:
            folder = next(folders)
            folder.mkdir()

            def one(number: int) -> dict[int, Link]:
                links = connect_all(number, count, LOCAL, folder, tls[number] if tls else None, deadline_s)
                for link in links.values():
                    stack.enter_context(link)
                return links

            return both(*(lambda number=number: one(number) for number in range(count)))

        yield joined


@pytest.fixture
def pair(join: Join) -> tuple[Link, Link]:
    zero, one = join()
    return zero[1], one[0]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


def swap(a: Link, b: Link, sizes: tuple[int, int], tag: int = 5) -> None:
    """Exchange random messages of two sizes and demand that each arrives as it was sent."""
    outgoing = [np.frombuffer(random.Random(size).randbytes(size), dtype=np.uint8) for size in sizes]
    incoming = [np.zeros(size, dtype=np.uint8) for size in reversed(sizes)]
    both(*(lambda i=i, link=link: link.exchange(outgoing[i], incoming[i], tag) for i, link in enumerate((a, b))))
    assert all(np.array_equal(sent, seen) for sent, seen in zip(outgoing, reversed(incoming), strict=True))


def test_messages_of_all_sizes_cross_in_both_directions(pair: tuple[Link, Link]) -> None:
    pick = random.Random(0)
    sizes = [(1, 1), (0, 0), (0, 3), (16 * MB, 16 * MB), (1, 16 * MB)]
    sizes += [(int(2 ** pick.uniform(0, 24)), int(2 ** pick.uniform(0, 24))) for _ in range(20)]
    for size in sizes:
        swap(*pair, size)
    for link, sent in zip(pair, zip(*sizes, strict=True), strict=True):
        assert (link.payload_bytes_sent, link.messages_sent) == (sum(sent), len(sizes))


def test_64_mb_each_way_do_not_lock_up(pair: tuple[Link, Link]) -> None:
    swap(*pair, (64 * MB, 64 * MB))


def test_one_way_messages_arrive_in_order(pair: tuple[Link, Link]) -> None:
    a, b = pair
    for number in range(50):
        a.send(b"%d" % number, tag=number)
    buffer = bytearray(1)
    b.receive_into(buffer, tag=0)
    assert buffer == b"0"
    assert [bytes(b.receive(number, limit_bytes=8)) for number in range(1, 50)] == [b"%d" % n for n in range(1, 50)]
    a.send(b"", tag=1)
    assert b.receive(1, limit_bytes=0) == b""


def test_a_link_that_spins_falls_asleep_after_a_while_and_keeps_its_deadline(
    join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    zero, one = join(deadline_s=0.2)
    link, peer = zero[1], one[0]
    slept: list[float] = []
    real_poll = select.poll

    class Poller:
        def __init__(self) -> None:
            self._poller = real_poll()
            self.register = self._poller.register

        def poll(self, timeout_ms: float) -> list[tuple[int, int]]:
            if timeout_ms:
                slept.append(timeout_ms)
            return self._poller.poll(timeout_ms)

    monkeypatch.setattr(transport.select, "poll", Poller)
    link.spin_s = 10.0
    both(lambda: (time.sleep(0.05), peer.send(b"x", 1)), lambda: link.receive(1, limit_bytes=1))
    assert not slept  # it was there before the end of the spin
    link.spin_s = 0.01
    with pytest.raises(TransportError, match=r"party 1 was silent for 0.2 s"):
        link.receive(1, limit_bytes=1)
    assert slept == [200.0]


def test_arrays_of_any_shape_and_type_are_messages_but_only_contiguous_ones(pair: tuple[Link, Link]) -> None:
    words = np.arange(12, dtype=np.int64).reshape(3, 4)
    seen = np.zeros((4, 3), dtype=np.int64)
    pair[0].send(words, 1)
    pair[1].receive_into(seen, 1)
    assert seen.ravel().tolist() == list(range(12))
    with pytest.raises(ValueError, match="C-contiguous"):
        pair[0].send(words.T, 1)
    with pytest.raises(ValueError, match="read-only"):
        pair[0].receive_into(b"1234", 1)


def test_three_processes_exchange_at_once(join: Join) -> None:
    worlds = join(count=3)
    seen = [{peer: bytearray(2 * MB) for peer in links} for links in worlds]

    def everyone(number: int) -> None:
        payload = bytes([number]) * 2 * MB
        exchange_all([(link, payload, seen[number][peer]) for peer, link in worlds[number].items()], 9)

    both(*(lambda number=number: everyone(number) for number in range(3)))
    assert all(seen[i][peer] == bytes([peer]) * 2 * MB for i in range(3) for peer in seen[i])


@pytest.mark.parametrize(
    ("send", "what"),
    [
        (lambda link: link.send(bytes(8), 6), "tag 0x00000005 and 8 bytes, got message 0 with tag 0x00000006 and 8 b"),
        (lambda link: link.send(bytes(9), 5), "tag 0x00000005 and 8 bytes, got message 0 with tag 0x00000005 and 9 b"),
        (lambda link: link.send(b"", 5), "and 8 bytes, got message 0 with tag 0x00000005 and 0 bytes"),
    ],
    ids=["tag", "longer", "shorter"],
)
def test_a_message_that_is_not_the_expected_one_is_refused(
    pair: tuple[Link, Link], send: Callable[[Link], None], what: str
) -> None:
    send(pair[0])
    with pytest.raises(TransportError, match=f"^party 0 is out of step: expected message 0 with .*{what}"):
        pair[1].receive_into(bytearray(8), 5)


def test_a_lost_or_repeated_message_is_refused(pair: tuple[Link, Link]) -> None:
    swap(*pair, (8, 8))
    pair[0].messages_sent -= 1
    pair[0].send(bytes(8), 5)
    with pytest.raises(TransportError, match=r"expected message 1 with .* got message 0 with"):
        pair[1].receive_into(bytearray(8), 5)


def test_a_length_is_not_believed_beyond_the_limit(pair: tuple[Link, Link]) -> None:
    pair[0].send(bytes(1001), 5)
    with pytest.raises(TransportError, match=r"at most 1000 bytes, got .* 1001 bytes"):
        pair[1].receive(5, limit_bytes=1000)


def test_what_is_no_message_is_refused(pair: tuple[Link, Link]) -> None:
    pair[0].write([memoryview(b"GET / HTTP/1.1\r\nHost: there\r\n\r\n")])
    with pytest.raises(TransportError, match="party 0 sent something that is no message"):
        pair[1].receive(5, limit_bytes=1000)


def test_a_silent_peer_meets_the_deadline_and_is_named(join: Join) -> None:
    links = join(deadline_s=0.2)
    started_s = time.monotonic()
    with pytest.raises(TransportError, match=r"party 1 was silent for 0\.2 s"):
        links[0][1].exchange(b"1", bytearray(1), 5)
    with pytest.raises(TransportError, match=r"party 0 was silent for 0\.2 s"):
        links[1][0].send(bytes(256 * MB), 5)  # a peer that does not read is silent as well
    assert time.monotonic() - started_s < 10


def test_a_peer_that_has_gone_is_named(pair: tuple[Link, Link]) -> None:
    threading.Timer(0.1, pair[1].close).start()
    with pytest.raises(PeerClosedError, match="party 1 closed its connection"):
        pair[0].receive_into(bytearray(8), 5)
    with pytest.raises(PeerClosedError, match="party 1 closed its connection"):
        pair[0].send(bytes(64 * MB), 5)


def test_tags_hold_the_operation_and_its_shapes() -> None:
    assert tag_of("open", (2, 3)) == tag_of("open", torch.Size([2, 3]))
    assert (
        len({tag_of("open", (2, 3)), tag_of("open", (3, 2)), tag_of("open", (2,), (3,)), tag_of("shut", (2, 3))}) == 4
    )


def _stranger(folder: Path, hello: bytes) -> bytes:
    """What a process is told that says `hello` at the door of process 0."""
    port = int((folder / "port-0").read_text().split()[0])
    with socket.create_connection(("127.0.0.1", port)) as door:
        door.settimeout(20)
        door.sendall(hello)
        try:
            return door.recv(100)
        except ConnectionResetError:
            return b""


def test_strangers_are_refused_and_the_others_still_join(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "_HELLO_S", 0.3)

    def visitors() -> dict[int, Link]:
        while not (tmp_path / "port-0").exists():
            time.sleep(0.01)
        token = bytes.fromhex((tmp_path / "port-0").read_text().split()[1])
        hello = joining._HELLO
        for said in (
            b"GET / HTTP/1.1\r\n\r\n" + bytes(40),
            hello.pack(joining._PROTOCOL, 1, 1, os.urandom(32)),  # does not know the token
            hello.pack(joining._PROTOCOL, 2, 1, token),  # another version
            hello.pack(joining._PROTOCOL, 1, 7, token),  # no such party
            b"",  # says nothing
        ):
            assert _stranger(tmp_path, said) == b""
        return connect_all(1, 2, LOCAL, tmp_path, deadline_s=20)

    zero, one = both(lambda: connect_all(0, 2, LOCAL, tmp_path, deadline_s=20), visitors)
    with zero[1], one[0]:
        swap(zero[1], one[0], (100, 200))


def test_a_process_that_does_not_come_is_named(tmp_path: Path) -> None:
    with pytest.raises(TransportError, match="party 1 did not join in time"):
        connect_all(0, 2, LOCAL, tmp_path, deadline_s=0.2)
    (tmp_path / "port-0").unlink()
    with pytest.raises(TransportError, match="party 0 did not join in time"):
        connect_all(1, 2, LOCAL, tmp_path, deadline_s=0.2)


def test_tls_carries_messages_of_all_sizes(join: Join, authority: Authority) -> None:
    zero, one = join(tls=(authority.tls("party-0"), authority.tls("party-1")))
    for sizes in ((1, 1), (0, 5), (2_000, 2_000), (65_512, 65_513), (3 * MB, 5 * MB + 1), (24 * MB, 1)):
        swap(zero[1], one[0], sizes)
    assert zero[1].payload_bytes_sent == 1 + 2_000 + 65_512 + 27 * MB
    assert zero[1].messages_sent == 6
    one[0].close()
    with pytest.raises(PeerClosedError, match="party 1 closed"):
        zero[1].receive(5, limit_bytes=10)


def test_tls_hides_the_payload(join: Join, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    zero, one = join(tls=(authority.tls("party-0"), authority.tls("party-1")))
    assert zero[1]._tls and one[0]._tls
    sniffed = socket.socket(fileno=os.dup(one[0].fileno()))
    with sniffed:
        zero[1].send(b"a secret share" * 10, 5)
        sniffed.settimeout(5)
        seen = sniffed.recv(10_000, socket.MSG_PEEK)
    assert len(seen) > 140 + HEADER_BYTES and b"a secret share" not in seen


@pytest.mark.parametrize("wrong", ["other_authority", "other_party", "server_not_named", "plain"])
def test_a_wrong_certificate_is_refused(tmp_path: Path, authority: Authority, wrong: str) -> None:
    zero = authority.tls("party-2" if wrong == "server_not_named" else "party-0")
    one: Tls | None = authority.tls("party-1")
    if wrong == "other_authority":
        foreign = Authority(tmp_path / "foreign").tls("party-1")
        one = Tls(foreign.certificate, foreign.key, zero.authority)
    if wrong == "other_party":
        one = authority.tls("party-2")
    if wrong == "plain":
        one = None
    messages = []

    def attempt(number: int, tls: Tls | None) -> None:
        with pytest.raises(TransportError) as refusal:
            connect_all(number, 2, LOCAL, tmp_path, tls, deadline_s=2)
        messages.append(str(refusal.value))

    both(lambda: attempt(0, zero), lambda: attempt(1, one))
    assert any("party 1 did not join in time; a connection was refused" in message for message in messages)


def test_off_loopback_a_link_is_encrypted_or_refused(tmp_path: Path, authority: Authority) -> None:
    for host in ("192.0.2.1", "0.0.0.0", "::"):
        with pytest.raises(ValueError, match="not a loopback address: give TLS certificates"):
            connect_all(0, 2, (host, "127.0.0.1"), tmp_path)
        demand_tls(host, authority.tls("party-0"))
        demand_tls(host, None, same_machine=True)
    with pytest.raises(ValueError, match="not a loopback address"):
        connect_all(0, 2, ("127.0.0.1", "192.0.2.1"), tmp_path)
    demand_tls("127.0.0.9", None)
    demand_tls("::1", None)
    assert not list(tmp_path.glob("port-*"))
