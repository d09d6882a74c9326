"""Workloads run on loopback and on emulated links in turn: what a replay of the loopback run is judged against."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.attention import AttentionShape, attention_layer, unit_input
from bench.running import parties_on, ranges_for
from bench.secure_run import SecureRun, run_module
from bench.shaped_link import why_not
from mpc.elapsed import together_s as together_s
from mpc.ledger import MessageLog
from mpc.network import LOOPBACK, Emulation, NetworkProfile, network
from mpc.parties import Parties
from mpc.ranges import NOTHING_DECLARED, Ranges
from mpc.scheme import Scheme

# Bandwidths and delays that no named profile has; nothing is fitted on them.
UNSEEN_LINKS = (
    *("1800mbit/0.6ms", "1200mbit/2.5ms", "650mbit/1ms", "450mbit/8ms", "280mbit/5ms", "180mbit/3.5ms", "550mbit/18ms"),
    *("220mbit/33ms", "75mbit/9ms", "130mbit/45ms", "320mbit/70ms", "50mbit/24ms", "750mbit/55ms"),
)
KINDS = ("scaling", "relu_softmax", "softmax")
SHAPES = (AttentionShape(65, 256, 4), AttentionShape(17, 64, 2))
_CALIBRATION_INPUTS = 8


@dataclass(frozen=True, slots=True)
class LinkWorkload:
    """A layer, its input and the ranges of the scheme that it is run under."""

    what: str
    module: nn.Module
    inputs: Tensor
    ranges: Ranges


@dataclass(frozen=True, slots=True)
class LinkMeasurement:
    """One workload on one link, in the mode that the link was emulated in, and between those runs on loopback.

    `samples_s` are seconds on the link, from when the last party was ready; `logs` those of the loopback run with the
    median seconds.
    """

    what: str
    network: NetworkProfile
    mode: str
    samples_s: tuple[float, ...]
    loopback_s: tuple[float, ...]
    logs: tuple[MessageLog, ...]


def link_workloads(scheme: Scheme, kinds: Sequence[str] = KINDS) -> list[LinkWorkload]:
    """Attention layers of every kind at two sizes; ranges from other inputs of the same distribution."""
    workloads = []
    for kind in kinds:
        for shape in SHAPES:
            layer = attention_layer(kind, shape)
            others = torch.cat([unit_input(shape, 1000 + seed) for seed in range(_CALIBRATION_INPUTS)])
            ranges = ranges_for([scheme], layer, others).get(scheme, NOTHING_DECLARED)
            what = f"attention {kind} {shape.tokens}x{shape.dim}x{shape.heads}"
            workloads.append(LinkWorkload(what, layer, unit_input(shape), ranges))
    return workloads


def how_to_emulate(scheme: Scheme) -> Emulation:
    """Stamps of the transport where it is direct, a shaped link where not; ValueError where there can be none."""
    if scheme.transport == "direct":
        return "transport"
    if reason := why_not():
        raise ValueError(reason)
    return "link"


def measure_links(
    scheme: Scheme,
    links: Sequence[NetworkProfile] = tuple(map(network, UNSEEN_LINKS)),
    repeats: int = 9,
    workloads: Sequence[LinkWorkload] | None = None,
    emulate: Emulation | None = None,
    on_run: Callable[[int, int, str], None] = lambda *_: None,
) -> list[LinkMeasurement]:
    """Run every workload `repeats` times on every link and as often on loopback, in mixed order.

    Links come one after the other, with the same parties on loopback beside all of them. `on_run` hears how many runs
    are done, of how many, and what is next.
    """
    workloads = link_workloads(scheme) if workloads is None else workloads
    emulate = emulate or how_to_emulate(scheme)
    order, measured, done = random.Random(0), [], 0
    with parties_on([scheme]) as here:
        for link in links:
            runs: dict[tuple[int, str], list[SecureRun]] = {}
            with ExitStack() as stack:
                there = stack.enter_context(parties_on([scheme], link, emulate=emulate))
                for _ in range(repeats):
                    cases = [(i, place) for i in range(len(workloads)) for place in (here, there)]
                    order.shuffle(cases)
                    for index, place in cases:
                        on_run(done, len(links) * repeats * len(cases), f"{workloads[index].what} on {place.network}")
                        runs.setdefault((index, place.network), []).append(_run(place.of(scheme), workloads[index]))
                        done += 1
                for index, workload in enumerate(workloads):
                    on_link, on_loopback = runs[index, link.name], runs[index, LOOPBACK.name]
                    measured.append(_measurement(workload.what, link, there.mode, on_link, on_loopback))
    return measured


def _run(parties: Parties, workload: LinkWorkload) -> SecureRun:
    return run_module(parties, workload.module, workload.inputs, warm_up=1, ranges=workload.ranges)


def _measurement(
    what: str, link: NetworkProfile, mode: str, on_link: Sequence[SecureRun], on_loopback: Sequence[SecureRun]
) -> LinkMeasurement:
    samples_s, loopback_s = (tuple(together_s(run.logs) for run in runs) for runs in (on_link, on_loopback))
    middle = loopback_s.index(statistics.median_low(loopback_s))
    return LinkMeasurement(what, link, mode, samples_s, loopback_s, on_loopback[middle].logs)
