"""What joins the folders: calibrating on parties, measuring what a search found, comparing what was found for whom."""

from __future__ import annotations

import json
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.attention import spread, traffic_json
from bench.infer import Inference, infer
from bench.machine import this_machine, usable_cores
from bench.run_directory import RunDirectory
from bench.secure_run import SecureRun, run_module
from cost_models.calibration import CalibrationPlan, Workload, load_default, observe, to_record
from cost_models.evaluation import evaluate
from cost_models.latency_term import MixtureLatency, mixture_latency
from cost_models.linear import CostModel, fit
from cost_models.replay import replay
from models.names import spec_named
from models.spec import ViTSpec
from models.vit import VisionTransformer
from mpc.network import LOOPBACK, NetworkProfile, network
from mpc.parties import Parties
from mpc.scheme import Scheme
from nas.binarise import binarise
from nas.budget import binarise_within
from nas.data import load
from nas.jobs import Job, run_jobs
from nas.objectives import L1, Latency, Objective
from nas.retrain import retrain, train_teacher
from nas.search_mpcvit import search, zero_shot_accuracy
from nas.settings import DEMO_L1_WEIGHT, DEMO_LATENCY_WEIGHT, DEMO_RETRAIN, DEMO_SEARCH, TrainSettings

Record = dict[str, Any]
OnRun = Callable[[int, int, str], None]


def calibrate(parties: Parties, plan: CalibrationPlan, scheme: Scheme, on_run: OnRun = lambda *_: None) -> Record:
    """Run the plan on `parties`, fit the cost model, test it on what was held out; the calibration record.

    Workloads of the fit and of the test are interleaved, one run each in every pass.
    """
    samples: dict[int, list[SecureRun]] = defaultdict(list)
    workloads = [*plan.fit, *plan.held_out]
    schedule = list(plan.schedule())
    run_module(parties, schedule[0].module, _workload_input(schedule[0]), scheme)  # first-call costs are nobody's
    for number, workload in enumerate(schedule):
        on_run(number, len(schedule), f"{workload.what}, {workload.shape}")
        samples[workloads.index(workload)].append(
            run_module(parties, workload.module, _workload_input(workload), scheme)
        )
    on_run(len(schedule), len(schedule), "fit")
    observations = []
    for index, workload in enumerate(workloads):
        runs = samples[index]
        online_s, dealer_s = [run.online_s[0] for run in runs], [run.dealer_s[0] for run in runs]
        observations.append(observe(workload, runs[0].trace, scheme, online_s, dealer_s))
    fitted, held_out = observations[: len(plan.fit)], observations[len(plan.fit) :]
    model = fit(fitted)
    return to_record(model, evaluate(model, fitted, fitted), evaluate(model, held_out, fitted))


def _workload_input(workload: Workload) -> Tensor:
    return torch.randn(workload.input_shape, generator=torch.Generator().manual_seed(1))


def replayed_attention(run: SecureRun, record: Record, networks: Iterable[NetworkProfile]) -> list[Record]:
    """The record of an attention layer on other links: loopback seconds plus what the link adds, sample by sample."""
    records = []
    for link in networks:
        link_s = _link_s(run, link)
        online = spread([sample + link_s for sample in run.online_s])
        seconds = {"online": online, "dealer": record["seconds"]["dealer"], "total": None}
        per_image_s = online["median"] / record["shape"]["batch"]
        changes = {"network": link.name, "mode": "replayed", "seconds": seconds, "seconds_per_image": per_image_s}
        records.append({**record, **changes})
    return records


def _link_s(run: SecureRun, network: NetworkProfile) -> float:
    online = replay(run.log, network).online
    return online.delay_s + online.transfer_s


def candidate_record(
    parties: Parties,
    name: str,
    network: VisionTransformer,
    found: Mapping[str, Any],
    images: Tensor,
    labels: Tensor,
    cost_model: CostModel,
    links: Sequence[NetworkProfile],
    repeats: int = 5,
    batch: int = 16,
    on_batch: Callable[[int, int], None] = lambda *_: None,
) -> Record:
    """Measure a trained network: secure accuracy on `images`, latency of one image on loopback, replayed on `links`.

    `found` brings what training knows: accuracy, found_by, seed and ratio. Predicted seconds stand beside measured.
    """
    scheme = parties.scheme
    inference = infer(parties, network, images, labels, batch=batch, progress=on_batch)
    run = run_module(parties, network, images[:1], repeats=repeats, warm_up=1)
    profiles = (LOOPBACK, *links)
    return {
        "record": "candidate",
        "name": name,
        **found,
        "kinds": [list(block.kinds) for block in network.spec.blocks],
        "params": sum(parameter.numel() for parameter in network.parameters()),
        "macs": run.trace.macs,
        **_secure_figures(inference),
        "seconds": {p.name: _interval(cost_model, run, p) for p in profiles},
        "measured_s": {p.name: _measured(run, p) for p in profiles},
        "by_op_s": {p.name: by_op_s(run, p) for p in profiles},
        **traffic_json(run),
        "scheme": scheme.to_json(),
        "peak_bytes": run.peak_bytes,
        "machine": this_machine(),
    }


def _secure_figures(inference: Inference) -> Record:
    outside = [domain for domain in inference.domains if not domain["inside"]]
    return {
        "secure_accuracy": inference.secure_accuracy,
        "secure_images": len(inference.plain_logits),
        "agreement": inference.agreement,
        "max_logit_difference": inference.max_logit_difference,
        "min_plain_margin": inference.min_plain_margin,
        "functions_outside_their_domain": outside,
    }


def _interval(cost_model: CostModel, run: SecureRun, network: NetworkProfile) -> Record:
    estimate = cost_model.seconds(run.trace, run.scheme, network)
    return {"p50": estimate.p50_s, "p05": estimate.p05_s, "p95": estimate.p95_s, "mode": "predicted"}


def _measured(run: SecureRun, network: NetworkProfile) -> Record:
    link_s = 0.0 if network is LOOPBACK else _link_s(run, network)
    mode = "measured" if network is LOOPBACK else "replayed"
    return {**spread([sample + link_s for sample in run.online_s]), "mode": mode}


def by_op_s(run: SecureRun, network: NetworkProfile) -> dict[str, float]:
    """Online seconds by operation on `network`; work after the last message is under `other`."""
    return {op or "other": seconds.total_s for op, seconds in replay(run.log, network).by_op.items()}


def network_rows(
    run: SecureRun, model: str, batch: int, max_abs_error: float, links: Sequence[NetworkProfile]
) -> list[Record]:
    """A record of a whole network on loopback, measured, and one on each link, replayed."""
    rows = []
    for link in (LOOPBACK, *links):
        online = _measured(run, link)
        row = {
            "record": "network",
            "workload": "model",
            "model": model,
            "batch": batch,
            "scheme": run.scheme.to_json(),
            "roles": run.roles.to_json(),
            "network": link.name,
            "mode": online.pop("mode"),
            **traffic_json(run),
            "seconds": {"online": online, "dealer": spread(run.dealer_s)},
            "seconds_per_image": online["median"] / batch,
            "by_op_s": by_op_s(run, link),
            "peak_bytes": run.peak_bytes,
            "max_abs_error": max_abs_error,
            "machine": this_machine(),
        }
        rows.append(row)
    return rows


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

    Raises ValueError where the machine is not calibrated for `scheme`, or the budget cannot be met.
    """
    spec = spec_named(request.model)
    latency = None if request.link == "l1" else _latency(spec, request, scheme)
    dataset = load(request.data, spec.image_px)
    run = RunDirectory.start(out, "search mpcvit", {**asdict(request), **scheme.to_json()}, (request.seed,))
    objective: Objective
    weight = request.weight
    if latency is None:
        objective = L1(DEMO_L1_WEIGHT if weight is None else weight, request.kinds, request.kinds[0])
    else:
        objective = Latency(latency, DEMO_LATENCY_WEIGHT if weight is None else weight)
    settings = _lasting(DEMO_SEARCH, request.epochs)

    def heard(record: Record) -> None:
        on_epoch(record, settings.total_epochs)

    result = search(spec, dataset, objective, settings, request.seed, run.path / "search", heard)
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
        raise ValueError("a latency term needs a calibration of this machine; run: mpc-pareto calibrate")
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


def cross_table(
    found: Sequence[tuple[str, int, float, Sequence[Sequence[str]]]], latencies: Mapping[str, MixtureLatency], keep: str
) -> Record:
    """Networks found for one link, predicted on every link: a row for each, and a verdict with the spread over seeds.

    `found` holds objective, seed, ratio and the kinds of every head; `latencies` the cost model's seconds by link.
    """
    rows = [
        {
            "found_for": objective,
            "seed": seed,
            "ratio": ratio,
            "seconds": {name: latency.exact_s(kinds) for name, latency in latencies.items()},
            f"{keep}_heads": [list(layer).count(keep) for layer in kinds],
        }
        for objective, seed, ratio, kinds in found
    ]
    return {"schema": 1, "record": "cross_table", "rows": rows, "verdict": _verdict(rows, list(latencies), keep)}


def _verdict(rows: Sequence[Record], links: Sequence[str], keep: str) -> str:
    """One sentence for each pair of links: how much slower a link's networks are than those found for it."""
    sentences = []
    for here in links:
        own = _by_case(rows, f"latency@{here}")
        for other in links:
            foreign = _by_case(rows, f"latency@{other}")
            cases = sorted(own.keys() & foreign.keys())
            if other == here or not cases:
                continue
            ratios = [foreign[case]["seconds"][here] / own[case]["seconds"][here] - 1 for case in cases]
            differing = sum(own[case][f"{keep}_heads"] != foreign[case][f"{keep}_heads"] for case in cases)
            deviation = statistics.stdev(ratios) if len(ratios) > 1 else 0.0
            sentences.append(
                f"On {here}, networks found for {other} take {statistics.mean(ratios):+.1%} "
                f"(standard deviation {deviation:.1%} over {len(cases)} pairs of seed and ratio; "
                f"heads per layer differ in {differing})"
            )
    return "; ".join(sentences) + "." if sentences else "Only one link was searched for: nothing to compare."


def _by_case(rows: Sequence[Record], objective: str) -> dict[tuple[int, float], Record]:
    return {(row["seed"], row["ratio"]): row for row in rows if row["found_for"] == objective}
