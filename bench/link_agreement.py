"""The two ways of emulating a network against each other, and both against the law: exchanges of many sizes.

What is timed is an exchange between two parties over a direct link, both directions at once: from when the later party
begins until the later party has its message.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.machine import this_machine
from bench.shaped_link import shaped_link
from mpc.congestion import LINUX, SEGMENT_BYTES, Flow, Tcp
from mpc.network import NetworkProfile, Wire
from mpc.parties import Parties, Party
from mpc.scheme import Scheme

SIZES_BYTES = (8, 1_000, 8_000, 32_000, 64_000, 88_000, 128_000, 256_000, 512_000, 1_000_000, 2_000_000, 4_000_000)
SMALL_BYTES = 90_000  # up to here, less than the initial window
SMALL_TOLERANCE, LARGE_TOLERANCE = 0.05, 0.10
_LEAST_IDLE_BYTES = 60_000  # below, a window makes no difference
_IDLE_TIMEOUTS = 12  # after so many, a window is the initial one again
_IN_A_ROW = 3
_HEADER_BYTES = 32  # of an emulated link; the shaped link's is 8 bytes shorter
_TAG = 11


@dataclass(frozen=True, slots=True)
class Case:
    """Exchanges of one size, one after the other; after `idle_s` without traffic, 0 for back to back."""

    payload_bytes: int
    idle_s: float
    exchanges: int


def cases_of(profile: NetworkProfile, sizes_bytes: Sequence[int] = SIZES_BYTES) -> tuple[Case, ...]:
    """Every size back to back, then the larger ones after idling until the window is the initial one."""
    idle_s = _IDLE_TIMEOUTS * (2 * profile.one_way_delay_s + LINUX.least_timeout_s)
    return (
        *(Case(size, 0.0, _IN_A_ROW) for size in sizes_bytes),
        *(Case(size, idle_s, 1) for size in sizes_bytes if size >= _LEAST_IDLE_BYTES),
    )


@contextmanager
def ways_of(profile: NetworkProfile, with_link: bool = True) -> Iterator[dict[str, Parties]]:
    """Two parties each on loopback, on the emulating transport, and `with_link` on shaped links.

    `link` is shaped as the profile says; `program` has neither delay nor rate: what it takes is the link program's own.
    """
    wires: dict[str, Wire | None] = {"loopback": None, "transport": Wire(profile=profile, emulation="transport")}
    with ExitStack() as stack:
        if with_link:
            free = NetworkProfile("free", 0.0, math.inf, "no delay, no rate")
            wires |= {
                "link": stack.enter_context(shaped_link(profile)),
                "program": stack.enter_context(shaped_link(free)),
            }
        scheme = Scheme("tuned", transport="direct")
        yield {name: stack.enter_context(Parties(scheme, wire=wire)) for name, wire in wires.items()}


def measure_ways(
    ways: Mapping[str, Parties],
    cases: Sequence[Case],
    repeats: int = 9,
    on_pass: Callable[[], None] = lambda: None,
) -> dict[str, list[list[float]]]:
    """Seconds an exchange took, by way, case and repeat; ways take turns, after one pass to warm up.

    All ways idle together.
    """
    seconds: dict[str, list[list[float]]] = {name: [[] for _ in cases] for name in ways}
    back_to_back = [index for index, case in enumerate(cases) if not case.idle_s]
    idling = [[index] for index, case in enumerate(cases) if case.idle_s]
    for number in range(repeats + 1):
        for group in (back_to_back, *idling):
            chosen = tuple(cases[index] for index in group)
            time.sleep(max((case.idle_s for case in chosen), default=0.0))
            for name, parties in ways.items():
                spans = parties.run(exchanges_at, [(chosen,)] * 2)
                for index, zero, one in zip(group, *spans, strict=True):
                    if number:
                        span_s = max(zero[1], one[1]) - max(zero[0], one[0])
                        seconds[name][index].append(span_s / cases[index].exchanges)
        on_pass()
    return seconds


def exchanges_at(party: Party, cases: Sequence[Case]) -> list[tuple[float, float]]:
    """A party's part: when the exchanges of each case began and ended here."""
    link = party.links[1 - party.number]
    meeting = np.zeros(1, np.uint8), np.zeros(1, np.uint8)
    largest_bytes = max(case.payload_bytes for case in cases)
    buffers = np.ones(largest_bytes, np.uint8), np.ones(largest_bytes, np.uint8)  # in memory before any clock runs
    spans = []
    for case in cases:
        outgoing, incoming = (buffer[: case.payload_bytes] for buffer in buffers)
        link.exchange(*meeting, _TAG)
        start_s = time.perf_counter()
        for _ in range(case.exchanges):
            link.exchange(outgoing, incoming, _TAG)
        spans.append((start_s, time.perf_counter()))
    return spans


def law_s(profile: NetworkProfile, cases: Sequence[Case], own_s: Sequence[float], tcp: Tcp = LINUX) -> list[float]:
    """What the law says an exchange takes in each case of a second pass; `own_s` is what it takes on loopback.

    Of that, what the smallest message takes comes on top of the link. Copying is done while bytes travel, and counts
    only where it is slower than the link.
    """
    least_s = min(own_s)
    flow, now_s = Flow(profile, tcp), 0.0
    seconds: list[float] = []
    for case, own in [*zip(cases, own_s, strict=True)] * 2:
        now_s = flow.due_s(now_s + case.idle_s, 1 + _HEADER_BYTES, 1)
        start_s = now_s
        for _ in range(case.exchanges):
            due_s = flow.due_s(now_s, case.payload_bytes + _HEADER_BYTES, case.payload_bytes)
            now_s = max(due_s + least_s, now_s + own)
        seconds.append((now_s - start_s) / case.exchanges)
    return seconds[len(cases) :]


def fitted_tcp(
    profile: NetworkProfile, cases: Sequence[Case], own_s: Sequence[float], link_s: Sequence[float]
) -> tuple[Tcp, float]:
    """The initial window and growth with which the law is nearest to the link, and its median relative error then."""
    from scipy.optimize import minimize

    def tcp_of(logs: Any) -> Tcp:
        return Tcp(initial_window_bytes=math.exp(logs[0]) * SEGMENT_BYTES, growth=1 + math.exp(logs[1]))

    def errors(tcp: Tcp) -> list[float]:
        return [abs(math.log(law / link)) for law, link in zip(law_s(profile, cases, own_s, tcp), link_s, strict=True)]

    found = minimize(lambda logs: sum(errors(tcp_of(logs))), [math.log(10), 0.0], method="Nelder-Mead")
    tcp = tcp_of(found.x)
    return tcp, statistics.median(errors(tcp))


def agreement(profile: NetworkProfile, cases: Sequence[Case], seconds: Mapping[str, Sequence[Sequence[float]]]) -> Any:
    """The record of one profile: a row for each case with medians and ratio, the fit, and the share within the bars."""
    medians = {way: [statistics.median(samples) for samples in of_way] for way, of_way in seconds.items()}
    laws = law_s(profile, cases, medians["loopback"])
    rows: list[dict[str, Any]] = []
    for index, case in enumerate(cases):
        row: dict[str, Any] = {
            "payload_bytes": case.payload_bytes,
            "after_idle": case.idle_s > 0,
            "law_s": laws[index],
            "seconds": {way: list(of_way[index]) for way, of_way in seconds.items()},
            "median_s": {way: of_way[index] for way, of_way in medians.items()},
        }
        if "link" in medians:
            tolerance = SMALL_TOLERANCE if case.payload_bytes <= SMALL_BYTES else LARGE_TOLERANCE
            row["ratio"] = medians["transport"][index] / medians["link"][index]
            row["law_ratio"] = laws[index] / medians["link"][index]
            row["agrees"] = abs(row["ratio"] - 1) <= tolerance
        rows.append(row)
    record = {"record": "links", "network": profile.name, "rows": rows, "machine": this_machine()}
    if "link" in medians:
        tcp, error = fitted_tcp(profile, cases, medians["loopback"], medians["link"])
        record |= {
            "agreeing": sum(row["agrees"] for row in rows) / len(rows),
            "fit": {
                "initial_window_bytes": tcp.initial_window_bytes,
                "growth": tcp.growth,
                "median_error": error,
            },
        }
    return record
