"""A search or a retraining as a run: its directory, what it was asked for, and the specs in front/ that it leaves."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench.machine import usable_cores
from bench.run_directory import RunDirectory
from cost_models.calibration import load_default
from cost_models.latency_term import MixtureLatency, mixture_latency
from models.names import spec_named
from models.spec import ViTSpec
from mpc.network import network
from mpc.scheme import Scheme
from nas.binarise import binarise
from nas.budget import binarise_within
from nas.data import load
from nas.jobs import Job, run_jobs
from nas.objectives import L1, Latency, Objective
from nas.retrain import retrain, train_teacher
from nas.scalars import tensorboard_writer
from nas.search_mpcvit import search, zero_shot_accuracy
from nas.settings import DEMO_L1_WEIGHT, DEMO_LATENCY_WEIGHT, DEMO_RETRAIN, DEMO_SEARCH, TrainSettings

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


def search_on_link(
    out: Path, request: SearchRequest, scheme: Scheme, on_epoch: Callable[[Record, int], None]
) -> Record:
    """MPCViT's search under the latency of a link, binarised at every ratio and within the budget; specs go to front/.

    Other ratios or another budget for the same search train nothing again. Raises ValueError where the machine is not
    calibrated for `scheme`, or the budget cannot be met.
    """
    spec = spec_named(request.model)
    latency = None if request.link == "l1" else _latency(spec, request, scheme)
    if request.budget and latency is not None:  # one that nothing meets is refused before anything is trained
        undecided = torch.full((len(spec.blocks), max(spec.heads), len(request.kinds)), 1 / len(request.kinds))
        binarise_within(undecided, latency, parse_budget(request.budget)[0], request.kinds[0])
    dataset = load(request.data, spec.image_px)
    asked = {key: value for key, value in asdict(request).items() if key not in ("ratios", "budget")}
    run = RunDirectory.start(out, "search mpcvit", {**asked, **scheme.to_json()}, (request.seed,))
    objective: Objective
    weight = request.weight
    if latency is None:
        objective = L1(DEMO_L1_WEIGHT if weight is None else weight, request.kinds, request.kinds[0])
    else:
        objective = Latency(latency, DEMO_LATENCY_WEIGHT if weight is None else weight)
    settings = _lasting(DEMO_SEARCH, request.epochs)

    curves = tensorboard_writer(run.path / "tensorboard")

    def heard(record: Record) -> None:
        curves(record)
        on_epoch(record, settings.total_epochs)

    result = search(spec, dataset, objective, settings, request.seed, run.path / "search", heard)
    run.write_records("search", result.records)
    keep = request.kinds[0]
    choices = {f"{ratio:g}": binarise(result.p_LHK, request.kinds, ratio, keep=keep) for ratio in request.ratios}
    if request.budget and latency is not None:
        choices["budget"] = binarise_within(result.p_LHK, latency, parse_budget(request.budget)[0], keep)
    rows = [
        {
            "name": name,
            "heads": [layer.count(keep) for layer in chosen],
            "accuracy": zero_shot_accuracy(result, chosen, dataset),
            "seconds": latency.exact_s(chosen) if latency else None,
            "spec": str(run.write_json(f"front/{name}.json", spec.with_kinds(chosen).to_json())),
        }
        for name, chosen in choices.items()
    ]
    return {"run": str(run.path), "objective": objective.name, "accuracy": result.accuracy, "front": rows}


def _lasting(settings: TrainSettings, epochs: int | None) -> TrainSettings:
    """The settings for another number of epochs, at most half of them warm-up; unchanged where None is given."""
    if epochs is None:
        return settings
    return replace(settings, epochs=epochs, warmup_epochs=min(settings.warmup_epochs, epochs / 2))


def _latency(spec: ViTSpec, request: SearchRequest, scheme: Scheme) -> MixtureLatency:
    cost_model = load_default(scheme)
    if cost_model is None:
        raise ValueError(
            f"a latency term needs a calibration of this machine for {scheme.label}; "
            f"run: mpc-pareto calibrate --scheme {scheme.name} --functions {scheme.functions}"
        )
    return mixture_latency(spec, request.kinds, cost_model, scheme, network(request.link))


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
        run_jobs([Job("teacher", train_teacher, given)], 1, heard)
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
    trained = run_jobs(jobs, min(usable_cores(), len(jobs)), heard)
    return [
        {"name": job.name, "accuracy": result.accuracy, "folder": str(result.folder)}
        for job, result in zip(jobs, trained, strict=True)
    ]
