"""What a search found, measured: its front on real parties, and a budget that is met by measured seconds only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Self

import torch

from bench.attention import spread
from bench.machine import this_machine
from bench.run_directory import RunDirectory
from bench.running import SchemeParties, parties_on
from bench.secure_run import run_module
from bench.shaped_link import why_not
from cost_models.linear import CostModel
from cost_models.replay import replay
from models.spec import ViTSpec
from models.vit import VisionTransformer
from mpc.network import LOOPBACK, Emulation, NetworkProfile
from mpc.reading import shape_reading
from mpc.scheme import Scheme
from nas.runs import Searched

Record = dict[str, Any]
OnRun = Callable[[int, int, str], None]
TRIES = 4  # networks that are measured for one budget


@dataclass(frozen=True, slots=True)
class Place:
    """Where networks are run so that their seconds on `link` are known, and the `mode` that records name."""

    link: NetworkProfile
    stage: NetworkProfile
    emulation: Emulation
    mode: str


def place_for(scheme: Scheme, link: NetworkProfile) -> Place:
    """On `link`, emulated by the transport where that is direct, else by a shaped link; where none can be, replayed.

    gloo's collectives hide their hops from the transport; a shaped link needs root on Linux.
    """
    if link == LOOPBACK:
        return Place(link, link, "link", "measured")
    if scheme.transport == "direct":
        return Place(link, link, "transport", "emulated-transport")
    if why_not() is None:
        return Place(link, link, "link", "emulated-link")
    return Place(link, LOOPBACK, "link", "replayed")


@dataclass
class Remeasuring:
    """Parties that measure networks for a run, started when the first one is not measured yet; a context manager.

    Weights are drawn afresh from `seed`: seconds do not depend on them. The tuned scheme takes its default ranges, as
    the prediction does. What is measured is kept in the run, by spec, place and machine, and is not measured again.
    """

    run: RunDirectory
    scheme: Scheme
    place: Place
    cost_model: CostModel | None
    repeats: int = 5
    seed: int = 0
    _stack: ExitStack = field(default_factory=ExitStack, repr=False)
    _running: SchemeParties | None = field(default=None, repr=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._running = None
        self._stack.close()

    def measure(self, specs: Mapping[str, ViTSpec], on_run: OnRun = lambda *_: None) -> dict[str, Record]:
        """A record of each network by name; networks that are alike are measured once, different ones interleaved."""
        different: dict[ViTSpec, str] = {}
        for name, spec in specs.items():
            different.setdefault(spec, name)
        samples: dict[ViTSpec, list[Record]] = {spec: [] for spec in different}
        total = self.repeats * len(different)
        for number in range(self.repeats):
            for index, (spec, name) in enumerate(different.items()):
                on_run(number * len(different) + index, total, name)
                samples[spec].append(self._once(spec, number))
        on_run(total, total, "measured")
        return {name: self._record(name, spec, samples[spec]) for name, spec in specs.items()}

    def _once(self, spec: ViTSpec, number: int) -> Record:
        """The run of that number of a network, after one that is not timed; from disk where it was done before."""
        what = [spec.to_json(), self.scheme.to_json(), repr(self.place), self._wake_s, self.seed]
        what.append(this_machine().label)
        key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]
        measured: Record = self.run.step(f"remeasure-{key}-{number}", lambda: self._run(spec))
        return measured

    def _run(self, spec: ViTSpec) -> Record:
        run = run_module(
            self._started().of(self.scheme), fresh(spec, self.seed), image(spec, self.seed), self.scheme, warm_up=1
        )
        seconds = run.online_s[0]
        if self.place.mode == "replayed":
            seconds = replay(run.logs, self.place.link, wake_s=self._wake_s).online.total_s
        online = run.traffic.online
        traffic = {"rounds": max(online.rounds), "bytes": max(online.bytes), "hops": max(online.hops)}
        return {"online_s": seconds, "online": traffic}

    @property
    def _wake_s(self) -> float:
        return self.cost_model.wake_s if self.cost_model and self.place.mode == "replayed" else 0.0

    def _started(self) -> SchemeParties:
        if self._running is None:
            parties = parties_on([self.scheme], self.place.stage, emulate=self.place.emulation)
            self._running = self._stack.enter_context(parties)
        return self._running

    def _record(self, name: str, spec: ViTSpec, samples: list[Record]) -> Record:
        measured = spread([sample["online_s"] for sample in samples])
        predicted = self._predicted(spec)
        return {
            "record": "remeasured",
            "name": name,
            "kinds": [list(block.kinds) for block in spec.blocks],
            "network": self.place.link.name,
            "mode": self.place.mode,
            "scheme": self.scheme.to_json(),
            "online": samples[0]["online"],
            "measured_s": measured,
            "predicted_s": predicted,
            "ratio": predicted["p50"] / measured["median"] if predicted else None,
            "within_90": predicted["p05"] <= measured["median"] <= predicted["p95"] if predicted else None,
            "machine": this_machine().to_json(),
        }

    def _predicted(self, spec: ViTSpec) -> Record | None:
        if self.cost_model is None:
            return None
        trace = shape_reading(fresh(spec, self.seed), tuple(image(spec, self.seed).shape), self.scheme.weights)
        return self.cost_model.seconds(trace, self.scheme, self.place.link).to_json()


def fresh(spec: ViTSpec, seed: int) -> VisionTransformer:
    """The network with weights drawn from `seed`; the caller's generator stays put."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VisionTransformer(spec).eval()


def image(spec: ViTSpec, seed: int) -> torch.Tensor:
    """One random image for it."""
    shape = (1, spec.in_channels, spec.image_px, spec.image_px)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + 1))


@dataclass(frozen=True, slots=True)
class Settled:
    """A front after it was measured: its rows and records, and whether the budget is met (None where none was asked).

    `budget` is the record of the network that meets it, else of the fastest that was tried for it.
    """

    front: tuple[Record, ...]
    remeasured: tuple[Record, ...]
    budget: Record | None
    budget_met: bool | None


def settle(
    searched: Searched, front: Sequence[Record], remeasuring: Remeasuring, on_run: OnRun = lambda *_: None
) -> Settled:
    """Measure the front of a search; where a budget is met by prediction only, choose again within a scaled limit.

    The limit of the next choice is the budget x predicted / measured, so that each is predicted to be faster than the
    one before; at most TRIES are measured. `front` are the search's rows. front/budget.json is the one that meets the
    budget by measured seconds, and is removed where none does. All records are the run's remeasured.jsonl.
    """
    specs = {name: searched.spec(chosen) for name, chosen in searched.front.items()}
    records = remeasuring.measure(specs, on_run)
    tried = _tries(searched, remeasuring, records.pop("budget"), on_run) if "budget" in records else []
    met = tried[-1]["budget"]["met"] if tried else None
    rows = list(front)
    if met is False or len(tried) > 1:
        rows = [row for row in rows if row["name"] != "budget"]
        (searched.run.front / "budget.json").unlink(missing_ok=True)
    if met and len(tried) > 1:
        rows.append(searched.row("budget", _kinds(tried[-1])))
    remeasured = [*records.values(), *tried]
    searched.run.write_records("remeasured", remeasured)
    last = min(tried, key=_median_s) if tried and not met else tried[-1] if tried else None
    return Settled(tuple(rows), tuple(remeasured), last, met)


def _tries(searched: Searched, remeasuring: Remeasuring, first: Record, on_run: OnRun) -> list[Record]:
    """Records of the networks that were measured for the budget, in order; only the last can meet it."""
    asked_s = searched.budget_s
    assert asked_s is not None
    limit_s, tried, record = asked_s, [], first
    while True:
        met = _median_s(record) <= asked_s
        tried.append({**record, "budget": {"asked_s": asked_s, "limit_s": limit_s, "met": met}})
        if met or len(tried) == TRIES:
            break
        predicted_s = searched.predicted_s(_kinds(record))
        assert predicted_s is not None
        limit_s = asked_s * predicted_s / _median_s(record)
        try:
            chosen = searched.within(limit_s)
        except ValueError:  # nothing is predicted to be that fast
            break
        record = remeasuring.measure({"budget": searched.spec(chosen)}, on_run)["budget"]
    last = len(tried) if not tried[-1]["budget"]["met"] else len(tried) - 1
    return [{**r, "name": f"budget, try {i + 1}"} if i < last else r for i, r in enumerate(tried)]


def _median_s(record: Record) -> float:
    return float(record["measured_s"]["median"])


def _kinds(record: Record) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(layer) for layer in record["kinds"])
