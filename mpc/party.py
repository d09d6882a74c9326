"""The life of one party process: it finds its place, joins the others and answers tasks."""

from __future__ import annotations

import ctypes
import logging
import math
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
import warnings
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from mpc.awake import keep_awake
from mpc.joining import Tls, connect_all
from mpc.network import Wire
from mpc.scheme import Scheme
from mpc.transport import Link

_CLONE_NEWNET = 0x40000000  # Linux, include/uapi/linux/sched.h
_SPIN_S = 200e-6  # longer than a party usually lags behind another on one machine, shorter than any network's delay


@dataclass(frozen=True, slots=True)
class Party:
    """What a task is given first: its number, how many there are, and the ledger of its process.

    `links` are the direct links to the other parties and to a third-party dealer, which has number `count`; with gloo
    there are none.
    """

    number: int
    count: int
    ledger: Any
    links: dict[int, Link] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Place:
    """What a process has to know to join the others."""

    number: int
    scheme: Scheme
    threads: int
    folder: Path
    wire: Wire | None
    tls: Tls | None
    deadline_s: float


def party_main(place: Place, pipe: Connection) -> None:
    """Life of a party process: join the others, answer tasks, leave when the parent's end of the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    try:
        own_cores = _bind_to_cores(place)
        keep_awake()
        _enter_namespace(place)  # before any other thread starts: a thread inherits the namespace
        _die_with_parent()
        party = _join(place)
        if party is None:
            return
        for link in party.links.values():
            link.spin_s = _SPIN_S if own_cores and not (place.wire and place.wire.namespaces) else 0.0
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


def _bind_to_cores(place: Place) -> bool:
    """Give this process cores of its own, where there are enough for all of them; else leave it to the kernel.

    Two processes that share two cores take turns in one of them now and then, and seconds scatter by a third.
    """
    if not hasattr(os, "sched_setaffinity"):  # Linux only
        return False
    cores = sorted(os.sched_getaffinity(0))
    each = len(cores) // (place.scheme.parties + (place.scheme.dealer == "ttp"))
    if each < place.threads:
        return False
    os.sched_setaffinity(0, cores[place.number * each : (place.number + 1) * each])
    return True


def _let_threads_finish() -> None:
    """Let no thread of this process be interrupted by another that wakes up; threads started from here on inherit it.

    gloo's receiving thread asks again and again for a lock that a sender holds. Woken by the sender on the core that
    they share, it takes the sender's place for what is left of the time slice, up to 4 ms (`docs/measured.md`).
    """
    if hasattr(os, "SCHED_BATCH"):  # Linux only, open to every user
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _enter_namespace(place: Place) -> None:
    """Move this process into its network namespace, if it has one."""
    if place.wire is None or not place.wire.namespaces:
        return
    name = place.wire.namespaces[place.number]
    libc = ctypes.CDLL(None, use_errno=True)  # os.setns exists from Python 3.12 only
    with Path("/run/netns", name).open("rb") as namespace:
        if libc.setns(namespace.fileno(), _CLONE_NEWNET):
            problem = os.strerror(ctypes.get_errno())
            raise PermissionError(f"network namespace {name} cannot be entered: {problem}; it takes CAP_SYS_ADMIN")


def _join(place: Place) -> Party | None:
    """Set up the scheme in this process; None for a third-party dealer, whose service ends with the others."""
    import torch

    from mpc.ledger import Ledger

    torch.set_num_threads(place.threads)
    scheme, number = place.scheme, place.number
    os.environ |= {"WORLD_SIZE": str(scheme.parties), "RANK": str(number)}
    ledger = Ledger(number, scheme.parties, scheme.transport)
    links = _link(place) if scheme.transport == "direct" else {}
    if scheme.name == "tuned":
        if number == scheme.parties:
            from mpc.tuned.dealing import serve

            serve(links)
            return None
        return Party(number, scheme.parties, ledger, links)
    return _join_crypten(place, ledger, links)


def _link(place: Place) -> dict[int, Link]:
    wire = place.wire or Wire()
    count = place.scheme.parties + (place.scheme.dealer == "ttp")
    # Between two runs a dealer waits as long as its parties like; it leaves when they do.
    deadline_s = math.inf if place.number == place.scheme.parties else place.deadline_s
    return connect_all(
        place.number,
        count,
        wire.hosts,
        place.folder,
        place.tls,
        deadline_s,
        same_machine=bool(wire.namespaces),
        emulated=wire.stamped,
    )


def _join_crypten(place: Place, ledger: Any, links: dict[int, Link]) -> Party | None:
    from mpc.crypten_import import import_crypten
    from mpc.ledger import attach

    scheme = place.scheme
    own = os.environ.get("GLOO_SOCKET_IFNAME", "lo")
    interface = place.wire.interface if place.wire is not None and place.wire.namespaces else own
    os.environ |= {
        "RENDEZVOUS": (place.folder / "rendezvous").as_uri(),
        "DISTRIBUTED_BACKEND": "gloo",
        "GLOO_SOCKET_IFNAME": interface,
    }
    crypten = import_crypten()
    from crypten.config import cfg

    cfg.mpc.provider = scheme.dealer.upper()
    if links:
        from mpc.crypten_direct import use_links

        use_links(links, place.number, ledger)
    else:
        _let_threads_finish()
    attach(ledger)
    if place.number == scheme.parties:
        from crypten.mpc.provider import TTPServer

        TTPServer()
        return None
    crypten.init()
    return Party(place.number, scheme.parties, ledger, links)


def _die_with_parent() -> None:
    """A party whose parent is gone, however it went, leaves at once."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
