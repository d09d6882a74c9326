"""The whole path, small: attention kinds measured, a cost model calibrated, a search on two links, the front measured.

Everything runs on the embedded digits. A killed demo resumes with the same command: finished steps are read from disk,
a training continues from its last epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import workflow
from bench.attention import AttentionShape, measure_attention
from bench.machine import usable_cores
from bench.run_directory import RunDirectory, write_json
from calibrating import calibrate
from cost_models.calibration import (
    CalibrationPlan,
    Effort,
    EvaluationPlan,
    evaluation_plan,
    load_record,
    plan,
    save_default,
)
from cost_models.contenders import map_of_run
from cost_models.hours import why_incomparable
from cost_models.latency_term import mixture_latency
from cost_models.linear import CostModel
from models.kinds import KINDS
from models.names import SPECS
from models.spec import ViTSpec
from mpc.network import network
from mpc.parties import Parties
from mpc.scheme import Scheme
from nas.binarise import KindsPerLayer, binarise
from nas.data import load
from nas.jobs import Job, run_jobs
from nas.objectives import L1, Latency, Objective
from nas.retrain import load_network, retrain, train_teacher
from nas.search_mpcvit import SearchResult, search
from nas.settings import DEMO_L1_WEIGHT, DEMO_LATENCY_WEIGHT, DEMO_RETRAIN, DEMO_SEARCH, DEMO_TEACHER, TrainSettings
from nas.training import accuracy
from reports import ReportSummary, build

Record = dict[str, Any]


# Small, to keep the demo near ten minutes; it took 9.5 to 11.5: `mpc-pareto calibrate` measures more.
_CALIBRATION = Effort(cases=4, layers=0, networks=4, passes=3)
_EVALUATION = Effort(cases=1, layers=4, networks=4, passes=3)


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """The demo's fixed choices; the defaults are the product's, others serve tests.

    `ratios` are binarised and compared; `retrained` names which (objective, ratio) of the first seed are retrained and
    measured as well, beside one kind everywhere.
    """

    spec: ViTSpec = SPECS["vit_4_4_32_demo"]
    kinds: tuple[str, str] = ("relu_softmax", "scaling")
    links: tuple[str, ...] = ("cheetah-lan", "cheetah-wan")
    ratios: tuple[float, ...] = (0.25, 0.5, 0.75)
    retrained: tuple[tuple[str, float], ...] = (
        ("latency@cheetah-lan", 0.5),
        ("latency@cheetah-wan", 0.25),
        ("latency@cheetah-wan", 0.5),
        ("l1", 0.5),
    )
    seeds: tuple[int, ...] = (0, 1)
    shape: AttentionShape = field(default_factory=AttentionShape)
    repeats: int = 5
    plan: CalibrationPlan = field(default_factory=lambda: plan(effort=_CALIBRATION))
    test: EvaluationPlan = field(default_factory=lambda: evaluation_plan(plan(effort=_CALIBRATION), wanted=_EVALUATION))
    teacher: TrainSettings = DEMO_TEACHER
    search: TrainSettings = DEMO_SEARCH
    retrain: TrainSettings = DEMO_RETRAIN
    secure_images: int = 64

    def to_json(self) -> Record:
        """What a resumed run must agree on."""
        chosen = {name: getattr(self, name) for name in ("links", "ratios", "retrained", "kinds", "secure_images")}
        epochs = {name: getattr(self, name).total_epochs for name in ("teacher", "search", "retrain")}
        return {"spec": self.spec.name, **chosen, "shape": asdict(self.shape), "epochs": epochs}


# Share of the whole that each step takes on 2 cores, for the time that remains; measured on this project's machine.
_WEIGHTS = {"attention": 14.0, "calibrate": 65.0, "search": 150.0, "retrain": 200.0, "measure": 130.0, "report": 8.0}


@dataclass(frozen=True, slots=True)
class Found:
    """One discrete network to be retrained and measured, and where it comes from; `also` names who else found it."""

    name: str
    spec: ViTSpec
    found_by: str
    seed: int
    ratio: float | None
    also: tuple[str, ...] = ()


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


def demo(out: Path, console: Console, settings: DemoSettings | None = None) -> Record:
    """Run or resume the demo in `out`; returns the report's findings, the page and what was measured.

    Raises ValueError where `out` holds a run of other settings.
    """
    chosen = settings or DemoSettings()
    run = RunDirectory.start(out, "demo", chosen.to_json(), chosen.seeds)
    steps = _Steps(console)
    with steps.shown():
        whole = _Demo(run, chosen, Scheme(), steps)
        calibration = whole.bench_and_calibrate()
        whole.keep(calibration)
        cost_model = CostModel.from_json(calibration)
        found = whole.search(cost_model)
        accuracies = whole.retrain(found)
        candidates = whole.measure(found, accuracies, cost_model)
        summary = whole.report()
    return {
        "run": str(run.path),
        "findings": list(summary.findings),
        "page": str(summary.page),
        "calibration": {group: tested["scores"] for group, tested in calibration["evaluation"].items()},
        "candidates": [_short(candidate) for candidate in candidates],
    }


@dataclass(frozen=True, slots=True)
class _Demo:
    """The steps of one demo; each reads what is on disk before it computes."""

    run: RunDirectory
    settings: DemoSettings
    scheme: Scheme
    steps: _Steps

    def bench_and_calibrate(self) -> Record:
        """Attention kinds measured and replayed, the cost model fitted and tested; on one set of party processes."""
        with ExitStack() as stack:
            parties: Parties | None = None
            if not (self.run.done("attention") and self.run.done("calibrate")):
                self.steps.update("attention", 0.0, "starting two parties")
                parties = stack.enter_context(Parties(self.scheme))
            attention = self.run.step("attention", lambda: self._attention(parties))
            self.steps.finish("attention")
            calibration = self.run.step("calibrate", lambda: self._calibration(parties))
        self.steps.finish("calibrate")
        self.run.write_records("attention", attention)
        self.run.write_json("calibration.json", calibration)
        return dict(calibration)

    def _attention(self, parties: Parties | None) -> list[Record]:
        assert parties is not None
        done = iter(range(1000))
        records: list[Record] = []
        links = [network(link) for link in self.settings.links]

        def on_kind(what: str) -> None:
            self.steps.update("attention", min(1.0, next(done) / len(KINDS)), what)

        for run, record in measure_attention(
            parties, self.settings.shape, repeats=self.settings.repeats, progress=on_kind
        ):
            records += [record, *workflow.replayed_attention(run, record, links)]
        return records

    def _calibration(self, parties: Parties | None) -> Record:
        assert parties is not None

        def on_run(number: int, count: int, what: str) -> None:
            self.steps.update("calibrate", number / count, what)

        earlier = load_record(self.scheme)
        return calibrate(parties, self.settings.plan, self.settings.test, on_run, earlier=earlier)

    def keep(self, calibration: Record) -> None:
        """From now on `predict` and `search` know this machine; where they do already, that calibration stays."""
        kept = load_record(self.scheme)
        if kept is None or why_incomparable(kept, calibration["machine"], calibration.get("versions")):
            save_default(calibration, self.scheme)

    def search(self, cost_model: CostModel) -> list[Found]:
        """Teacher and searches side by side; the networks worth retraining, and the comparison of links."""
        spec, kinds, seeds = self.settings.spec, self.settings.kinds, self.settings.seeds
        latencies = {
            link: mixture_latency(spec, kinds, cost_model, self.scheme, network(link)) for link in self.settings.links
        }
        objectives: list[Objective] = [Latency(latency, DEMO_LATENCY_WEIGHT) for latency in latencies.values()]
        pairs: list[tuple[Objective, int]] = [(objective, seed) for seed in seeds for objective in objectives]
        pairs.append((L1(DEMO_L1_WEIGHT, kinds, kinds[0]), seeds[0]))
        shared = {"spec": spec, "dataset": "digits"}
        teacher = {**shared, "settings": self.settings.teacher, "seed": seeds[0], "folder": self._folder("softmax")}
        jobs = [Job("teacher", train_teacher, teacher)]
        for objective, seed in pairs:
            folder = self.run.path / "search" / f"{objective.name.replace('@', '-')}-{seed}"
            given = {"objective": objective, "settings": self.settings.search, "seed": seed, "folder": folder}
            jobs.append(Job(f"{objective.name}, seed {seed}", search, {**shared, **given}))
        epochs = self.settings.teacher.total_epochs + len(pairs) * self.settings.search.total_epochs
        results: list[SearchResult] = self._train(jobs, "search", epochs)[1:]
        self.run.write_records("search", [record for result in results for record in result.records])
        chosen = [
            (result, ratio, binarise(result.p_LHK, result.kinds, ratio, keep=kinds[0]))
            for result in results
            for ratio in self.settings.ratios
        ]
        rows = [(result.objective, result.seed, ratio, heads) for result, ratio, heads in chosen]
        self.run.write_json("cross_table.json", workflow.cross_table(rows, latencies, kinds[0]))
        self.steps.finish("search")
        return self._worth_retraining(chosen)

    def _worth_retraining(self, chosen: Sequence[tuple[SearchResult, float, KindsPerLayer]]) -> list[Found]:
        """One kind everywhere, and what the first seed of each search on a link found; each architecture once."""
        spec, seed = self.settings.spec, self.settings.seeds[0]
        found = [
            Found(kind, spec.with_kinds(kind), "uniform", seed, None) for kind in ("softmax", *self.settings.kinds)
        ]
        for result, ratio, kinds in chosen:
            if result.seed == seed and (result.objective, ratio) in self.settings.retrained:
                name = f"{result.objective.rpartition('@')[2].removeprefix('cheetah-')} {ratio:g}"
                found.append(Found(name, spec.with_kinds(kinds), f"mpcvit/{result.objective}", seed, ratio))
        alike: dict[ViTSpec, list[Found]] = {}
        for item in found:
            alike.setdefault(item.spec, []).append(item)
        return [replace(first, also=tuple(item.name for item in others)) for first, *others in alike.values()]

    def retrain(self, found: Sequence[Found]) -> dict[str, float]:
        """Every network from fresh weights, distilled from the teacher; test accuracy by name."""
        shared = {"dataset": "digits", "settings": self.settings.retrain, "teacher": self._folder("softmax")}
        jobs = [
            Job(item.name, retrain, {**shared, "spec": item.spec, "seed": item.seed, "folder": self._folder(item.name)})
            for item in found
            if item.name != "softmax"
        ]
        trained = self._train(jobs, "retrain", len(jobs) * self.settings.retrain.total_epochs)
        accuracies = {job.name: result.accuracy for job, result in zip(jobs, trained, strict=True)}
        dataset = load("digits")
        teacher = load_network(self._folder("softmax"))
        self.steps.finish("retrain")
        return {"softmax": accuracy(teacher, dataset.test_images, dataset.test_labels), **accuracies}

    def _folder(self, name: str) -> Path:
        return self.run.path / "train" / name.replace(" ", "-")

    def _train(self, jobs: Sequence[Job], step: str, epochs: int) -> list[Any]:
        """Run trainings on all cores; progress counts epochs."""
        done = {job.name: 0 for job in jobs}

        def on_epoch(job: Job, record: Mapping[str, Any]) -> None:
            done[job.name] = record["epoch"] + 1
            self.steps.update(step, min(1.0, sum(done.values()) / epochs), f"{job.name}, epoch {done[job.name]}")

        self.steps.update(step, 0.0, f"{len(jobs)} trainings")
        return run_jobs(jobs, min(usable_cores(), len(jobs)), on_epoch)

    def measure(self, found: Sequence[Found], accuracies: Mapping[str, float], cost_model: CostModel) -> list[Record]:
        """Secure inference and latency of every network, on one set of party processes."""
        names = {item.name: f"measure-{item.name.replace(' ', '-')}" for item in found}
        candidates = []
        with ExitStack() as stack:
            parties: Parties | None = None
            if not all(self.run.done(step) for step in names.values()):
                self.steps.update("measure", 0.0, "starting two parties")
                parties = stack.enter_context(Parties(self.scheme))
            for index, item in enumerate(found):

                def on_batch(i: int, n: int, item: Found = item, index: int = index) -> None:
                    self.steps.update("measure", (index + 0.8 * i / n) / len(found), f"{item.name}, image {i} of {n}")

                compute = partial(self._candidate, parties, item, accuracies[item.name], cost_model, on_batch)
                candidates.append(self.run.step(names[item.name], compute))
        self.run.write_records("networks", candidates)
        for item in found:
            self.run.write_json(f"front/{item.name.replace(' ', '-')}.json", item.spec.to_json())
        self.steps.finish("measure")
        return candidates

    def _candidate(
        self,
        parties: Parties | None,
        item: Found,
        test_accuracy: float,
        cost_model: CostModel,
        on_batch: Callable[[int, int], None],
    ) -> Record:
        assert parties is not None
        dataset, count = load("digits"), self.settings.secure_images
        known = {"accuracy": test_accuracy, "test_images": len(dataset.test_labels)}
        origin = {"found_by": item.found_by, "also": list(item.also), "seed": item.seed, "ratio": item.ratio}
        return workflow.candidate_record(
            parties,
            item.name,
            load_network(self._folder(item.name)),
            {**known, **origin},
            dataset.test_images[:count],
            dataset.test_labels[:count],
            cost_model,
            [network(link) for link in self.settings.links],
            self.settings.repeats,
            batch=32,  # over gloo seconds are mostly rounds, which a batch shares
            on_batch=on_batch,
        )

    def report(self) -> ReportSummary:
        """The page and its figures."""
        self.steps.update("report", 0.0, "drawing")
        if (winners := map_of_run(self.run.path)) is not None:
            write_json(self.run.path / "winners.json", winners, indent=None)
        summary = build(self.run.path)
        self.steps.finish("report")
        return summary


def _short(candidate: Mapping[str, Any]) -> Record:
    measured_s = {link: row["median"] for link, row in candidate["measured_s"].items()}
    keys = ("name", "found_by", "accuracy", "secure_accuracy", "agreement")
    return {**{key: candidate[key] for key in keys}, "measured_s": measured_s}
