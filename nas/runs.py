"""A search or a retraining as a run: its directory, what it was asked for, and the specs in front/ that it leaves."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench.machine import usable_cores
from bench.run_directory import RunDirectory
from cost_models.calibration import load_default
from cost_models.latency_term import MixtureLatency, mixture_latency
from cost_models.linear import CostModel
from models.names import spec_named
from models.spec import ViTSpec
from mpc.network import network
from mpc.scheme import Scheme
from nas.binarise import KindsPerLayer, binarise
from nas.budget import binarise_within
from nas.data import Dataset, load
from nas.jobs import Job, run_jobs
from nas.objectives import L1, Latency, Objective
from nas.retrain import retrain, train_teacher
from nas.search_mpcvit import SearchResult, search, zero_shot_accuracy
from nas.settings import DEMO_L1_WEIGHT, DEMO_LATENCY_WEIGHT, DEMO_RETRAIN, DEMO_SEARCH, TrainSettings
from nas.tracking import Tracker
from nas.training import OnEpoch, OnUpdate

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """What a search is asked for. `link` names a network or is `l1`; `budget` is such as `latency<=20s@cheetah-wan`.

    A budget names the link itself. `weight` and `epochs` None mean the demo's.
    """

    model: str
    data: str
    link: str
    kinds: tuple[str, ...]
    ratios: tuple[float, ...]
    budget: str | None = None
    weight: float | None = None
    epochs: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.budget is not None and parse_budget(self.budget)[1] != self.link:
            raise ValueError(f"the budget {self.budget} and the latency term on {self.link} name different links")


_BUDGET = re.compile(r"latency<=(?P<seconds>\d+(?:\.\d+)?)s@(?P<link>.+)")


def parse_budget(text: str) -> tuple[float, str]:
    """Seconds and link of `latency<=20s@cheetah-wan`; ValueError for another form or an unknown link."""
    match = _BUDGET.fullmatch(text.replace(" ", ""))
    if match is None:
        raise ValueError(
            f"cannot read the budget {text!r}; write latency<=SECONDSs@NETWORK, as latency<=20s@cheetah-wan"
        )
    return float(match["seconds"]), network(match["link"]).name


@dataclass(frozen=True)
class Searched:
    """A finished search: probabilities, and the kinds of every head of each network of its front, by name.

    `latency` and `cost_model` are None under `l1`, `budget_s` where no budget was asked for.
    """

    run: RunDirectory
    request: SearchRequest
    scheme: Scheme
    result: SearchResult
    dataset: Dataset
    latency: MixtureLatency | None
    cost_model: CostModel | None
    front: Mapping[str, KindsPerLayer]

    @property
    def budget_s(self) -> float | None:
        """Seconds that the budget allows."""
        return parse_budget(self.request.budget)[0] if self.request.budget else None

    def within(self, seconds: float) -> KindsPerLayer:
        """The likeliest choice that is predicted to take at most `seconds`; ValueError where there is none."""
        if self.latency is None:
            raise ValueError("a search under l1 knows no seconds; give it a link: --network cheetah-wan")
        return binarise_within(self.result.p_LHK, self.latency, seconds, self.request.kinds[0])

    def spec(self, chosen: KindsPerLayer) -> ViTSpec:
        """The network of these kinds."""
        return self.result.spec.with_kinds(chosen)

    def predicted_s(self, chosen: KindsPerLayer) -> float | None:
        """Seconds by the search's own latency term; None under l1."""
        return self.latency.exact_s(chosen) if self.latency else None

    def row(self, name: str, chosen: KindsPerLayer) -> Record:
        """Keeps a network as front/NAME.json; accuracy is that right after binarisation, on validation images."""
        return {
            "name": name,
            "heads": [layer.count(self.request.kinds[0]) for layer in chosen],
            "accuracy": zero_shot_accuracy(self.result, chosen, self.dataset),
            "seconds": self.predicted_s(chosen),
            "spec": str(self.run.write_json(f"front/{name}.json", self.spec(chosen).to_json())),
        }

    def to_json(self) -> Record:
        """The run, how well the mixture does, and the front as rows, each kept in front/."""
        rows = [self.row(name, chosen) for name, chosen in self.front.items()]
        found = {"objective": self.result.objective, "accuracy": self.result.accuracy}
        return {"run": str(self.run.path), **found, "front": rows}


def search_on_link(
    out: Path,
    request: SearchRequest,
    scheme: Scheme,
    on_epoch: OnEpoch | None = None,
    on_update: OnUpdate | None = None,
) -> Searched:
    """MPCViT's search under the latency of a link, binarised at every ratio and within the predicted budget.

    Other ratios or another budget for the same search train nothing again. Raises ValueError where the machine is not
    calibrated for `scheme`, or no choice is predicted to meet the budget.
    """
    spec = spec_named(request.model)
    cost_model = None if request.link == "l1" else _cost_model(scheme)
    latency = None
    if cost_model is not None:
        latency = mixture_latency(spec, request.kinds, cost_model, scheme, network(request.link))
    if request.budget and latency is not None:  # one that nothing meets is refused before anything is trained
        undecided = torch.full((len(spec.blocks), max(spec.heads), len(request.kinds)), 1 / len(request.kinds))
        binarise_within(undecided, latency, parse_budget(request.budget)[0], request.kinds[0])
    dataset = load(request.data, spec.image_px)
    asked = {key: value for key, value in asdict(request).items() if key not in ("ratios", "budget")}
    run = RunDirectory.start(out, "search mpcvit", {**asked, **scheme.to_json()}, (request.seed,))
    settings = _lasting(DEMO_SEARCH, request.epochs)
    folder, objective = run.path / "search", _objective(request, latency)
    with Tracker(folder, manifest=run.manifest, on_epoch=on_epoch, on_update=on_update) as tracker:
        told = (tracker.on_epoch, tracker.on_update)
        result = search(spec, dataset, objective, settings, request.seed, folder, *told)
    run.write_records("search", result.records)
    keep = request.kinds[0]
    choices = {f"{ratio:g}": binarise(result.p_LHK, request.kinds, ratio, keep=keep) for ratio in request.ratios}
    found = Searched(run, request, scheme, result, dataset, latency, cost_model, choices)
    if found.budget_s is not None:
        choices["budget"] = found.within(found.budget_s)
    return found


def _objective(request: SearchRequest, latency: MixtureLatency | None) -> Objective:
    weight = request.weight
    if latency is None:
        return L1(DEMO_L1_WEIGHT if weight is None else weight, request.kinds, request.kinds[0])
    return Latency(latency, DEMO_LATENCY_WEIGHT if weight is None else weight)


def _lasting(settings: TrainSettings, epochs: int | None) -> TrainSettings:
    """The settings for another number of epochs, at most half of them warm-up; unchanged where None is given."""
    if epochs is None:
        return settings
    return replace(settings, epochs=epochs, warmup_epochs=min(settings.warmup_epochs, epochs / 2))


def _cost_model(scheme: Scheme) -> CostModel:
    cost_model = load_default(scheme)
    if cost_model is None:
        raise ValueError(
            f"a latency term needs a calibration of this machine for {scheme.label}; run: mpc-pareto calibrate "
            f"--scheme {scheme.name} --functions {scheme.functions} --transport {scheme.transport}"
        )
    return cost_model


def retrain_front(
    path: Path,
    data: str,
    distil: bool,
    token_weight: float | None,
    epochs: int | None,
    seed: int,
    on_epoch: Callable[[int, int, str], None],
) -> list[Record]:
    """Every spec in the run's front/ trained from fresh weights, with a softmax teacher first where asked."""
    run = RunDirectory.existing(path)
    files = sorted(run.front.glob("*.json"))
    if not files:
        raise ValueError(f"{path} has no front/*.json to retrain; run a search into it first")
    specs = {file.stem: ViTSpec.from_json(json.loads(file.read_text())) for file in files}
    settings = _lasting(DEMO_RETRAIN, epochs)
    shared = {"dataset": data, "settings": settings, "seed": seed}
    total = settings.total_epochs * (len(specs) + distil)
    done: dict[str, int] = {}

    def heard(job: Job, record: Mapping[str, Any]) -> None:
        done[job.name] = record["epoch"] + 1
        on_epoch(sum(done.values()), total, job.name)

    teacher = None
    if distil:
        teacher = run.path / "train" / "teacher"
        given = {**shared, "spec": next(iter(specs.values())), "folder": teacher}
        _run_tracked([Job("teacher", train_teacher, given)], run, heard)
    jobs = [
        Job(
            name,
            retrain,
            {
                **shared,
                "spec": spec,
                "folder": run.path / "train" / name,
                "teacher": teacher,
                "token_weight": token_weight,
            },
        )
        for name, spec in specs.items()
    ]
    trained = _run_tracked(jobs, run, heard)
    return [
        {"name": job.name, "accuracy": result.accuracy, "folder": str(result.folder)}
        for job, result in zip(jobs, trained, strict=True)
    ]


def _run_tracked(jobs: Sequence[Job], run: RunDirectory, on_epoch: Callable[[Job, Record], None]) -> list[Any]:
    """The results of trainings on all cores, each drawn in its folder as it goes."""
    with ExitStack() as stack:
        trackers = {
            job.name: stack.enter_context(Tracker(job.arguments["folder"], manifest=run.manifest)) for job in jobs
        }

        def heard(job: Job, record: Record) -> None:
            trackers[job.name].on_epoch(record)
            on_epoch(job, record)

        return run_jobs(jobs, min(usable_cores(), len(jobs)), heard)
