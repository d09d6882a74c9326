"""Two engines in two threads of one process: for the arithmetic of protocols, where processes would add nothing."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import Queue
from typing import Any

import numpy as np

from mpc.ledger import Ledger, MessageLog
from mpc.scheme import Scheme
from mpc.traffic import Correlation, Event
from mpc.tuned.engine import Engine
from mpc.tuned.sources import DealerSource, SecondPartySource

SCHEME = Scheme("tuned", transport="direct")
KEYS = b"first key, 16 B.", b"second key, 16 B"


@dataclass
class Wire:
    """One end of an in-process exchange that remembers what crossed it."""

    outbox: Queue[Any]
    inbox: Queue[Any]
    seen: list[Any] = field(default_factory=list)

    def exchange(self, outgoing: Any, incoming: Any, tag: int) -> None:
        """Hand over a copy, take the other's."""
        self.outbox.put((tag, outgoing.copy()))
        other_tag, theirs = self.inbox.get(timeout=60)
        assert other_tag == tag
        incoming[:] = theirs
        self.seen.append(theirs.copy())


@dataclass
class Outcome:
    """What both parties hold afterwards, their logs, and what party 0 received."""

    shares: list[Any]
    logs: list[MessageLog]
    received: list[Any]

    @property
    def opened(self) -> Any:
        """The ring elements behind the shares."""
        return self.shares[0] + self.shares[1]


def shared(values: Any, seed: int = 0) -> tuple[Any, Any]:
    """Additive shares of ring elements."""
    first = np.random.default_rng(seed).integers(-(2**63), 2**63 - 1, np.shape(values), dtype=np.int64, endpoint=True)
    return first, np.asarray(values, np.int64) - first


def encoded(values: Any, fraction_bits: int = 16) -> Any:
    """Real numbers as ring elements."""
    return np.round(np.asarray(values, float) * 2**fraction_bits).astype(np.int64)


def run_both(
    function: Callable[..., Any],
    events: list[Event],
    *inputs: tuple[Any, Any],
    scheme: Scheme = SCHEME,
    keys: tuple[bytes, bytes] = KEYS,
    check: bool = True,
) -> Outcome:
    """Run `function(engine, *shares)` at both parties, stocked with the correlations of `events`.

    Asserts that what was dealt and sent is what `events` promise, and that nothing is left over.
    """
    one, two = Queue(), Queue()
    wires = Wire(one, two), Wire(two, one)
    sources = DealerSource(*keys), SecondPartySource(keys[1])

    def party(number: int) -> tuple[Any, MessageLog]:
        ledger = Ledger(number, 2, "direct")
        engine = Engine(number, wires[number], scheme, ledger, sources[number])
        ledger.start()
        engine.stock([event for event in events if isinstance(event, Correlation)])
        result = function(engine, *[pair[number] for pair in inputs])
        log = ledger.stop()
        assert not engine.left
        return result, log

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(party, number) for number in range(2)]
        results = [future.result() for future in futures]
    logs = [log for _, log in results]
    for log in logs if check else []:
        seen = [entry.event for entry in log.entries]
        assert [e for e in seen if isinstance(e, Correlation)] == [e for e in events if isinstance(e, Correlation)]
        assert [e for e in seen if not isinstance(e, Correlation)] == [
            e for e in events if not isinstance(e, Correlation)
        ]
    return Outcome([share for share, _ in results], logs, wires[0].seen)
