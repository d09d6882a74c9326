"""The whole path, small: attention kinds measured, a cost model calibrated, a search on two links, the front measured.

Everything runs on the embedded digits. A killed demo resumes with the same command: finished steps are read from disk,
a training continues from its last epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import workflow
from bench.attention import AttentionShape, measure_attention
from bench.machine import usable_cores
from bench.records import SCHEMA, plain
from bench.run_directory import RunDirectory
from cost_models.calibration import plan
from cost_models.latency_term import MixtureLatency, mixture_latency
from cost_models.linear import CostModel
from models.names import spec_named
from models.spec import ViTSpec
from mpc.network import network
from mpc.parties import Parties
from mpc.scheme import Scheme
from nas.binarise import binarise
from nas.data import load
from nas.jobs import Job, run_jobs
from nas.objectives import L1, Latency, Objective
from nas.retrain import load_network, retrain, train_teacher
from nas.search_mpcvit import SearchResult, search
from nas.settings import DEMO_L1_WEIGHT, DEMO_LATENCY_WEIGHT, DEMO_RETRAIN, DEMO_SEARCH, DEMO_TEACHER

Record = dict[str, Any]

SPEC = "mpcvit:vit_4_4_32_demo"
KINDS = ("relu_softmax", "scaling")
LINKS = ("cheetah-lan", "cheetah-wan")
RATIOS = (0.25, 0.5, 0.75)
RETRAINED_RATIOS = (0.25, 0.5)
SEEDS = (0, 1)
SECURE_IMAGES = 64

# Share of the whole that each step takes on 2 cores, for the time that remains; measured on this project's machine.
_WEIGHTS = {"attention": 14.0, "calibrate": 65.0, "search": 150.0, "retrain": 200.0, "measure": 130.0, "report": 8.0}


@dataclass(frozen=True, slots=True)
class Found:
    """One discrete network to be retrained and measured, and where it comes from."""

    name: str
    spec: ViTSpec
    found_by: str
    seed: int
    ratio: float | None


class _Steps:
    """Progress over all steps on stderr, with the time that remains."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
        self._progress = Progress(
            *columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console
        )
        self._whole = self._progress.add_task("demo", total=sum(_WEIGHTS.values()))
        self._done = 0.0
        self._console = console

    @contextmanager
    def shown(self) -> Iterator[None]:
        """While active, progress is drawn."""
        with self._progress:
            yield

    def update(self, step: str, share: float, what: str) -> None:
        """`share` of the step is done; on a console that is no terminal nothing is drawn until `finish`."""
        completed = self._done + _WEIGHTS[step] * share
        self._progress.update(self._whole, completed=completed, description=f"{step}: {what}"[:60].ljust(60))

    def finish(self, step: str) -> None:
        """The step is done."""
        self._done += _WEIGHTS[step]
        self._progress.update(self._whole, completed=self._done)
        if not self._console.is_terminal:
            self._console.print(f"{step} done")


def demo(out: Path, console: Console) -> Record:
    """Run or resume the demo in `out`; returns the report's findings, the page and what was measured."""
    scheme = Scheme()
    arguments = {"spec": SPEC, "links": list(LINKS), "ratios": list(RATIOS), "secure_images": SECURE_IMAGES}
    run = RunDirectory.start(out, "demo", arguments, SEEDS)
    steps = _Steps(console)
    with steps.shown():
        calibration = _bench_and_calibrate(run, scheme, steps)
        cost_model = CostModel.from_json(calibration)
        spec = spec_named(SPEC)
        latencies = {link: mixture_latency(spec, KINDS, cost_model, scheme, network(link)) for link in LINKS}
        found = _search(run, spec, latencies, steps)
        accuracies = _retrain(run, found, steps)
        candidates = _measure(run, scheme, found, accuracies, cost_model, steps)
        summary = _report(run, steps)
    return {
        "run": str(run.path),
        "findings": list(summary.findings),
        "page": str(summary.page),
        "calibration": {"median_error": calibration["median_error"], "p90_error": calibration["p90_error"]},
        "candidates": [_short(candidate) for candidate in candidates],
    }


def _bench_and_calibrate(run: RunDirectory, scheme: Scheme, steps: _Steps) -> Record:
    """Attention kinds measured and replayed, the cost model fitted and tested; both on one set of party processes."""
    if not (run.done("attention") and run.done("calibrate")):
        steps.update("attention", 0.0, "starting two parties")
        with Parties(scheme) as parties:
            run.step("attention", lambda: _attention(parties, steps))
            steps.finish("attention")
            progress = lambda i, n, what: steps.update("calibrate", i / n, what)  # noqa: E731
            calibration = run.step("calibrate", lambda: workflow.calibrate(parties, plan(), scheme, progress))
    else:
        steps.finish("attention")
        calibration = run.step("calibrate", dict)
    steps.finish("calibrate")
    _write_lines(run, "attention", run.step("attention", list))
    run.write_json("calibration.json", calibration)
    return dict(calibration)


def _attention(parties: Parties, steps: _Steps) -> list[Record]:
    shape, seen = AttentionShape(), iter(range(100))
    progress = lambda what: steps.update("attention", next(seen) / 7, what)  # noqa: E731
    records: list[Record] = []
    for secure_run, record in measure_attention(parties, shape, repeats=5, progress=progress):
        links = [network(link) for link in LINKS]
        records += [record, *workflow.replayed_attention(secure_run, record, links)]
    return [{"schema": SCHEMA, **record} for record in records]


def _search(run: RunDirectory, spec: ViTSpec, latencies: Mapping[str, MixtureLatency], steps: _Steps) -> list[Found]:
    """Teacher and searches side by side; the networks worth retraining, and the comparison of links."""
    objectives: list[Objective] = [Latency(latency, DEMO_LATENCY_WEIGHT) for latency in latencies.values()]
    pairs: list[tuple[Objective, int]] = [(objective, seed) for seed in SEEDS for objective in objectives]
    pairs.append((L1(DEMO_L1_WEIGHT, KINDS), SEEDS[0]))
    shared = {"spec": spec, "dataset": "digits"}
    teacher = {**shared, "settings": DEMO_TEACHER, "seed": SEEDS[0], "folder": run.path / "train" / "softmax"}
    jobs = [Job("teacher", train_teacher, teacher)]
    for objective, seed in pairs:
        folder = run.path / "search" / f"{objective.name.replace('@', '-')}-{seed}"
        given = {**shared, "objective": objective, "settings": DEMO_SEARCH, "seed": seed, "folder": folder}
        jobs.append(Job(f"{objective.name}, seed {seed}", search, given))
    epochs = DEMO_TEACHER.total_epochs + len(pairs) * DEMO_SEARCH.total_epochs
    results: list[SearchResult] = _train(jobs, "search", epochs, steps)[1:]
    _write_lines(run, "search", [record for result in results for record in result.records])
    chosen = [(result, ratio, binarise(result.p_LHK, result.kinds, ratio)) for result in results for ratio in RATIOS]
    rows = [(result.objective, result.seed, ratio, kinds) for result, ratio, kinds in chosen]
    run.write_json("cross_table.json", workflow.cross_table(rows, latencies, KINDS[0]))
    steps.finish("search")
    return _worth_retraining(spec, chosen)


def _worth_retraining(spec: ViTSpec, chosen: Sequence[tuple[SearchResult, float, Any]]) -> list[Found]:
    """One kind everywhere, and what the first seed of each search on a link found; each architecture once."""
    found = [Found(kind, spec.with_kinds(kind), "uniform", SEEDS[0], None) for kind in ("softmax", *KINDS)]
    for result, ratio, kinds in chosen:
        wanted = result.seed == SEEDS[0] and ratio in RETRAINED_RATIOS and result.objective != "l1"
        if wanted:
            short = result.objective.rpartition("@")[2].removeprefix("cheetah-")
            name = f"{short} {ratio:g}"
            found.append(Found(name, spec.with_kinds(kinds), f"mpcvit/{result.objective}", result.seed, ratio))
    first = {item.spec: item for item in reversed(found)}
    return [item for item in found if first[item.spec] is item]


def _retrain(run: RunDirectory, found: Sequence[Found], steps: _Steps) -> dict[str, float]:
    """Every network from fresh weights, distilled from the teacher; test accuracy by name."""
    teacher = run.path / "train" / "softmax"
    jobs = [
        Job(
            item.name,
            retrain,
            {
                "spec": item.spec,
                "dataset": "digits",
                "settings": DEMO_RETRAIN,
                "seed": item.seed,
                "folder": _folder(run, item),
                "teacher": teacher,
            },
        )
        for item in found
        if item.name != "softmax"
    ]
    trained = _train(jobs, "retrain", len(jobs) * DEMO_RETRAIN.total_epochs, steps)
    accuracies = {job.name: result.accuracy for job, result in zip(jobs, trained, strict=True)}
    dataset = load("digits")
    from nas.training import accuracy

    accuracies["softmax"] = accuracy(load_network(teacher), dataset.test_images, dataset.test_labels)
    steps.finish("retrain")
    return accuracies


def _folder(run: RunDirectory, item: Found) -> Path:
    return run.path / "train" / item.name.replace(" ", "-")


def _train(jobs: Sequence[Job], step: str, epochs: int, steps: _Steps) -> list[Any]:
    """Run trainings on all cores; progress counts epochs, those done before a resume included when their job ends."""
    done = {job.name: 0 for job in jobs}

    def on_epoch(job: Job, record: Mapping[str, Any]) -> None:
        done[job.name] = record["epoch"] + 1
        steps.update(step, min(1.0, sum(done.values()) / epochs), f"{job.name}, epoch {done[job.name]}")

    steps.update(step, 0.0, f"{len(jobs)} trainings")
    return run_jobs(jobs, min(usable_cores(), len(jobs)), on_epoch)


def _measure(
    run: RunDirectory,
    scheme: Scheme,
    found: Sequence[Found],
    accuracies: Mapping[str, float],
    cost_model: CostModel,
    steps: _Steps,
) -> list[Record]:
    """Secure inference and latency of every network, on one set of party processes."""
    dataset = load("digits")
    images, labels = dataset.test_images[:SECURE_IMAGES], dataset.test_labels[:SECURE_IMAGES]
    links = [network(link) for link in LINKS]
    names = {item.name: f"measure-{item.name.replace(' ', '-')}" for item in found}
    if not all(run.done(step) for step in names.values()):
        steps.update("measure", 0.0, "starting two parties")
        with Parties(scheme) as parties:
            for index, item in enumerate(found):
                known = {
                    "accuracy": accuracies[item.name],
                    "found_by": item.found_by,
                    "seed": item.seed,
                    "ratio": item.ratio,
                }

                def measure(item: Found = item, known: Record = known, index: int = index) -> Any:
                    def on_batch(i: int, n: int) -> None:
                        steps.update("measure", (index + 0.8 * i / n) / len(found), f"{item.name}, image {i} of {n}")

                    trained = load_network(_folder(run, item))
                    arguments = (parties, item.name, trained, known, images, labels, cost_model, links)
                    return plain({"schema": SCHEMA, **workflow.candidate_record(*arguments, on_batch=on_batch)})

                run.step(names[item.name], measure)
    candidates = [run.step(step, dict) for step in names.values()]
    _write_lines(run, "networks", candidates)
    for item in found:
        run.write_json(f"front/{item.name.replace(' ', '-')}.json", item.spec.to_json())
    steps.finish("measure")
    return candidates


def _report(run: RunDirectory, steps: _Steps) -> Any:
    from reports import build

    steps.update("report", 0.0, "drawing")
    summary = build(run.path)
    steps.finish("report")
    return summary


def _write_lines(run: RunDirectory, name: str, records: Sequence[Mapping[str, Any]]) -> None:
    """NAME.jsonl holds exactly these records: a step that is repeated after a kill leaves no doubles."""
    import json

    text = "".join(json.dumps(plain({"schema": SCHEMA, **record}), separators=(",", ":")) + "\n" for record in records)
    path = run.path / f"{name}.jsonl"
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(path)


def _short(candidate: Mapping[str, Any]) -> Record:
    measured_s = {link: row["median"] for link, row in candidate["measured_s"].items()}
    keys = ("name", "found_by", "accuracy", "secure_accuracy", "agreement")
    return {**{key: candidate[key] for key in keys}, "measured_s": measured_s}
