"""Real party processes on this machine, joined by gloo or by direct links; the first failure ends them all.

`Parties` is a resource: processes start once and take tasks until it is closed. A task is a module-level function that
every party calls with its own arguments and a `Party` that says which one it is.
"""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Self

from mpc.joining import Tls, demand_tls
from mpc.network import Wire
from mpc.party import Party as Party
from mpc.party import Place, party_main
from mpc.scheme import Scheme
from mpc.transport import PeerClosedError

GLOO_HIDES_HOPS = (
    "gloo's collectives hide their hops, so that no stamps of ours can emulate a network under them: "
    "use transport direct, or a shaped link"
)
_START_DEADLINE_S = 120.0
_GRACE_S = 0.5  # after the first sign of failure, how long to look for its cause at the other parties
_PEER_CLOSED = f"{PeerClosedError.__module__}.{PeerClosedError.__qualname__}:"


class PartyError(RuntimeError):
    """A party failed: the message holds its number and its own traceback, `party` the number."""

    def __init__(self, party: int | None, reason: str) -> None:
        super().__init__(f"party {party}: {reason}" if party is not None else reason)
        self.party = party


class Parties:
    """Party processes for schemes that agree in name, parties, dealer and transport; two over gloo and TFP by default.

    Use as a context manager. `wire` says where the processes stand (default: all on loopback) and what network is
    emulated between them, `tls` holds the files of each process where direct links are to be encrypted. Raises
    PartyError where a party fails, dies or is silent beyond the deadline; all processes are gone by then.
    """

    def __init__(
        self,
        scheme: Scheme | None = None,
        threads: int = 1,
        deadline_s: float = 3600.0,
        wire: Wire | None = None,
        tls: tuple[Tls, ...] = (),
    ) -> None:
        self.scheme = scheme or Scheme()
        self.deadline_s = deadline_s
        self._threads = threads
        self._wire = wire
        self._tls = tls
        self._processes_wanted = self.scheme.parties + (self.scheme.dealer == "ttp")
        self._check_places()
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def _check_places(self) -> None:
        wire = self._wire or Wire()
        for what, given in (("hosts", wire.hosts), ("namespaces", wire.namespaces), ("TLS files", self._tls)):
            if (given or what == "hosts") and len(given) < self._processes_wanted:
                raise ValueError(f"{what} for {len(given)} processes, but {self.scheme.label} has more")
        if self._tls and self.scheme.transport != "direct":
            raise ValueError("gloo has no TLS here; use transport direct")
        if wire.stamped is not None and self.scheme.transport != "direct":
            raise ValueError(GLOO_HIDES_HOPS)
        if self.scheme.transport == "direct":
            for number in range(self._processes_wanted):
                demand_tls(wire.hosts[number], self._tls[number] if self._tls else None, bool(wire.namespaces))

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._kill()
            raise
        return self

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory(prefix="mpc-pareto-")
        folder = Path(self._folder.name)
        for number in range(self._processes_wanted):
            ours, theirs = context.Pipe()
            tls = self._tls[number] if self._tls else None
            place = Place(number, self.scheme, self._threads, folder, self._wire, tls, self.deadline_s)
            process = context.Process(target=party_main, args=(place, theirs), name=f"party-{number}", daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)
        self._collect(_START_DEADLINE_S, self.scheme.parties)

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def threads(self) -> int:
        """CPU threads of each process."""
        return self._threads

    @property
    def running(self) -> bool:
        """Whether the parties can take a task; after a failure they cannot."""
        return bool(self._processes)

    @property
    def process_ids(self) -> tuple[int, ...]:
        """Operating system process numbers, by party (a third-party dealer last)."""
        return tuple(process.pid for process in self._processes)

    def run(
        self, task: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], deadline_s: float | None = None
    ) -> list[Any]:
        """Call `task(party, *arguments[i])` at every party i and return what each gave, in order."""
        if len(arguments) != self.scheme.parties:
            raise ValueError(f"{len(arguments)} sets of arguments for {self.scheme.parties} parties")
        if not self.running:
            raise ValueError("the parties are not running; use `with Parties(scheme) as parties:`")
        payloads = [pickle.dumps((task, given)) for given in arguments]
        for pipe, payload in zip(self._pipes, payloads, strict=False):
            try:
                pipe.send_bytes(payload)
            except OSError:
                break  # that party is gone; collecting says which one and why
        return self._collect(deadline_s or self.deadline_s, self.scheme.parties)

    def close(self) -> None:
        """End all processes; safe to call twice."""
        for pipe in self._pipes:
            pipe.close()  # a party that waits for a task sees the end of its pipe and leaves
        until_s = time.monotonic() + 5.0
        for process in self._processes:
            process.join(max(0.0, until_s - time.monotonic()))
        self._kill()

    def _kill(self) -> None:
        for process in self._processes:
            if process.is_alive():
                process.kill()
            process.join()
        for pipe in self._pipes:
            pipe.close()
        self._processes, self._pipes = [], []
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _collect(self, deadline_s: float, expected: int) -> list[Any]:
        results: dict[int, Any] = {}
        until_s = time.monotonic() + deadline_s
        while len(results) < expected:
            # A dealer answers nothing; what comes out of its pipe is its failure.
            waiting = {pipe: i for i, pipe in enumerate(self._pipes) if i not in results}
            ended = {process.sentinel: i for i, process in enumerate(self._processes) if i not in results}
            ready = wait([*waiting, *ended], timeout=max(0.0, until_s - time.monotonic()))
            if not ready or time.monotonic() > until_s:
                silent = ", ".join(str(i) for i in range(expected) if i not in results)
                self._kill()
                raise PartyError(None, f"no answer from party {silent} within {deadline_s:g} s; all parties were ended")
            for source in ready:
                if source in waiting:
                    outcome = _receive(self._pipes[waiting[source]])
                    if outcome is None or not outcome[0]:
                        self._fail(waiting[source], None if outcome is None else outcome[1])
                    else:
                        results[waiting[source]] = outcome[1]
                elif ended[source] not in results:
                    self._fail(ended[source], None)
        return [results[i] for i in range(expected)]

    def _fail(self, first: int, reason: str | None) -> None:
        """Find the cause: a party that died or raised explains the broken connections that the others report."""
        time.sleep(_GRACE_S)
        for number, process in enumerate(self._processes):
            if process.exitcode is not None and process.exitcode < 0:
                name = signal.Signals(-process.exitcode).name
                self._kill()
                raise PartyError(number, f"its process was ended by {name}; all parties were ended")
        reasons = {first: reason} | {
            number: outcome[1]
            for number, pipe in enumerate(self._pipes)
            if number != first and pipe.poll() and (outcome := _receive(pipe)) is not None and not outcome[0]
        }
        exit_codes = {number: process.exitcode for number, process in enumerate(self._processes)}
        self._kill()
        number = min(reasons, key=lambda number: _rank(reasons[number], exit_codes[number]))
        raise PartyError(number, reasons[number] or _no_answer(exit_codes[number]))


def _rank(reason: str | None, exit_code: int | None) -> int:
    """How likely this is the cause of the other failures, 0 first: not where a peer had already gone."""
    if reason is None:
        return 1 if exit_code else 2
    return 3 if reason.rstrip().splitlines()[-1].startswith(_PEER_CLOSED) else 0


def _no_answer(exit_code: int | None) -> str:
    return (
        f"its process ended with exit code {exit_code} without an answer; a script that starts parties needs "
        'its code under `if __name__ == "__main__":`'
    )


def _receive(pipe: Connection) -> tuple[bool, Any] | None:
    try:
        outcome: tuple[bool, Any] = pickle.loads(pipe.recv_bytes())
    except (EOFError, OSError):
        return None
    return outcome
