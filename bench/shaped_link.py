"""A shaped link for real runs: every party in a network namespace of its own, joined by a link with delay and rate.

The link is always our own program, delay_link.c, between TAP devices: many kernels come without `tc netem`, and one
link everywhere keeps the figures of different machines comparable. Needs root on Linux; `why_not` says what is missing.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import platform
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from mpc.congestion import MTU_BYTES
from mpc.network import NetworkProfile, Wire

_SOURCE = Path(__file__).with_name("delay_link.c")
_NAMESPACES = Path("/run/netns")
_TUN = Path("/dev/net/tun")
_NAME = re.compile(r"mpc-pareto-(?P<process>\d+)-\d+-\d+")
_INTERFACE = "tap0"
_QUEUED_FRAMES = 10_000  # between kernel and link program: a full TCP buffer, so that none is lost there
_DEADLINE_S = 10.0  # for each step of setting up and tearing down; all of them take milliseconds
_CAPABILITIES = {12: "CAP_NET_ADMIN", 13: "CAP_NET_RAW", 21: "CAP_SYS_ADMIN"}  # bits of linux/capability.h
_SYSTEM_FOLDERS = ":/usr/local/sbin:/usr/sbin:/sbin"  # where `ip` is, and what a user's PATH may lack

_numbers = itertools.count()


@contextmanager
def shaped_link(profile: NetworkProfile, parties: int = 2) -> Iterator[Wire]:
    """Where `parties` (2 or 3) stand while the block runs: namespaces made for it, joined by links as in `profile`.

    A third-party dealer counts as one of them. Between each two, in each direction, a frame waits for those before it
    and then for the delay; none is lost (a warning says if one was). TCP settings do not depend on the machine.
    SIGTERM and SIGHUP end the block as an exception where they would have ended the process. After SIGKILL the link
    program cleans up, or, where that was killed too, the next shaped link does. The link ends with the thread that
    entered the block. Raises RuntimeError where the machine cannot have a link, or where the link ended too early.
    """
    if parties not in (2, 3):
        raise ValueError(f"a shaped link joins 2 or 3 parties, not {parties}")
    if reason := why_not():
        raise RuntimeError(reason)
    _remove_leftovers()
    link = _Link(profile, parties, next(_numbers))
    with _ended_by_exception():
        try:
            with _signals_held():
                link.set_up()
            yield link.wire
        finally:
            with _signals_held():
                link.tear_down()


def why_not() -> str | None:
    """What this machine lacks for a shaped link and what to do about it, in one line; None where it lacks nothing."""
    if sys.platform != "linux":
        return f"a shaped link needs Linux with network namespaces, and this is {sys.platform}: use another machine"
    if missing := _missing_capabilities():
        return f"a shaped link needs root ({missing} missing): use sudo, or a container started with --privileged"
    try:
        os.close(os.open(_TUN, os.O_RDWR))
    except OSError as error:
        return f"a shaped link needs {_TUN} ({error.strerror}): modprobe tun, or give the container --device {_TUN}"
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()
    except OSError as error:
        return f"a shaped link needs packet sockets ({error.strerror}): modprobe af_packet"
    if _find("ip") is None:
        return "a shaped link needs the command ip: install the package iproute2"
    if _find("cc") is None:
        return "a shaped link needs the C compiler cc, once: install the package gcc"
    try:
        _program()
    except (RuntimeError, OSError) as error:
        return f"the program of the shaped link cannot be built: {error}"
    return None


class _Link:
    """Namespaces, devices and the program between them; `tear_down` is right after any part of `set_up`."""

    def __init__(self, profile: NetworkProfile, parties: int, number: int) -> None:
        self._profile = profile
        self.wire = Wire(
            hosts=tuple(f"10.99.{number % 256}.{party + 1}" for party in range(parties)),
            interface=_INTERFACE,
            namespaces=tuple(f"mpc-pareto-{os.getpid()}-{number}-{party}" for party in range(parties)),
            profile=profile,
        )
        self._process: subprocess.Popen[str] | None = None

    def set_up(self) -> None:
        for namespace in self.wire.namespaces:
            _ip("netns", "add", namespace)
        self._start()
        for party, namespace in enumerate(self.wire.namespaces):
            _ip("-n", namespace, "-batch", "-", commands=self._configuration(party))

    def _start(self) -> None:
        rate = 0.0 if math.isinf(self._profile.bytes_per_s) else self._profile.bytes_per_s
        delay_ns = round(self._profile.one_way_delay_s * 1e9)
        self._process = process = subprocess.Popen(
            [_program(), str(os.getpid()), str(delay_ns), repr(rate), _INTERFACE, *self.wire.namespaces],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # an interrupt from the terminal is for this process, which then ends the link
        )
        assert process.stdout is not None
        answered, _, _ = select.select([process.stdout], [], [], _DEADLINE_S)
        if not answered or process.stdout.readline() != "ready\n":
            process.kill()
            complaint = process.communicate()[1].strip()
            self._process = None
            raise RuntimeError(f"the delay link did not start: {complaint or f'no answer in {_DEADLINE_S:g} s'}")

    def _configuration(self, party: int) -> str:
        """What `ip` is told inside a party's namespace; addresses are fixed, so that nothing is ever looked up."""
        lines = [
            "link set lo up",
            f"link set {_INTERFACE} address {_hardware_address(party)} mtu {MTU_BYTES} txqueuelen {_QUEUED_FRAMES}",
            f"addr add {self.wire.hosts[party]}/24 dev {_INTERFACE}",
            f"link set {_INTERFACE} up",
        ]
        for other, host in enumerate(self.wire.hosts):
            if other != party:
                lines.append(f"neigh add {host} lladdr {_hardware_address(other)} dev {_INTERFACE} nud permanent")
        return "\n".join(lines) + "\n"

    def tear_down(self) -> None:
        said, complaint, ended_before = "", "", False
        if self._process is not None:
            ended_before = self._process.poll() is not None
            self._process.terminate()
            try:
                said, complaint = self._process.communicate(timeout=_DEADLINE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                said, complaint = self._process.communicate()
        for namespace in self.wire.namespaces:
            _remove(namespace)
        if ended_before:
            raise RuntimeError(f"the delay link ended before the run did; {complaint.strip() or 'was it killed?'}")
        if (dropped := re.search(r"dropped (\d+)", said)) and dropped[1] != "0":
            warnings.warn(f"the shaped link dropped {dropped[1]} frames: this run took too long", stacklevel=2)


def _hardware_address(party: int) -> str:
    return f"02:00:00:00:00:{party:02x}"  # locally administered; delay_link.c switches by the last byte


def _find(command: str) -> str | None:
    return shutil.which(command, path=os.environ.get("PATH", os.defpath) + _SYSTEM_FOLDERS)


def _ip(*arguments: str, commands: str = "") -> None:
    done = subprocess.run(
        [_find("ip") or "ip", *arguments],
        input=commands,
        capture_output=True,
        text=True,
        check=False,
        timeout=_DEADLINE_S,
        start_new_session=True,
    )
    if done.returncode != 0:
        complaint = " ".join((done.stderr or done.stdout).split())
        raise RuntimeError(f"setting up the shaped link failed: ip {' '.join(arguments)}: {complaint}")


def _remove(namespace: str) -> None:
    if (_NAMESPACES / namespace).exists():
        _ip("netns", "del", namespace)


def _remove_leftovers() -> None:
    """Remove the namespaces of processes that are gone."""
    if not _NAMESPACES.is_dir():
        return
    for path in _NAMESPACES.iterdir():
        name = _NAME.fullmatch(path.name)
        if name is not None and not Path(f"/proc/{name['process']}").exists():
            with suppress(RuntimeError):  # another process may be removing the same one
                _remove(path.name)


def _missing_capabilities() -> str:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            held = int(line.split()[1], 16)
            return " and ".join(name for bit, name in _CAPABILITIES.items() if not held >> bit & 1)
    return ""


def _program() -> Path:
    """The compiled delay link, made on first use and kept in the user's cache under the hash of its source."""
    source = _SOURCE.read_bytes()
    key = hashlib.sha256(source + platform.machine().encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mpc-pareto"
    program = folder / f"delay_link-{key}"
    if program.exists():
        return program
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"{program.name}.{os.getpid()}"
    command = [_find("cc") or "cc", "-O2", "-std=gnu11", "-pthread", "-o", str(unfinished), str(_SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        unfinished.unlink(missing_ok=True)
        raise RuntimeError(next((line for line in done.stderr.splitlines() if "error" in line), "cc failed"))
    unfinished.replace(program)  # whole or not at all, whoever else compiles it now
    return program


@contextmanager
def _handlers(handler: Callable[[int, FrameType | None], None], numbers: Sequence[signal.Signals]) -> Iterator[None]:
    """Other handlers for a while; only the main thread has signals to handle."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, signal.SIG_DFL if earlier is None else earlier)


@contextmanager
def _ended_by_exception() -> Iterator[None]:
    """SIGTERM and SIGHUP raise SystemExit where they would have ended this process without a word."""

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    with _handlers(leave, [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_DFL]):
        yield


@contextmanager
def _signals_held() -> Iterator[None]:
    """What would interrupt this block comes right after it."""
    came: list[int] = []
    try:
        with _handlers(lambda number, _: came.append(number), [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]):
            yield
    finally:
        for number in came:
            signal.raise_signal(number)
