"""Seconds of a trace: fitted compute of every operation + hops x one-way delay + bytes / bandwidth + slow start.

Only compute is fitted, on loopback, where it is everything that the parties' processes do: arithmetic, Python, and
handing tensors to the transport. Rounds, bytes and hops are counted.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from statistics import NormalDist
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from cost_models.correction import Correction
from cost_models.features import PLACES, UNITS, Vector, counts, largest_message_bytes, model_key, moved_bytes
from cost_models.waking import resume_s
from mpc.congestion import LINUX, ramp_s
from mpc.network import LOOPBACK, NetworkProfile
from mpc.scheme import Scheme
from mpc.trace import Operation, Trace, operation_traffic
from mpc.traffic import PhaseTraffic

SCHEMA = 4
RECORD = "calibration"
_SCALES = "common", "independent", "jitter_s", "pace", "hours"
_HOPS_A_ROUND = {"gloo": 4, "direct": 1}  # of most messages, for how long a process sleeps for one
POOLED = ""  # key of the coefficients for operations that were not in the sweep

Coefficients = Mapping[str, float]
Numbers = TypeVar("Numbers", float, NDArray[np.float64])


class MachineWarning(UserWarning):
    """A cost model was fitted on another machine: rounds and bytes still hold, its seconds may not."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one pass over some operations costs; costs of operations in a row add up, but for the largest message.

    `compute_s` is fitted, of the slowest party on loopback; `compute_s2` is the sum of its squares over operations,
    which says how far their errors can cancel. `largest_bytes` is the payload of the largest online message.
    """

    compute_s: float
    compute_s2: float
    operations: int
    online: PhaseTraffic
    largest_bytes: int

    @classmethod
    def zero(cls, parties: int) -> Cost:
        """Nothing at all."""
        return cls(0.0, 0.0, 0, PhaseTraffic.zero(parties), 0)

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.compute_s + other.compute_s,
            self.compute_s2 + other.compute_s2,
            self.operations + other.operations,
            self.online + other.online,
            max(self.largest_bytes, other.largest_bytes),
        )


@dataclass(frozen=True, slots=True)
class Estimate:
    """Predicted seconds of one workload: median, 50 % (p25 to p75) and 90 % (p05 to p95) intervals.

    The intervals are for the median of some runs of a workload that was not fitted, on the machine at a pace that it
    had when it was calibrated, now or before. `compute_s`, `delay_s` and `transfer_s` add up to the median.
    """

    p50_s: float
    p05_s: float
    p25_s: float
    p75_s: float
    p95_s: float
    compute_s: float
    delay_s: float
    transfer_s: float

    def to_json(self) -> dict[str, float]:
        """Plain values for a record."""
        parts = {"compute_s": self.compute_s, "delay_s": self.delay_s, "transfer_s": self.transfer_s}
        quantiles = {"p05": self.p05_s, "p25": self.p25_s, "p75": self.p75_s, "p95": self.p95_s}
        return {"p50": self.p50_s, **quantiles, **parts}


QUANTILES = (0.05, 0.25, 0.75, 0.95)
_NORMAL = tuple(NormalDist().inv_cdf(level) for level in QUANTILES)
LINK_SIDES = tuple(each / _NORMAL[-1] for each in _NORMAL)  # of the spread on links, which is a 95 % quantile


@dataclass(frozen=True, slots=True)
class Spread:
    """How far the logarithm of measured seconds lies from that of predicted ones.

    What the fit missed has the scale sqrt(common^2 + independent^2 sum(w^2) + (jitter_s / seconds)^2), w being each
    operation's share of compute: what all operations share, what cancels between them, what a short run cannot average
    out. `scores` are the QUANTILES of residual / scale on workloads that were left out of the fit (conformal
    prediction, so that intervals hold whatever the distribution). Those residuals are of the same passes as the fit, so
    they cannot know how far the machine's own pace may lie in as many other minutes (`pace`), nor how far it did in
    other hours (`hours`, see `cost_models.hours`): standard deviations, taken as normal and as independent of what the
    fit missed. Raises ValueError for negative scales or quantiles out of order.
    """

    common: float
    independent: float
    jitter_s: float
    scores: tuple[float, float, float, float]
    pace: float = 0.0
    hours: float = 0.0

    def __post_init__(self) -> None:
        scales = self.common, self.independent, self.jitter_s, self.pace, self.hours
        if min(scales) < 0 or sorted(self.scores) != list(self.scores):
            raise ValueError(f"a spread has scales >= 0 and quantiles in order, got {self}")

    def scale(self, compute_s: float, shares2: float) -> float:
        """The scale of what the fit missed, in logarithms; `shares2` is sum(w^2), 1 for one operation."""
        if compute_s <= 0:
            return 0.0
        return math.sqrt(self.common**2 + self.independent**2 * shares2 + (self.jitter_s / compute_s) ** 2)

    def sides(self, compute_s: float, shares2: float) -> list[float]:
        """The QUANTILES of the log residual of compute; `shares2` as in `scale`.

        Independent deviations add up in squares, from the middle of the scores' quartiles outwards.
        """
        scale = self.scale(compute_s, shares2)
        drift = math.hypot(self.pace, self.hours)
        middle = (self.scores[1] + self.scores[2]) / 2
        return [
            middle * scale + math.copysign(math.hypot((score - middle) * scale, normal * drift), normal)
            for score, normal in zip(self.scores, _NORMAL, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class InNetwork:
    """What an operation takes inside a network, beside what it takes alone.

    That is `more_s` seconds more, `times` as long, and `byte_s` for each byte that it sends, reads and makes: alone it
    finds them near, in a network others have been there since. Raises ValueError for what is no number >= 0.
    """

    more_s: float = 0.0
    times: float = 1.0
    byte_s: float = 0.0

    def __post_init__(self) -> None:
        if not all(0 <= value < math.inf for value in astuple(self)):
            raise ValueError(f"more_s, times and byte_s must be numbers >= 0, got {', '.join(map(str, astuple(self)))}")

    def seconds(self, alone_s: float, moved_bytes: float) -> float:
        """Seconds inside a network of what takes `alone_s` and moves `moved_bytes`."""
        return self.more_s + self.times * alone_s + self.byte_s * moved_bytes


@dataclass(frozen=True)
class CostModel:
    """Seconds per unit of each feature (UNITS) for every kind of operation, for one scheme on one machine.

    `operations` holds coefficients by `model_key`, those of unswept operations under POOLED, of operations alone, run
    again and again; `correction` is what similar operations took beyond that. Inside a network an operation finds the
    caches, and rare code, as others left them: it takes `in_networks[key].seconds`, by `model_key` or, for other
    operations, POOLED. `wake_s` is what resuming costs after a long sleep for a message; `threads` is that of each
    party. `link_spread` is None where nothing was measured on links: intervals then hold compute alone. Raises
    ValueError for an unknown feature or a negative coefficient.
    """

    operations: Mapping[str, Coefficients]
    scheme: Scheme
    machine: Mapping[str, Any]
    spread: Spread
    in_networks: Mapping[str, InNetwork] = field(default_factory=lambda: {POOLED: InNetwork()})
    wake_s: float = 0.0
    threads: int = 1
    dealer: Coefficients = field(default_factory=dict)
    link_spread: float | None = None
    correction: Correction = field(default_factory=Correction)
    _costs: dict[Operation, Cost] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("wake_s", "link_spread"):
            if getattr(self, name) is not None and not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a number >= 0, got {getattr(self, name)}")
        if POOLED not in self.operations or POOLED not in self.in_networks:
            raise ValueError("a cost model needs pooled coefficients, for operations that were not in the sweep")
        for coefficients in (*self.operations.values(), self.dealer):
            for name, seconds in coefficients.items():
                if name not in UNITS:
                    raise ValueError(f"unknown feature {name!r}; known: {', '.join(UNITS)}")
                if not (math.isfinite(seconds) and seconds >= 0):
                    raise ValueError(f"the coefficient of {name} must be >= 0 seconds, got {seconds}")

    def at_pace(self, alone: float, inside: float | None = None, apart: float = 0.0) -> CostModel:
        """The model of this machine while operations alone take `alone` times as long as at calibration.

        Networks, resuming and the dealer take `inside` times as long, which is `alone` unless given. The pace is known
        then: beside what the fit missed intervals hold no drift, but how far workloads lie `apart` from that pace, a
        standard deviation in logarithms.
        """
        inside = alone if inside is None else inside
        operations = {key: _times(coefficients, alone) for key, coefficients in self.operations.items()}
        in_networks = {
            key: InNetwork(each.more_s * inside, each.times * inside / alone, each.byte_s * inside)
            for key, each in self.in_networks.items()
        }
        return replace(
            self,
            operations=operations,
            correction=self.correction.at_pace(alone),
            in_networks=in_networks,
            wake_s=self.wake_s * inside,
            dealer=_times(self.dealer, inside),
            spread=replace(self.spread, pace=apart, hours=0.0),
            _costs={},
        )

    def operation_s(self, operation: Operation) -> float:
        """Fitted seconds of one operation on loopback, run by itself again and again."""
        coefficients = self.operations.get(model_key(operation), self.operations[POOLED])
        law_s = weighted(coefficients, counts(operation, self.scheme))
        return law_s * self.correction.factor(operation, law_s, self.scheme)

    def alone(self, operation: Operation) -> Estimate:
        """Online seconds of one operation on loopback, run by itself again and again, with intervals."""
        seconds = self.operation_s(operation)
        return self._estimate(seconds, self.spread.sides(seconds, 1.0), 0.0, 0.0)

    def cost(self, trace: Trace) -> Cost:
        """What one pass of `trace` costs, for any network: add costs, then ask `seconds_of`."""
        total_s = total_s2 = 0.0
        online, largest_bytes = PhaseTraffic.zero(self.scheme.parties), 0
        for operation, times in trace.counts.items():
            one = self._cost_of(operation)
            total_s, total_s2 = total_s + times * one.compute_s, total_s2 + times * one.compute_s2
            online, largest_bytes = online + one.online * times, max(largest_bytes, one.largest_bytes)
        return Cost(total_s, total_s2, len(trace.operations), online, largest_bytes)

    def _cost_of(self, operation: Operation) -> Cost:
        if operation not in self._costs:
            inside = self.in_networks.get(model_key(operation), self.in_networks[POOLED])
            seconds = inside.seconds(self.operation_s(operation), moved_bytes(operation, self.scheme))
            online = operation_traffic(operation, self.scheme).online
            largest = largest_message_bytes(operation, self.scheme)
            self._costs[operation] = Cost(seconds, seconds**2, 1, online, largest)
        return self._costs[operation]

    def seconds(self, trace: Trace, scheme: Scheme, network: NetworkProfile) -> Estimate:
        """Online seconds of one run of `trace` on `network`; ValueError where the model is of another scheme."""
        self.demand(scheme)
        return self.seconds_of(self.cost(trace), network)

    def seconds_of(self, cost: Cost, network: NetworkProfile) -> Estimate:
        """Online seconds of what costs `cost` on `network`.

        The interval of compute is that of calibration; that of the link is `link_spread` either way, the error of the
        replay law on links that were measured.
        """
        delay_s = transfer_s = 0.0
        if network != LOOPBACK:
            hops, sent_bytes, rounds = (
                float(max(each)) for each in (cost.online.hops, cost.online.bytes, cost.online.rounds)
            )
            delay_s = self._delay_s(hops, rounds, network)
            transfer_s = _transfer_s(sent_bytes, network) + self._ramps_s(network, cost.largest_bytes)
        shares2 = cost.compute_s2 / cost.compute_s**2 if cost.compute_s > 0 else 0.0
        return self._estimate(cost.compute_s, self.spread.sides(cost.compute_s, shares2), delay_s, transfer_s)

    def _estimate(self, compute_s: float, sides: Sequence[float], delay_s: float, transfer_s: float) -> Estimate:
        low_s, lower_s, upper_s, high_s = (
            compute_s * math.exp(side) + (delay_s + transfer_s) * math.exp(link_side * (self.link_spread or 0.0))
            for side, link_side in zip(sides, LINK_SIDES, strict=True)
        )
        middle_s = compute_s + delay_s + transfer_s
        low_s, lower_s, upper_s, high_s = (
            min(low_s, middle_s),
            min(lower_s, middle_s),
            max(upper_s, middle_s),
            max(high_s, middle_s),
        )
        return Estimate(middle_s, low_s, lower_s, upper_s, high_s, compute_s, delay_s, transfer_s)

    def p50_of(
        self,
        compute_s: Numbers,
        hops: Numbers,
        sent_bytes: Numbers,
        rounds: Numbers,
        largest_bytes: Numbers,
        network: NetworkProfile,
    ) -> Numbers:
        """The median of `seconds_of`, of the busiest party's sums: floats, or arrays of many networks."""
        ramp_s = 0.0 if network == LOOPBACK else self._ramps_s(network, largest_bytes)
        return self.linear_s(compute_s, hops, sent_bytes, rounds, network) + ramp_s

    def linear_s(
        self, compute_s: Numbers, hops: Numbers, sent_bytes: Numbers, rounds: Numbers, network: NetworkProfile
    ) -> Numbers:
        """The part of the median that adds up over operations: all but slow start."""
        if network == LOOPBACK:
            return compute_s
        return compute_s + self._delay_s(hops, rounds, network) + _transfer_s(sent_bytes, network)

    def _delay_s(self, hops: Numbers, rounds: Numbers, network: NetworkProfile) -> Numbers:
        asleep_s = _HOPS_A_ROUND[self.scheme.transport] * network.one_way_delay_s
        return hops * network.one_way_delay_s + rounds * resume_s(self.wake_s, asleep_s)

    def _ramps_s(self, network: NetworkProfile, largest_bytes: Any) -> Any:
        """Slow start of the largest message; none where what was sent before has widened the windows.

        Opening weights does so, and over gloo, whose connections are kept, the run before.
        """
        opened = self.scheme.name == "tuned" and self.scheme.weights == "private"
        fresh = self.scheme.transport == "direct" and not opened
        return _ramps_s(network, largest_bytes) if fresh else 0.0 * largest_bytes

    def dealer_seconds(self, trace: Trace, scheme: Scheme) -> float:
        """Seconds of the dealer's work for one run of `trace` on loopback, no part of the online seconds.

        Raises ValueError where the model was fitted for another scheme or without dealer seconds.
        """
        self.demand(scheme)
        if not self.dealer:
            raise ValueError("this cost model was fitted without dealer seconds; calibrate again to have them")
        return sum(weighted(self.dealer, counts(operation, scheme)) for operation in trace.operations)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a record, schema first."""
        spread = {name: getattr(self.spread, name) for name in _SCALES}
        return {
            "schema": SCHEMA,
            "record": RECORD,
            "operations": {key: dict(coefficients) for key, coefficients in self.operations.items()},
            "correction": self.correction.to_json(),
            "dealer": dict(self.dealer),
            "in_networks": {key: asdict(each) for key, each in self.in_networks.items()},
            "wake_s": self.wake_s,
            "spread": {**spread, "scores": list(self.spread.scores)},
            "link_spread": self.link_spread,
            "threads": self.threads,
            "scheme": self.scheme.to_json(),
            "machine": dict(self.machine),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> CostModel:
        """The model in a calibration record; more keys than the model's own are left aside.

        Raises ValueError for another schema or record. Warns (MachineWarning) where it was fitted on another machine.
        """
        if record.get("schema") != SCHEMA or record.get("record") != RECORD:
            found = f"schema {record.get('schema')!r}, record {record.get('record')!r}"
            raise ValueError(f"not a calibration of schema {SCHEMA}: {found}; calibrate again with this version")
        spread = dict(record["spread"])
        low, lower, upper, high = spread.pop("scores")
        model = cls(
            operations={key: dict(coefficients) for key, coefficients in record["operations"].items()},
            scheme=Scheme(**record["scheme"]),
            machine=dict(record["machine"]),
            spread=Spread(**spread, scores=(low, lower, upper, high)),
            in_networks={key: InNetwork(**each) for key, each in record["in_networks"].items()},
            wake_s=record["wake_s"],
            threads=record["threads"],
            dealer=dict(record["dealer"]),
            link_spread=record["link_spread"],
            correction=Correction.from_json(record.get("correction")),
        )
        model._warn_of_other_machine()
        return model

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the model to `path`, whole or not at all."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CostModel:
        """The model of a file written by `save` or of a calibration.json; raises and warns as `from_json`."""
        return cls.from_json(json.loads(Path(path).read_text()))

    def demand(self, scheme: Scheme) -> None:
        """Raises ValueError where the model was fitted for another scheme."""
        if scheme == self.scheme:
            return
        mine, asked = self.scheme.to_json(), scheme.to_json()
        differing = ", ".join(f"{key} {asked[key]} (fitted for {mine[key]})" for key in mine if mine[key] != asked[key])
        raise ValueError(
            f"the cost model was fitted for another scheme: {differing}; calibrate under the scheme asked for"
        )

    def _warn_of_other_machine(self) -> None:
        from bench.machine import this_machine

        here = this_machine().label
        if self.machine.get("label") != here:
            there = self.machine.get("label", "an unnamed machine")
            message = f"the cost model was fitted on {there}, this is {here}: calibrate here for seconds that hold"
            warnings.warn(message, MachineWarning, stacklevel=4)


def _transfer_s(sent_bytes: Numbers, network: NetworkProfile) -> Numbers:
    return sent_bytes / (network.bytes_per_s * LINUX.payload_share)


def _ramps_s(network: NetworkProfile, largest_bytes: Any) -> Any:
    """`ramp_s` of one size, or of each of many, few of them different."""
    if np.ndim(largest_bytes) == 0:
        return _ramp_s(network, float(largest_bytes))
    different, places = np.unique(largest_bytes, return_inverse=True)
    return np.array([_ramp_s(network, float(size)) for size in different])[places.reshape(np.shape(largest_bytes))]


_ramp_s = lru_cache(maxsize=10_000)(ramp_s)


def _times(coefficients: Coefficients, pace: float) -> Coefficients:
    return {name: seconds * pace for name, seconds in coefficients.items()}


def weighted(coefficients: Coefficients, counted: Vector) -> float:
    """Seconds of counted features."""
    return float(sum(seconds * counted[PLACES[name]] for name, seconds in coefficients.items()))


def write_json(path: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
    """Writes one JSON file whole or not at all, creating its folder. Raises ValueError for NaN and infinity."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
    partial.replace(path)
