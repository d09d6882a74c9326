"""Real party processes on this machine, joined by gloo over loopback TCP; the first failure ends them all.

`Parties` is a resource: processes start once and take tasks until it is closed. A task is a module-level function that
every party calls with its own arguments and a `Party` that says which one it is.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Self

from mpc.scheme import Scheme

_START_DEADLINE_S = 120.0
_GRACE_S = 0.5  # after the first sign of failure, how long to look for its cause at the other parties


class PartyError(RuntimeError):
    """A party failed: the message holds its number and its own traceback, `party` the number."""

    def __init__(self, party: int | None, reason: str) -> None:
        super().__init__(f"party {party}: {reason}" if party is not None else reason)
        self.party = party


@dataclass(frozen=True, slots=True)
class Party:
    """What a task is given first: its number, how many there are, and the ledger of its process."""

    number: int
    count: int
    ledger: Any


class Parties:
    """Party processes for schemes that agree on the number of parties and the dealer; two and TFP by default.

    Use as a context manager. Raises PartyError where a party fails, dies or is silent beyond the deadline; all
    processes are gone by then.
    """

    def __init__(self, scheme: Scheme | None = None, threads: int = 1, deadline_s: float = 3600.0) -> None:
        self.scheme = scheme or Scheme()
        self.deadline_s = deadline_s
        self._threads = threads
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

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
        rendezvous = (Path(self._folder.name) / "rendezvous").as_uri()
        processes = self.scheme.parties + (self.scheme.dealer == "ttp")
        for number in range(processes):
            ours, theirs = context.Pipe()
            arguments = (number, self.scheme, self._threads, rendezvous, theirs)
            process = context.Process(target=_party_main, args=arguments, name=f"party-{number}", daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)
        self._collect(_START_DEADLINE_S, self.scheme.parties)

    def __exit__(self, *_: object) -> None:
        self.close()

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
            waiting = {self._pipes[i]: i for i in range(expected) if i not in results}
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
        """Find the cause: a party that died explains the broken connections that the others report."""
        time.sleep(_GRACE_S)
        for number, process in enumerate(self._processes):
            if process.exitcode is not None and process.exitcode < 0:
                name = signal.Signals(-process.exitcode).name
                self._kill()
                raise PartyError(number, f"its process was ended by {name}; all parties were ended")
        exit_code = self._processes[first].exitcode
        self._kill()
        if reason is None:
            reason = (
                f"its process ended with exit code {exit_code} without an answer; a script that starts parties needs "
                'its code under `if __name__ == "__main__":`'
            )
        raise PartyError(first, reason)


def _receive(pipe: Connection) -> tuple[bool, Any] | None:
    try:
        outcome: tuple[bool, Any] = pickle.loads(pipe.recv_bytes())
    except (EOFError, OSError):
        return None
    return outcome


def _party_main(number: int, scheme: Scheme, threads: int, rendezvous: str, pipe: Connection) -> None:
    """Life of a party process: join the others, answer tasks, leave when the parent's end of the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    _die_with_parent()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    try:
        party = _join(number, scheme, threads, rendezvous)
        if party is None:
            return
        pipe.send_bytes(pickle.dumps((True, None)))
        while True:
            task, arguments = pickle.loads(pipe.recv_bytes())
            pipe.send_bytes(pickle.dumps((True, task(party, *arguments))))
    except EOFError:
        os._exit(0)
    except BaseException:
        try:
            pipe.send_bytes(pickle.dumps((False, traceback.format_exc())))
        finally:
            os._exit(1)


def _join(number: int, scheme: Scheme, threads: int, rendezvous: str) -> Party | None:
    """Set up CrypTen in this process; None for a third-party dealer, whose service ends with the others."""
    import torch

    from mpc.crypten_import import import_crypten
    from mpc.ledger import Ledger, attach

    torch.set_num_threads(threads)
    os.environ |= {
        "WORLD_SIZE": str(scheme.parties),
        "RANK": str(number),
        "RENDEZVOUS": rendezvous,
        "DISTRIBUTED_BACKEND": "gloo",
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo"),
    }
    crypten = import_crypten()
    from crypten.config import cfg

    cfg.mpc.provider = scheme.dealer.upper()
    ledger = Ledger(number, scheme.parties)
    attach(ledger)
    if number == scheme.parties:
        from crypten.mpc.provider import TTPServer

        TTPServer()
        return None
    crypten.init()
    return Party(number, scheme.parties, ledger)


def _die_with_parent() -> None:
    """A party whose parent is gone, however it went, leaves at once."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
