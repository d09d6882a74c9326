"""What was measured, ready to be fitted or to test a fit: operations of a sweep, and whole workloads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Protocol

from mpc.network import LOOPBACK, NetworkProfile
from mpc.scheme import Scheme
from mpc.trace import Operation, Trace


class TimedSpan(Protocol):
    """One operation of a run; `until_s` are the online seconds up to its end. `mpc.ledger.Span` is one."""

    @property
    def until_s(self) -> float: ...  # noqa: D102


class TimedLog(Protocol):
    """What one party ran, in order; `mpc.ledger.MessageLog` is one."""

    @property
    def spans(self) -> Sequence[TimedSpan]: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class OperationSamples:
    """One operation and its online seconds in several runs; `what` names it in records.

    `even_s` are the same at an even pace of the machine (`cost_models.pacing`), where that is known. Raises ValueError
    without samples or for seconds that are not positive.
    """

    what: str
    operation: Operation
    online_s: tuple[float, ...]
    even_s: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _demand_positive(self.what, self.online_s)
        if self.even_s:
            _demand_positive(self.what, self.even_s)

    @property
    def steadiest_s(self) -> tuple[float, ...]:
        """The seconds that scatter least: those at an even pace, where they are known."""
        return self.even_s or self.online_s

    @property
    def usual_s(self) -> float:
        """Their median."""
        return median(self.steadiest_s)

    @property
    def median_s(self) -> float:
        """Median online seconds over the runs."""
        return median(self.online_s)


@dataclass(frozen=True)
class Observation:
    """One workload that was run: its trace and seconds of every run, `online_s` of the slowest party.

    `what` and `shape` name it in records. `heads` holds, where
    that makes sense, traces of its heads one by one, for the baseline that sums over heads. `alone` marks an operation
    that ran by itself, again and again. `op_s` holds the median online seconds of every operation of the trace, where
    they were timed. Raises ValueError without runs or for seconds that are not positive.
    """

    what: str
    shape: str
    trace: Trace
    scheme: Scheme
    online_s: tuple[float, ...]
    dealer_s: tuple[float, ...] = ()
    network: NetworkProfile = LOOPBACK
    heads: tuple[Trace, ...] = ()
    mode: str = "measured"
    alone: bool = False
    op_s: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _demand_positive(f"{self.what} {self.shape}", self.online_s)
        if self.op_s and len(self.op_s) != len(self.trace.operations):
            raise ValueError(
                f"{self.what} {self.shape}: {len(self.op_s)} op_s for {len(self.trace.operations)} operations"
            )
        if not all(math.isfinite(s) and s >= 0 for s in self.dealer_s):
            raise ValueError(f"{self.what} {self.shape}: dealer_s must hold seconds >= 0, got {self.dealer_s}")

    @property
    def median_s(self) -> float:
        """Median online seconds over the runs."""
        return median(self.online_s)


def _demand_positive(what: str, online_s: Sequence[float]) -> None:
    if not online_s or not all(math.isfinite(s) and s > 0 for s in online_s):
        raise ValueError(f"{what}: online_s must hold positive seconds, got {online_s}")


def operation_seconds(trace: Trace, logs: Sequence[TimedLog]) -> list[float]:
    """Online seconds of every operation of `trace` in one run, the mean over its parties.

    What Python does between two operations counts for the second, so that the seconds of all add up to
    the parties' mean, but for what follows the last.
    Raises ValueError where a log holds fewer operations than the trace.
    """
    seconds = [0.0] * len(trace.operations)
    for log in logs:
        if len(log.spans) < len(trace.operations):
            raise ValueError(f"a log of {len(log.spans)} operations cannot time a trace of {len(trace.operations)}")
        before_s = 0.0
        for number, span in enumerate(log.spans[: len(trace.operations)]):
            seconds[number] += (span.until_s - before_s) / len(logs)
            before_s = span.until_s
    return seconds
