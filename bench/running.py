"""Parties of several schemes side by side, and runs of one workload under all of them in turn."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from bench.secure_run import SecureRun, run_module, started_for
from bench.shaped_link import shaped_link
from mpc.domains import declared_ranges
from mpc.network import LOOPBACK, Emulation, NetworkProfile, Wire
from mpc.parties import GLOO_HIDES_HOPS, Parties
from mpc.ranges import NOTHING_DECLARED, Ranges
from mpc.scheme import Roles, Scheme


class SchemeParties:
    """Party processes for every one of some schemes, shared by schemes that can share them; a context manager.

    While one scheme runs, the processes of the others sleep, so that schemes can be compared in one run, interleaved.
    `network` and `mode` are what records of such runs say, as `wire` does.
    """

    def __init__(self, schemes: Sequence[Scheme], threads: int = 1, wire: Wire | None = None) -> None:
        self._schemes, self._threads, self._wire = tuple(schemes), threads, wire
        self.network = wire.profile.name if wire and wire.profile else LOOPBACK.name
        self.mode = wire.mode if wire else Wire().mode
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

    @property
    def schemes(self) -> tuple[Scheme, ...]:
        """The schemes that were asked for, in order."""
        return self._schemes

    def of(self, scheme: Scheme) -> Parties:
        """The parties that run `scheme`; KeyError where it was not asked for."""
        return self._started[started_for(scheme)]


Running = SchemeParties | Parties


@contextmanager
def parties_on(
    schemes: Sequence[Scheme], place: NetworkProfile = LOOPBACK, threads: int = 1, emulate: Emulation = "link"
) -> Iterator[SchemeParties]:
    """Parties of all `schemes` on loopback, or for another profile on that network, emulated as `emulate` says.

    Raises ValueError or RuntimeError before any party starts, where there cannot be a shaped link, or where a scheme
    over gloo is to be emulated by the `transport`.
    """
    with ExitStack() as stack:
        wire = None
        if place != LOOPBACK and emulate == "transport":
            if any(scheme.transport != "direct" for scheme in schemes):
                raise ValueError(GLOO_HIDES_HOPS)
            wire = Wire(profile=place, emulation="transport")
        elif place != LOOPBACK:
            wire = stack.enter_context(shaped_link(place, max(map(processes, schemes))))
        yield stack.enter_context(SchemeParties(schemes, threads, wire))


@dataclass(frozen=True, slots=True)
class Stage:
    """Schemes that run side by side on `place`, emulated as `emulation` says, and what their logs are replayed on."""

    place: NetworkProfile
    emulation: Emulation
    schemes: tuple[Scheme, ...]
    replays: Mapping[Scheme, tuple[NetworkProfile, ...]] = field(default_factory=dict)


def stages_of(
    schemes: Sequence[Scheme], networks: Sequence[NetworkProfile], emulate: Emulation | Literal["replay"] | None = None
) -> list[Stage]:
    """Where to run `schemes`, so that there are seconds of all of them on all `networks`.

    With `transport` or `link` everything runs on every network, emulated so. With `replay` it runs on loopback, and the
    networks are replayed; where nothing is said, those over gloo are, and those over direct links run on each network
    emulated by the transport as well. Raises ValueError for gloo on an emulating transport.
    """
    everything, away = tuple(schemes), tuple(profile for profile in networks if profile != LOOPBACK)
    if emulate == "transport" and any(scheme.transport != "direct" for scheme in schemes):
        raise ValueError(GLOO_HIDES_HOPS)
    if emulate in ("transport", "link"):
        return [Stage(profile, emulate, everything) for profile in networks]
    direct = tuple(scheme for scheme in schemes if scheme.transport == "direct" and emulate is None)
    replays = {scheme: away for scheme in schemes if scheme not in direct}
    emulated = [Stage(profile, "transport", direct) for profile in away if direct]
    return [Stage(LOOPBACK, "link", everything, replays), *emulated]


def processes(scheme: Scheme) -> int:
    """How many processes a scheme is run by: its parties, and a third-party dealer where it has one."""
    return scheme.parties + (scheme.dealer == "ttp")


def schemes_of(running: Running) -> tuple[Scheme, ...]:
    """The schemes that `running` was started for."""
    return (running.scheme,) if isinstance(running, Parties) else running.schemes


def run_in_turn(
    running: Running,
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
            parties = running if isinstance(running, Parties) else running.of(scheme)
            declared = (ranges or {}).get(scheme, NOTHING_DECLARED)
            run = run_module(parties, module, inputs, scheme, roles, 1, warm_up=1, ranges=declared)
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
        outside=max((run.outside for run in runs if run.outside is not None), default=None),
    )


def ranges_for(
    schemes: Sequence[Scheme], module: nn.Module, others: Tensor, declared: Ranges | None = None
) -> dict[Scheme, Ranges]:
    """Ranges for every tuned scheme among `schemes`: the `declared` ones, or calibrated where there are none.

    Calibration is on plain inputs, `others` than those that are measured: what is measured nobody may see.
    """
    tuned = [scheme for scheme in schemes if scheme.name == "tuned"]
    if declared is not None:
        return dict.fromkeys(tuned, declared)
    with torch.no_grad():
        return {scheme: declared_ranges(module, others, scheme) for scheme in tuned}
