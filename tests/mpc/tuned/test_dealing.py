"""Dealing by a third process: what it sends to whom, what it learns, and that it changes no result."""

from __future__ import annotations

import copy
import dataclasses
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bench.secure_run import run_module
from mpc.ledger import Ledger
from mpc.parties import Parties, PartyError
from mpc.party import Party
from mpc.reading import shape_reading
from mpc.scheme import Roles, Scheme
from mpc.secure import ForwardResult
from mpc.traffic import Correlation
from mpc.transport import Link, PeerClosedError
from mpc.tuned import dealing, engine
from mpc.tuned.engine import DEALS
from mpc.tuned.forward import tuned_forward
from mpc.tuned.prg import KEY_BYTES
from mpc.tuned.sources import DealerSource, FirstPartySource, SecondPartySource, Source
from tests.mpc.workloads import Encoder

TTP = Scheme("tuned", transport="direct", dealer="ttp")
TFP = Scheme("tuned", transport="direct")
SHAPE = (2, 5, 8)
Links = list[dict[int, Any]]


class Recorder(Link):
    """A link that keeps what it received."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.received: list[bytes] = []

    def receive(self, tag: int, limit_bytes: int) -> bytearray:
        """As the link does."""
        payload = super().receive(tag, limit_bytes)
        self.received.append(bytes(payload))
        return payload


@contextmanager
def linked(count: int) -> Iterator[Links]:
    """Links by number of process and peer, over socket pairs; the highest number records."""
    links: Links = [{} for _ in range(count)]
    for low in range(count):
        for high in range(low + 1, count):
            ends = socket.socketpair()
            links[low][high] = Link(ends[0], high, 60.0)
            links[high][low] = (Recorder if high == 2 else Link)(ends[1], low, 60.0)
    try:
        yield links
    finally:
        for of_one in links:
            for link in of_one.values():
                link.close()


def model_and_input(seed: int = 3) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(seed)
    return Encoder().eval(), torch.randn(SHAPE)


def forward(links: Links, scheme: Scheme, seed: int = 3, repeats: int = 1) -> ForwardResult:
    """Party 0's result of both parties' forward, in two threads."""
    module, x = model_and_input(seed)

    def party(number: int) -> ForwardResult:
        ledger = Ledger(number, 2, "direct")
        mine = Party(number, 2, ledger, links[number])
        own = copy.deepcopy(module)
        return tuned_forward(own, None if number else x, SHAPE, scheme, Roles(0, 1, 0), mine, repeats)

    with ThreadPoolExecutor(2) as pool:
        zero, one = [pool.submit(party, number) for number in range(2)]
        one.result()
        return zero.result()


def served(seeds: tuple[int, ...], repeats: int = 1) -> tuple[list[ForwardResult], Links]:
    """One network after the other with a dealer in a third thread; the dealer leaves when the parties do."""
    with linked(3) as links, ThreadPoolExecutor(1) as pool:
        dealer = pool.submit(dealing.serve, links[2])
        results = [forward(links, TTP, seed, repeats) for seed in seeds]
        for number in range(2):
            links[number][2].close()
        dealer.result(30)
        return results, links


def program_of(module: nn.Module, scheme: Scheme) -> list[Correlation]:
    events = [event for _, of_one in shape_reading(module, SHAPE).events(scheme) for event in of_one]
    return [event for event in events if isinstance(event, Correlation)]


@pytest.mark.parametrize(("flush_bytes", "slice_bytes"), [(64, 1 << 27), (1 << 20, 1 << 27), (1 << 10, 1 << 12)])
def test_the_dealer_sends_the_promised_bytes_and_two_keys(
    flush_bytes: int, slice_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Party 0 gets its key and every correction; party 1 its key alone, and says nothing to the dealer."""
    monkeypatch.setattr(dealing, "_FLUSH_BYTES", flush_bytes)
    monkeypatch.setattr(engine, "SLICE_BYTES", slice_bytes)
    (result,), links = served((3,), repeats=2)
    module, x = model_and_input()
    promised = shape_reading(module, SHAPE).traffic(TTP).offline.bytes
    assert promised[1] == 0
    assert links[2][0].payload_bytes_sent == KEY_BYTES + 2 * promised[0]
    assert (links[2][1].payload_bytes_sent, links[2][1].messages_sent) == (KEY_BYTES, 1)
    assert links[1][2].messages_sent == 0
    assert [log.traffic.offline.bytes for log in result.logs] == [promised] * 2
    assert result.output is not None
    assert (result.output - module(x)).abs().max() < 4e-3


def test_who_deals_does_not_change_the_result() -> None:
    (by_third,), _ = served((3,))
    with linked(2) as links:
        by_first = forward(links, TFP)
    assert by_third.output is not None
    assert by_first.output is not None
    assert (by_third.output - by_first.output).abs().max() < 2e-3  # truncation rounds by the shares, which are other


def test_a_dealer_learns_the_program_and_nothing_of_inputs_or_weights() -> None:
    """All that ever reaches it is the same for other inputs and weights; it serves one network after the other."""
    results, links = served((3, 4))
    assert links[2][1].received == []
    one, two = links[2][0].received[:3], links[2][0].received[3:]
    assert one == two
    assert one[1:] == [b"deal", b"end!"]
    for seed, result in zip((3, 4), results, strict=True):
        module, x = model_and_input(seed)
        assert result.output is not None
        assert (result.output - module(x)).abs().max() < 4e-3


def test_keys_are_fresh_for_every_network_and_party(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two at the dealer and one that the parties share, for each network; one key stream for each of them."""
    drawn: list[bytes] = []
    system = os.urandom

    def urandom(count: int) -> bytes:
        drawn.append(system(count))
        return drawn[-1]

    monkeypatch.setattr(dealing.os, "urandom", urandom)
    served((3, 4))
    assert len(drawn) == len(set(drawn)) == 6


class Pieces:
    """A dealer's link that hands over a stream in messages of given lengths, in elements."""

    def __init__(self, stream: Any, lengths: list[int]) -> None:
        self._stream, self._lengths = stream, iter(lengths)

    def send(self, payload: Any, tag: int) -> None:
        """Nothing to send."""

    def receive(self, tag: int, limit_bytes: int) -> bytearray:
        """The next message; what is left where lengths have run out."""
        length = next(self._lengths, len(self._stream))
        taken, self._stream = self._stream[:length], self._stream[length:]
        assert taken.nbytes <= limit_bytes
        return bytearray(taken.tobytes())


@given(st.lists(st.integers(1, 40), max_size=30), st.lists(st.integers(0, 60), min_size=1, max_size=10))
@settings(max_examples=100)
def test_a_stream_may_come_in_messages_of_any_length(lengths: list[int], wanted: list[int]) -> None:
    stream = np.arange(sum(wanted) + 1)
    taking = dealing._Stream(Pieces(stream, lengths), 1 << 20)
    taken = [taking.take(count) for count in wanted]
    assert [len(part) for part in taken] == wanted
    assert (np.concatenate(taken) == stream[:-1]).all()


def leaves(material: Any) -> list[Any]:
    """All arrays of a correlation, in order."""
    if material is None or isinstance(material, np.ndarray):
        return [] if material is None else [material]
    if dataclasses.is_dataclass(material):
        material = [getattr(material, part.name) for part in dataclasses.fields(material)]
    return [leaf for part in material for leaf in leaves(part)]


@pytest.mark.parametrize("truncation", ["local", "dealer"])
def test_party_0_holds_the_same_whoever_deals(truncation: Any) -> None:
    """The first party as dealer, and as receiver of a third one's corrections, has one and the same share of all."""
    scheme = dataclasses.replace(TTP, truncation=truncation, range_check=True)
    keys = b"one key, 16 byte", b"other, 16 bytes."
    corrections: list[Any] = []
    third = DealerSource(*keys, corrections.append)

    def receive(count: int) -> Any:
        correction = corrections.pop(0).reshape(-1).view(np.int64)
        assert len(correction) == count
        return correction

    first = FirstPartySource(keys[0], receive)
    sources: list[Source] = [DealerSource(*keys), third, first, SecondPartySource(keys[1])]
    program = program_of(model_and_input()[0], scheme)
    for shape in dealing.fixed_shapes(program):
        masks = [source.fix(shape).mask for source in sources]
        assert (masks[0].share == masks[2].share).all()
        assert (masks[1].value == masks[2].share + masks[3].share).all()
    for wanted in program:
        dealt_by = [DEALS[wanted.kind](source, *wanted.sizes) for source in sources]
        own, _, received, _ = map(leaves, dealt_by)
        assert not corrections
        assert all((a == b).all() for a, b in zip(own, received, strict=True))
    assert {source.dealt_bytes for source in sources} == {sum(wanted.dealer_bytes for wanted in program)}


def test_a_dealer_that_hangs_up_is_named() -> None:
    program = program_of(model_and_input()[0], TTP)
    with linked(3) as links, ThreadPoolExecutor(1) as pool:

        def leave_after_the_key() -> None:
            links[2][0].receive(dealing._PROGRAM_TAG, 1 << 28)
            links[2][0].send(bytes(KEY_BYTES), dealing._KEY_TAG)
            links[2][0].close()

        leaving = pool.submit(leave_after_the_key)
        source = dealing.Dealings(0, links[0], TTP, program).source
        leaving.result(30)
        with pytest.raises(PeerClosedError, match="party 2"):
            source.share_ring((3,), lambda: np.zeros(3, np.int64))


@pytest.mark.parties
def test_a_third_process_deals_and_its_death_is_reported() -> None:
    module, x = model_and_input()
    with Parties(TTP, deadline_s=60) as parties:
        run = run_module(parties, module, x, repeats=2)
        assert (run.output - module(x)).abs().max() < 4e-3
        assert run.traffic == shape_reading(module, SHAPE).traffic(TTP)
        os.kill(parties.process_ids[2], signal.SIGKILL)
        with pytest.raises(PartyError, match="SIGKILL") as reported:
            run_module(parties, module, x)
    assert reported.value.party == 2
    assert not parties.running
