from __future__ import annotations

import ctypes
import errno
import itertools
import multiprocessing
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from bench import shaped_link as module
from bench.shaped_link import shaped_link, why_not
from mpc.awake import keep_awake
from mpc.congestion import MTU_BYTES, PAYLOAD_SHARE, SEGMENT_BYTES
from mpc.network import LOOPBACK, NetworkProfile, Wire, network

ROOT = Path(__file__).resolve().parent.parent.parent
NAMESPACES = Path("/run/netns")
PORT = 5000
TRIES = 3  # other programs may take the processor from a measurement, and can only make it slower
LACKING = why_not()

needs_link = pytest.mark.skipif(LACKING is not None, reason=LACKING or "")

# Holds a link until it is ended; says where it stands, and that it left in order.
HOLDS_A_LINK = """
import signal, sys, time
from bench.shaped_link import shaped_link
from mpc.network import network
signal.signal(signal.SIGINT, signal.default_int_handler)  # nohup and a background job of a shell leave them ignored
signal.signal(signal.SIGHUP, signal.SIG_DFL)
try:
    with shaped_link(network("cheetah-wan")) as wire:
        print(*wire.namespaces, flush=True)
        if "--fail" in sys.argv:
            raise ArithmeticError("the run gives up")
        time.sleep(60)
finally:
    print("left", flush=True)
"""


def link_of(rate_mbit: float, round_trip_ms: float) -> NetworkProfile:
    return network(f"{rate_mbit}mbit/{round_trip_ms}ms")


def enter(namespace: str) -> None:
    keep_awake()  # as parties do
    with (NAMESPACES / namespace).open() as file:
        assert ctypes.CDLL(None).setns(file.fileno(), 0x40000000) == 0


def serve(namespace: str, host: str, pipe: Connection) -> None:
    """Takes in as many bytes as it is told, says that they arrived, and echoes what comes then."""
    enter(namespace)
    with socket.create_server((host, PORT)) as listener:
        pipe.send(None)
        connection, _ = listener.accept()
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            expected, taken, block = int.from_bytes(connection.recv(8), "big"), 0, bytearray(1 << 20)
            while taken < expected:
                taken += connection.recv_into(block)
            connection.sendall(b"!")
            while sent := connection.recv(1 << 20):
                connection.sendall(sent)


def connect(host: str, payload_bytes: int) -> tuple[socket.socket, float]:
    """A connection over which `payload_bytes` were sent, and the seconds until the other side said so."""
    connection = socket.create_connection((host, PORT))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    message = payload_bytes.to_bytes(8, "big") + bytes(payload_bytes)
    start_s = time.monotonic()
    connection.sendall(message)
    connection.recv(1)
    return connection, time.monotonic() - start_s


def round_trips(namespace: str, host: str, pipe: Connection, times: int) -> None:
    enter(namespace)
    connection, _ = connect(host, 1)
    with connection:
        seconds = []
        for _ in range(times):
            start_s = time.monotonic()
            connection.sendall(b"?")
            connection.recv(1)
            seconds.append(time.monotonic() - start_s)
    pipe.send(seconds)


def transfer(namespace: str, host: str, pipe: Connection, payload_bytes: int) -> None:
    enter(namespace)
    connection, seconds = connect(host, payload_bytes)
    connection.close()
    pipe.send(seconds)


def frames(namespace: str, host: str, pipe: Connection, payload_bytes: int) -> None:
    """How many frames this side sends with the payload; a piece of several segments is one."""
    enter(namespace)
    connection, _ = connect(host, payload_bytes)
    connection.close()
    pipe.send(frames_of("sent"))


def frames_of(which: str) -> int:
    """Frames that the device of this namespace has `sent` or `received`."""
    counts = next(line for line in Path("/proc/thread-self/net/dev").read_text().splitlines() if "tap0:" in line)
    return int(counts.split(":")[1].split()[{"received": 1, "sent": 9}[which]])


def echo(namespace: str, host: str, pipe: Connection, other: str) -> None:
    """Whether 300,000 bytes come back as they were, how many frames the other side sent, and this one received."""
    enter(namespace)
    connection, _ = connect(host, 1)
    with connection:
        sent, back = os.urandom(300_000), bytearray()
        connection.sendall(sent)
        while len(back) < len(sent):
            back += connection.recv(1 << 20)
    received = frames_of("received")
    enter(other)
    pipe.send((back == sent, frames_of("sent"), received))


def while_stopped(namespace: str, host: str, pipe: Connection, program: int) -> None:
    """Seconds of a round trip whose first frame is sent while the link program is stopped, for 0.1 s."""
    enter(namespace)
    connection, _ = connect(host, 1)
    with connection:
        os.kill(program, signal.SIGSTOP)
        try:
            start_s = time.monotonic()
            connection.sendall(b"?")
            time.sleep(0.1)
        finally:
            os.kill(program, signal.SIGCONT)
        connection.recv(1)
        pipe.send(time.monotonic() - start_s)


def between(wire: Wire, client: Any, argument: int, pair: tuple[int, int] = (0, 1)) -> Any:
    """What `client` reports from the first party of the pair, with a server at the second."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    host = wire.hosts[pair[1]]
    server = context.Process(target=serve, args=(wire.namespaces[pair[1]], host, theirs), daemon=True)
    visitor = context.Process(target=client, args=(wire.namespaces[pair[0]], host, theirs, argument), daemon=True)
    try:
        server.start()
        assert ours.poll(30), "the server did not start"
        ours.recv()
        visitor.start()
        assert ours.poll(60), "no answer over the link"
        return ours.recv()
    finally:
        for process in (server, visitor):
            if process.pid is not None:
                process.kill()
                process.join()
        ours.close()
        theirs.close()


def link_programs(namespace: str) -> list[int]:
    """Running link programs that were started for this namespace."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            command = (folder / "cmdline").read_bytes().decode()
        except OSError:  # no process, or gone by now
            continue
        if "delay_link-" in command.split("\0")[0] and namespace in command.split("\0"):
            found.append(int(folder.name))
    return found


def nothing_left(namespaces: list[str], within_s: float = 5.0) -> bool:
    until_s = time.monotonic() + within_s
    while time.monotonic() < until_s:
        if not any((NAMESPACES / name).exists() or link_programs(name) for name in namespaces):
            return True
        time.sleep(0.05)
    return False


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def holder(*arguments: str) -> tuple[subprocess.Popen[str], list[str]]:
    """A process of its own that holds a link, and the namespaces of that link."""
    command = [sys.executable, "-c", HOLDS_A_LINK, *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().split()


def test_other_numbers_of_parties_are_refused() -> None:
    with pytest.raises(ValueError, match="joins 2 or 3 parties, not 4"), shaped_link(LOOPBACK, parties=4):
        pass


def test_payload_share_is_what_headers_leave_of_a_frame() -> None:
    ethernet_bytes, ip_bytes, tcp_bytes = 14, 20, 20 + 12
    assert MTU_BYTES - ip_bytes - tcp_bytes == pytest.approx(PAYLOAD_SHARE * (MTU_BYTES + ethernet_bytes))


def _refuse(*_: object) -> NoReturn:
    raise OSError(errno.ENODEV, "No such device")


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        (("_missing_capabilities", lambda: "CAP_NET_ADMIN"), "needs root .*CAP_NET_ADMIN.* sudo"),
        (("_TUN", Path("/dev/net/absent")), "/dev/net/absent .*No such file.* modprobe tun"),
        (("socket", SimpleNamespace(AF_PACKET=0, SOCK_RAW=0, socket=_refuse)), "packet sockets .*No such device"),
        (("_find", lambda command: None if command == "ip" else command), "command ip: install .*iproute2"),
        (("_find", lambda command: None if command == "cc" else command), "compiler cc.*: install .*gcc"),
        (("_find", lambda _: "false"), "cannot be built: cc failed"),
    ],
    ids=["rights", "tun", "packets", "ip", "cc", "compile"],
)
@pytest.mark.skipif(sys.platform != "linux", reason="names what Linux lacks")
def test_what_a_machine_lacks_is_one_line_with_advice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: tuple[str, Any], advice: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(module, "_missing_capabilities", lambda: "")
    monkeypatch.setattr(module, "_TUN", Path(os.devnull))
    monkeypatch.setattr(module, "_find", lambda command: command)
    monkeypatch.setattr(module, *change)
    with pytest.raises(RuntimeError, match=advice) as refusal, shaped_link(LOOPBACK):
        pass
    assert "\n" not in str(refusal.value)


@pytest.mark.skipif(module._find("cc") is None, reason="no C compiler")
def test_the_program_is_compiled_once_for_each_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    program = module._program()
    made_ns = program.stat().st_mtime_ns
    assert module._program() == program and program.stat().st_mtime_ns == made_ns
    changed = tmp_path / "changed.c"
    changed.write_bytes(module._SOURCE.read_bytes() + b"\n")
    monkeypatch.setattr(module, "_SOURCE", changed)
    assert module._program() != program
    assert len(list((tmp_path / "mpc-pareto").iterdir())) == 2


@pytest.mark.skipif(module._find("cc") is None, reason="no C compiler")
def test_the_source_compiles_without_a_warning(tmp_path: Path) -> None:
    strict = ["cc", "-std=gnu11", "-O2", "-pthread", "-Wall", "-Wextra", "-Wpedantic", "-o", str(tmp_path / "program")]
    done = subprocess.run([*strict, str(module._SOURCE)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parties
@needs_link
@pytest.mark.parametrize("delay_ms", [0.25, 5, 20])
def test_round_trips_take_two_delays(delay_ms: float) -> None:
    with shaped_link(link_of(400, 0)) as wire:
        overhead_s = statistics.median(between(wire, round_trips, 500))
    with shaped_link(link_of(400, 2 * delay_ms)) as wire:
        runs = (between(wire, round_trips, 50 if delay_ms > 1 else 500) for _ in range(TRIES))
        expected_s = 2 * delay_ms / 1000
        medians = []
        for seconds in runs:
            assert min(seconds) >= expected_s
            medians.append(statistics.median(seconds))
            if medians[-1] <= 1.03 * expected_s + 1.5 * overhead_s:
                return
    pytest.fail(f"medians of {medians} s, expected {expected_s} s and {overhead_s} s without delay")


@pytest.mark.parties
@needs_link
@pytest.mark.parametrize("rate_mbit", [100, 400, 1500])  # the last in pieces of several segments
def test_a_transfer_has_the_rate_less_headers(rate_mbit: float) -> None:
    payload_bytes = 20_000_000
    with shaped_link(link_of(rate_mbit, 0.5)) as wire:
        rates = (payload_bytes * 8e-6 / between(wire, transfer, payload_bytes) for _ in range(TRIES))
        assert any(rate == pytest.approx(rate_mbit * PAYLOAD_SHARE, rel=0.05) for rate in rates)


@pytest.mark.parties
@needs_link
@pytest.mark.parametrize(("rate_mbit", "in_pieces"), [(400, False), (1500, True)])
def test_only_fast_links_carry_pieces_of_several_segments(rate_mbit: float, in_pieces: bool) -> None:
    segments = 4_000_000 / SEGMENT_BYTES
    with shaped_link(link_of(rate_mbit, 0.5)) as wire:
        count = between(wire, frames, 4_000_000)
    assert count < segments / 2 if in_pieces else count >= segments


@pytest.mark.parties
@needs_link
@pytest.mark.parametrize("rate_mbit", [400, 1500])
def test_of_a_piece_on_an_idle_fast_link_two_segments_arrive_by_themselves(rate_mbit: float) -> None:
    with shaped_link(link_of(rate_mbit, 0.5)) as wire:
        whole, sent, received = between(wire, echo, wire.namespaces[1])
    assert whole
    assert (received > sent) == (rate_mbit == 1500)  # what was sent last may be on its way


@pytest.mark.parties
@needs_link
def test_a_frame_travels_from_when_it_was_sent_and_not_from_when_the_program_got_to_it() -> None:
    with shaped_link(link_of(400, 400)) as wire:
        program = link_programs(wire.namespaces[0])[0]
        seconds = [between(wire, while_stopped, program) for _ in range(TRIES)]
    assert 0.4 <= min(seconds) < 0.45  # 0.1 s more if the stop held the frame up


@pytest.mark.parties
@needs_link
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor")
def test_what_a_party_sends_is_passed_on_by_processors_that_are_its_own() -> None:
    with shaped_link(link_of(400, 1)) as wire:
        program = link_programs(wire.namespaces[0])[0]
        threads = sorted(int(path.name) for path in Path(f"/proc/{program}/task").iterdir())
        first, second = (os.sched_getaffinity(thread) for thread in threads if thread != program)
    cores = sorted(os.sched_getaffinity(0))
    half = len(cores) // 2
    assert (first, second) == ({*cores[:half]}, {*cores[half : 2 * half]})


@pytest.mark.parties
@needs_link
def test_a_link_without_traffic_takes_no_processor_time() -> None:
    with shaped_link(link_of(400, 40)) as wire:
        stat = Path(f"/proc/{link_programs(wire.namespaces[0])[0]}/stat")
        before = stat.read_text().split()[13:15]
        time.sleep(0.5)
        assert stat.read_text().split()[13:15] == before


@pytest.mark.parties
@needs_link
def test_three_parties_have_a_link_between_each_two() -> None:
    with shaped_link(link_of(400, 10), parties=3) as wire:
        assert len(set(wire.hosts)) == len(set(wire.namespaces)) == 3
        for pair in itertools.combinations(range(3), 2):
            assert 10e-3 <= statistics.median(between(wire, round_trips, 10, pair)) < 11e-3


@pytest.mark.parties
@needs_link
def test_links_stand_side_by_side_and_each_takes_only_its_own_away() -> None:
    with shaped_link(link_of(400, 10)) as outer:
        with shaped_link(link_of(400, 2)) as inner:
            assert not set(outer.namespaces) & set(inner.namespaces)
        assert nothing_left(list(inner.namespaces), within_s=0.1)
        assert all((NAMESPACES / name).exists() and link_programs(name) for name in outer.namespaces)
    assert nothing_left(list(outer.namespaces), within_s=0.1)


@pytest.mark.parties
@needs_link
def test_a_link_that_ends_early_fails_the_run() -> None:
    with pytest.raises(RuntimeError, match="ended before the run did"), shaped_link(link_of(400, 10)) as wire:
        os.kill(link_programs(wire.namespaces[0])[0], signal.SIGKILL)
        time.sleep(0.2)
    assert nothing_left(list(wire.namespaces), within_s=0.1)


@pytest.mark.parties
@needs_link
def test_a_failed_set_up_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module._Link, "_configuration", lambda *_: "addr add nonsense dev tap0\n")
    with pytest.raises(RuntimeError, match=r"setting up the shaped link failed: .*nonsense"), shaped_link(LOOPBACK):
        pass
    number = next(module._numbers) - 1
    assert nothing_left([f"mpc-pareto-{os.getpid()}-{number}-{party}" for party in range(2)], within_s=0.1)


@pytest.mark.parties
@needs_link
@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_the_block_in_order(number: signal.Signals, exit_code: int) -> None:
    process, namespaces = holder()
    assert len(namespaces) == 2 and link_programs(namespaces[0])
    process.send_signal(number)
    said, _ = process.communicate(timeout=10)
    assert (process.returncode, said) == (exit_code, "left\n")
    assert nothing_left(namespaces, within_s=0.1)


@pytest.mark.parties
@needs_link
def test_an_exception_passes_through_and_nothing_is_left() -> None:
    process, namespaces = holder("--fail")
    assert "ArithmeticError: the run gives up" in process.communicate(timeout=10)[1]
    assert len(namespaces) == 2 and nothing_left(namespaces, within_s=0.1)


@pytest.mark.parties
@needs_link
def test_nothing_is_left_of_a_killed_process() -> None:
    process, namespaces = holder()
    process.kill()
    process.communicate(timeout=10)
    assert len(namespaces) == 2 and nothing_left(namespaces)


@pytest.mark.parties
@needs_link
def test_the_next_link_removes_what_the_dead_left_and_nothing_else() -> None:
    process, namespaces = holder()
    other, living = holder()
    program = link_programs(namespaces[0])[0]
    try:
        os.kill(program, signal.SIGKILL)
        process.kill()
        process.communicate(timeout=10)
        assert all((NAMESPACES / name).exists() for name in namespaces)
        with shaped_link(LOOPBACK):
            assert nothing_left(namespaces, within_s=0.1)
            assert all((NAMESPACES / name).exists() and link_programs(name) for name in living)
    finally:
        other.terminate()
        other.communicate(timeout=10)
    assert nothing_left(living, within_s=0.1)


@pytest.mark.parties
@needs_link
def test_parties_on_a_link_take_their_hops_more_than_on_loopback() -> None:
    from bench.attention import AttentionShape, attention_layer, unit_input
    from bench.secure_run import SecureRun, run_module
    from mpc.parties import Parties
    from mpc.scheme import Scheme

    shape = AttentionShape(tokens=9, dim=16, heads=2)
    layer, x = attention_layer("quad", shape), unit_input(shape)

    def run(wire: Wire | None) -> SecureRun:
        with Parties(Scheme(), wire=wire) as parties:
            return run_module(parties, layer, x, repeats=3, warm_up=1)

    loopback = run(None)
    with shaped_link(link_of(400, 40)) as wire:
        shaped = run(wire)
    assert (shaped.output - layer(x)).abs().max() < 1e-2
    assert shaped.traffic == loopback.traffic
    hops = max(shaped.traffic.online.hops)
    expected_s = min(loopback.online_s) + hops * 20e-3
    assert min(shaped.online_s) == pytest.approx(expected_s, rel=0.35)
