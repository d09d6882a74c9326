"""Parties of several schemes side by side, and runs of one workload under all of them in turn."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Self

from torch import Tensor, nn

from bench.secure_run import SecureRun, run_module, started_for
from mpc.domains import declared_ranges
from mpc.network import Wire
from mpc.parties import Parties
from mpc.ranges import NOTHING_DECLARED, Ranges
from mpc.scheme import Roles, Scheme


class SchemeParties:
    """Party processes for every one of some schemes, shared by schemes that can share them; a context manager.

    While one scheme runs, the processes of the others sleep, so that schemes can be compared in one run, interleaved.
    """

    def __init__(self, schemes: Sequence[Scheme], threads: int = 1, wire: Wire | None = None) -> None:
        self._schemes, self._threads, self._wire = tuple(schemes), threads, wire
        self._stack = ExitStack()
        self._started: dict[Any, Parties] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for scheme in self._schemes:
                if started_for(scheme) not in self._started:
                    parties = Parties(scheme, self._threads, wire=self._wire)
                    self._started[started_for(scheme)] = stack.enter_context(parties)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._started.clear()

    def of(self, scheme: Scheme) -> Parties:
        """The parties that run `scheme`; KeyError where it was not asked for."""
        return self._started[started_for(scheme)]


def run_in_turn(
    running: SchemeParties,
    module: nn.Module,
    inputs: Tensor,
    schemes: Sequence[Scheme],
    roles: Roles | None = None,
    repeats: int = 5,
    ranges: Mapping[Scheme, Ranges] | None = None,
) -> dict[Scheme, SecureRun]:
    """Run `module` under every scheme once in each of `repeats` passes, each time after one run to warm up."""
    passes: dict[Scheme, list[SecureRun]] = {scheme: [] for scheme in schemes}
    for _ in range(repeats):
        for scheme in schemes:
            declared = (ranges or {}).get(scheme, NOTHING_DECLARED)
            run = run_module(running.of(scheme), module, inputs, scheme, roles, 1, warm_up=1, ranges=declared)
            passes[scheme].append(run)
    return {scheme: joined(runs) for scheme, runs in passes.items()}


def joined(runs: Sequence[SecureRun]) -> SecureRun:
    """Runs of the same workload as one: the seconds of all, and the log of the one with the median online time."""
    online_s = tuple(s for run in runs for s in run.online_s)
    firsts = [statistics.median_low(run.online_s) for run in runs]
    middle = runs[firsts.index(statistics.median_low(firsts))]
    return replace(
        middle,
        online_s=online_s,
        dealer_s=tuple(s for run in runs for s in run.dealer_s),
        total_s=tuple(s for run in runs for s in run.total_s),
        setup_s=statistics.median(run.setup_s for run in runs),
        peak_bytes=max(run.peak_bytes for run in runs),
    )


def calibrated_ranges(schemes: Sequence[Scheme], module: nn.Module, inputs: Tensor) -> dict[Scheme, Ranges]:
    """Ranges for every tuned scheme among `schemes`, from plain `inputs` other than those that are measured."""
    return {scheme: declared_ranges(module, inputs, scheme) for scheme in schemes if scheme.name == "tuned"}
