"""Calibration on real parties: run a plan, fit a cost model, keep it, and only then measure what it is tested on."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.disturbance import Disturbance
from bench.link_runs import KINDS, UNSEEN_LINKS, LinkMeasurement, link_workloads, measure_links
from bench.machine import this_machine
from bench.run_directory import versions
from bench.running import ranges_for
from bench.secure_run import SecureRun, run_module
from bench.shaped_link import why_not
from cost_models.calibration import (
    CALIBRATION_LINKS,
    FEWEST_PASSES,
    CalibrationPlan,
    EvaluationPlan,
    Workload,
)
from cost_models.evaluation import Evaluation, Point, evaluate, scored
from cost_models.fitting import fit
from cost_models.hours import Earlier, spread_of, times_as_long, why_incomparable
from cost_models.linear import LINK_SIDES, CostModel
from cost_models.observations import Observation, OperationSamples, operation_seconds
from cost_models.pacing import at_even_pace
from cost_models.replay import fit_wake, replay
from cost_models.sweep import Case, Sweep, number_of
from mpc.elapsed import together_s
from mpc.network import network
from mpc.parties import Parties
from mpc.ranges import NOTHING_DECLARED, Ranges
from mpc.reading import shape_reading
from mpc.scheme import Scheme
from mpc.trace import Trace

Record = dict[str, Any]
OnRun = Callable[[int, int, str], None]
OnFrozen = Callable[[Record], object]
CALIBRATION_LINK_REPEATS = 7
# What a reading of the pace measures again of what was fitted: networks, cases, and how often.
NETWORKS_OF_A_READING, CASES_OF_A_READING, PASSES_OF_A_READING = 8, 40, 9
# Runs of a workload in each pass, after a warm-up; their median is a sample. Over gloo one takes ten times as long.
IN_A_ROW = {"direct": 3, "gloo": 1}
# Sweeps in each pass of a test, times its `sweeps`: from one sweep to the next an operation scatters by a fifth, as if
# drawn anew, so that the median of as many tells the model's error from the machine's.
SWEEPS_OF_A_TEST = {"direct": 4, "gloo": 1}
# How often each pass of a test runs each workload, at places of their own: what runs in a row meets one spell.
RUNS_OF_A_TEST = {"direct": 3, "gloo": 1}


def calibrate(
    parties: Parties,
    plan: CalibrationPlan,
    test: EvaluationPlan | None,
    on_run: OnRun = lambda *_: None,
    on_frozen: OnFrozen = lambda _: None,
    links: bool = False,
    earlier: Record | None = None,
) -> Record:
    """Run `plan` on `parties`, fit the cost model, and test it on what is measured afterwards; the calibration record.

    `on_frozen` is given the record as soon as the model is fitted, before anything of the test has run. With `links`,
    resuming after a distant message is fitted, and tested, on emulated links too, where this machine can have them. How
    far the machine's pace lay from that of `earlier`, the record of a calibration before, widens the intervals.
    """
    scheme, here, installed = parties.scheme, this_machine().to_json(), versions()
    why_no_earlier = "there is none" if earlier is None else why_incomparable(earlier, here, installed)
    before = Earlier.from_json(earlier) if earlier is not None and why_no_earlier is None else None
    others, started_s = Disturbance(parties.process_ids), time.monotonic()
    fitted = measure(parties, scheme, plan.cases, plan.networks, plan.passes, on_run, budget_s=plan.budget_s)
    model = fit(fitted.samples, fitted.observations, scheme, here, parties.threads)
    hours = before.hours_before(fitted.samples) if before is not None else []
    model = replace(model, spread=replace(model.spread, hours=spread_of(hours)), _costs={})
    why_none = why_no_links(scheme) if links else "--no-links"
    links = why_none is None
    if links:
        model = with_links(model, CALIBRATION_LINKS, on_run)
    record = {
        **model.to_json(),
        "calibration_s": time.monotonic() - started_s,
        "frozen_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "passes": len(fitted.samples[0].online_s),
        "others_share": others.share(),
        "versions": installed,
        "earlier": [hour.to_json() for hour in hours],
        "no_earlier": why_no_earlier or (None if hours else "was fitted to other kinds of operations"),
        "no_links": why_none,
        "evaluation": {},
    }
    on_frozen(record)
    if test is None:
        return record
    return {**record, **_tested(parties, model, test, plan, fitted, on_run, links), "others_share": others.share()}


def _tested(
    parties: Parties,
    model: CostModel,
    test: EvaluationPlan,
    plan: CalibrationPlan,
    fitted: Measured,
    on_run: OnRun,
    links: bool,
) -> Record:
    """What measuring the frozen `model` on `test`, and with `links` on those, adds to a calibration record."""
    started_s = time.monotonic()
    pace, groups = compare_with_measured(parties, model, test, plan, fitted, on_run)
    if links and test.links:
        tested = compare_on_links(model, UNSEEN_LINKS[: test.links], test.link_repeats, on_run)
        groups |= {group: evaluation.to_json() for group, evaluation in tested.items()}
    return {"pace": pace.to_json(), "evaluation": groups, "evaluation_s": time.monotonic() - started_s}


@dataclass(frozen=True, slots=True)
class Pace:
    """How many times as long as at calibration operations take by themselves (`alone`) and inside networks.

    `alone_apart` and `inside_apart` are how far single operations, and networks, lie from that: standard deviations in
    logarithms, beyond what their medians scatter by.
    """

    alone: float
    inside: float
    alone_apart: float = 0.0
    inside_apart: float = 0.0

    def to_json(self) -> dict[str, float]:
        """Plain values for a record."""
        return asdict(self)


def compare_with_measured(
    parties: Parties,
    model: CostModel,
    test: EvaluationPlan,
    plan: CalibrationPlan,
    fitted: Measured,
    on_run: OnRun = lambda *_: None,
) -> tuple[Pace, dict[str, Record]]:
    """Measure what `model` was not fitted to, and compare, by group of workloads; the machine's pace, and the groups.

    A shared machine is a third slower in one minute than in another. So some of `plan`, which `fitted` says of, runs
    among what is tested: by how much that takes longer than at calibration is the pace. Beside the scores of the model
    as it was frozen stand, under "paced", those of the model at that pace; and under "even" those of the frozen model
    beside operations at an even pace, which tells its errors from the machine's spells.
    """
    references = plan.networks[: test.reference_networks]
    reference_cases = _spread_over(plan.cases, test.reference_cases) if test.cases else ()
    workloads: list[Workload] = [*test.layers, *test.networks, *references]
    sweeps = SWEEPS_OF_A_TEST[model.scheme.transport] * test.sweeps
    runs = RUNS_OF_A_TEST[model.scheme.transport]
    cases = *test.cases, *reference_cases
    seen = measure(parties, model.scheme, cases, workloads, test.passes, on_run, sweeps, runs)
    again = {case.label for case in reference_cases}
    samples = [sample for sample in seen.samples if sample.what not in again]
    networks = seen.observations[len(test.layers) :]
    pace = _pace(fitted, [sample for sample in seen.samples if sample.what in again], networks[len(test.networks) :])
    groups = {
        "operations": [_alone(sample, model.scheme) for sample in samples],
        "layers": seen.observations[: len(test.layers)],
        "networks": networks[: len(test.networks)],
    }
    even = [_alone(replace(sample, online_s=sample.steadiest_s), model.scheme) for sample in samples]
    known = {"operations": [_alone(sample, model.scheme) for sample in fitted.samples]}
    apart = {"operations": pace.alone_apart}
    records = {}
    for name, points in groups.items():
        if points:
            fits = known.get(name, fitted.observations)
            now = model.at_pace(pace.alone, pace.inside, apart.get(name, pace.inside_apart))
            frozen, paced = (evaluate(one, points, fits).to_json() for one in (model, now))
            records[name] = {**frozen, "paced": paced["scores"]}
    if even:
        records["operations"]["even"] = evaluate(model, even, known["operations"]).to_json()["scores"]
    return pace, records


def _spread_over(cases: Sequence[Case], count: int) -> tuple[Case, ...]:
    """About `count` of `cases`, at even distances in the order in which they were drawn."""
    return tuple(cases[:: max(1, len(cases) // count)])


def _pace(fitted: Measured, samples: Sequence[OperationSamples], networks: Sequence[Observation]) -> Pace:
    """From plain medians now, beside what was fitted; 1 where nothing was measured again."""
    alone_s = {(sample.what, sample.operation.op): sample.steadiest_s for sample in fitted.samples}
    inside_s = {observation.what: observation.online_s for observation in fitted.observations}
    alone, alone_apart = times_as_long(
        [(alone_s[sample.what, sample.operation.op], sample.online_s) for sample in samples]
    )
    inside, inside_apart = times_as_long([(inside_s[network.what], network.online_s) for network in networks])
    return Pace(alone, inside, alone_apart, inside_apart)


def read_pace(
    parties: Parties,
    kept: Record,
    plan: CalibrationPlan,
    test: EvaluationPlan | None = None,
    on_run: OnRun = lambda *_: None,
    on_frozen: OnFrozen = lambda _: None,
) -> Record:
    """The calibration record `kept` at the machine's pace now, read from some of `plan`, which it was fitted to.

    Its own hour becomes one of `earlier`. Without `test`, what it holds of one stays that of the model before; with it,
    `on_frozen` is given the record first, and the pace in it is beside this reading. Raises ValueError where `kept`
    says nothing of this machine, or where `test` has links, `kept` knows some and this machine cannot have them.
    """
    if (why := why_incomparable(kept, this_machine().to_json(), versions())) is not None:
        raise ValueError(f"the kept calibration {why}, so that no pace is read from it; calibrate anew")
    links = test is not None and test.links > 0 and kept["link_spread"] is not None
    if links and (why := why_no_links(parties.scheme)) is not None:
        raise ValueError(f"the kept calibration cannot be tested on links now ({why}): give --no-links")
    before, others = Earlier.from_json(kept), Disturbance(parties.process_ids)
    plan = replace(
        plan, cases=_spread_over(plan.cases, CASES_OF_A_READING), networks=plan.networks[:NETWORKS_OF_A_READING]
    )
    seen = measure(parties, parties.scheme, plan.cases, plan.networks, PASSES_OF_A_READING, on_run)
    hours = before.hours_before(seen.samples)
    if not hours:
        raise ValueError("the kept calibration was fitted to other kinds of operations; calibrate anew")
    alone = 1 / hours[-1].pace
    inside = statistics.median(each.median_s / before.model.cost(each.trace).compute_s for each in seen.observations)
    model = before.model.at_pace(alone, inside)
    model = replace(model, spread=replace(before.model.spread, hours=spread_of(hours)), _costs={})
    record = {
        **kept,
        **model.to_json(),
        "paced_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "read_pace": {"alone": alone, "inside": inside, "others_share": others.share()},
        "earlier": [hour.to_json() for hour in hours],
        "no_earlier": None,
    }
    on_frozen(record)
    if test is None:
        return record
    return {**record, **_tested(parties, model, test, plan, seen, on_run, links)}


def why_no_links(scheme: Scheme) -> str | None:
    """Why this machine cannot emulate links for `scheme`, in one line; None where it can."""
    return None if scheme.transport == "direct" else why_not()


def with_links(model: CostModel, links: Sequence[str], on_run: OnRun = lambda *_: None) -> CostModel:
    """The model with what resuming after a distant message costs, and how far replay is off, on `links`."""
    workloads = link_workloads(model.scheme, ("scaling", "relu_softmax"))
    profiles = [network(name) for name in links]
    measured = measure_links(model.scheme, profiles, CALIBRATION_LINK_REPEATS, workloads, on_run=on_run)
    seconds = [statistics.median(one.samples_s) for one in measured]
    wake_s = fit_wake((one.logs, one.network, median_s) for one, median_s in zip(measured, seconds, strict=True))
    replayed_s = [together_s(replay(one.logs, one.network, wake_s=wake_s).logs) for one in measured]
    errors = sorted(abs(math.log(m / r)) for m, r in zip(seconds, replayed_s, strict=True))
    return replace(model, wake_s=wake_s, link_spread=errors[-1], _costs={})


def compare_on_links(
    model: CostModel, links: Sequence[str], repeats: int, on_run: OnRun = lambda *_: None
) -> dict[str, Evaluation]:
    """Layers on links that nothing was fitted on: as the model predicts them, and as a loopback run is replayed."""
    scheme = model.scheme
    # Over gloo softmax crosses a link four hundred times: half a minute a run on the slowest.
    kinds = KINDS if scheme.transport == "direct" else [kind for kind in KINDS if kind != "softmax"]
    workloads = {workload.what: workload for workload in link_workloads(scheme, kinds)}
    measured = measure_links(
        scheme, [network(name) for name in links], repeats, list(workloads.values()), on_run=on_run
    )
    observations = []
    for one in measured:
        workload = workloads[one.what]
        trace = shape_reading(workload.module, tuple(workload.inputs.shape), scheme.weights, workload.ranges)
        shape = "x".join(map(str, workload.inputs.shape))
        observations.append(
            Observation(one.what, shape, trace, scheme, one.samples_s, network=one.network, mode=one.mode)
        )
    predicted = evaluate(model, observations, [])
    return {
        "links": predicted,
        "replays": scored([_replayed(model, *pair) for pair in zip(predicted.points, measured, strict=True)]),
    }


def _replayed(model: CostModel, point: Point, one: LinkMeasurement) -> Point:
    """The same measurement beside a replay of its own run on loopback."""
    seconds = together_s(replay(one.logs, one.network, wake_s=model.wake_s).logs)
    low, lower, upper, high = (seconds * math.exp(side * (model.link_spread or 0.0)) for side in LINK_SIDES)
    return replace(point, predicted_s=seconds, p05_s=low, p25_s=lower, p75_s=upper, p95_s=high, baselines={})


def _alone(sample: OperationSamples, scheme: Scheme) -> Observation:
    """An operation of a sweep as a workload of its own."""
    name, _, shape = sample.what.partition(" ")
    return Observation(f"operation {name}", shape, Trace((sample.operation,)), scheme, sample.online_s, alone=True)


@dataclass(frozen=True, slots=True)
class Measured:
    """Operations of a sweep, and workloads with what was timed inside them."""

    samples: tuple[OperationSamples, ...]
    observations: tuple[Observation, ...]


@dataclass(slots=True)
class _Item:
    """Something that is run in every pass, its input, and its runs so far."""

    module: nn.Module
    inputs: Tensor
    ranges: Ranges
    warm_up: int
    in_a_row: int
    what: str
    runs: list[SecureRun] = field(default_factory=list)
    orders: list[list[int]] = field(default_factory=list)  # of the cases, in each run of a sweep


def measure(
    parties: Parties,
    scheme: Scheme,
    cases: Sequence[Case],
    workloads: Sequence[Workload],
    passes: int,
    on_run: OnRun = lambda *_: None,
    sweeps: int = 1,
    times: int = 1,
    budget_s: float = math.inf,
) -> Measured:
    """Run the cases, in `sweeps` sweeps, and every workload, `times` times, in each pass, each in another order.

    The pace of a shared machine drifts over minutes, and an operation runs faster or slower after another one: medians
    over passes in changing order take neither for their own. No pass begins, after FEWEST_PASSES, that would likely end
    later than `budget_s` after the first.
    """
    sweep = Sweep(cases).eval() if cases else None
    in_a_row = 1, IN_A_ROW[scheme.transport]
    items = [_item(workload.module, workload.input_shape, scheme, in_a_row, workload.what) for workload in workloads]
    of_a_pass = times * items
    if sweep is not None:  # its cases run in a row inside it
        items.append(_item(sweep, sweep.input_shape, scheme, (0, 1), "operations"))
        of_a_pass += sweeps * items[-1:]
        run_module(parties, sweep, items[-1].inputs, scheme, ranges=items[-1].ranges)  # first calls are nobody's
    count, started_s = passes * len(of_a_pass), time.monotonic()
    for number in range(passes):
        spent_s = time.monotonic() - started_s
        if number >= FEWEST_PASSES and spent_s * (number + 1) / number > budget_s:
            break
        generator = random.Random(number)
        for place, item in enumerate(generator.sample(of_a_pass, len(of_a_pass))):
            on_run(number * len(of_a_pass) + place, count, item.what)
            if item.module is sweep:
                generator.shuffle(sweep.order)
                item.orders.append(list(sweep.order))
            item.runs.append(
                run_module(
                    parties, item.module, item.inputs, scheme, None, item.in_a_row, item.warm_up, ranges=item.ranges
                )
            )
    samples = _of_sweep(cases, items.pop()) if sweep is not None else ()
    observed = (_observe(workload, item, scheme) for workload, item in zip(workloads, items, strict=True))
    return Measured(samples, tuple(observed))


def _item(module: nn.Module, shape: tuple[int, ...], scheme: Scheme, times: tuple[int, int], what: str) -> _Item:
    draw = torch.rand if isinstance(module, Sweep) else torch.randn  # rows of the sweep are normalised by their sums
    inputs, others = (draw(shape, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    ranges = ranges_for([scheme], module, others).get(scheme, NOTHING_DECLARED)
    return _Item(module, inputs, ranges, *times, what)


def _of_sweep(cases: Sequence[Case], sweep: _Item) -> tuple[OperationSamples, ...]:
    """Samples of every operation of the sweep; a case of several operations gives several.

    A sample is the median of the runs in a row of one pass, but for the first, which finds memory and code cold.
    """
    samples: dict[tuple[int, str], list[float]] = {}
    operations = {}
    for run in sweep.runs:
        in_a_row: dict[tuple[int, str], list[float]] = {}
        for operation, online_s in zip(run.trace.operations, operation_seconds(run.trace, run.logs), strict=True):
            key = number_of(operation.site), operation.op
            operations[key] = operation
            in_a_row.setdefault(key, []).append(online_s)
        for key, seconds in in_a_row.items():
            samples.setdefault(key, []).append(statistics.median(seconds[1:]))
    keys = sorted(samples)
    even = at_even_pace(np.array([samples[key] for key in keys]), [number for number, _ in keys], sweep.orders).tolist()
    return tuple(
        OperationSamples(cases[key[0]].label, operations[key], tuple(samples[key]), tuple(even_s))
        for key, even_s in zip(keys, even, strict=True)
    )


def _observe(workload: Workload, item: _Item, scheme: Scheme) -> Observation:
    runs = item.runs
    return Observation(
        workload.what,
        workload.shape,
        runs[0].trace,
        scheme,
        tuple(statistics.median(run.online_s) for run in runs),
        tuple(statistics.median(run.dealer_s) for run in runs),
        heads=workload.head_traces(scheme, item.ranges),
        op_s=tuple(map(statistics.median, zip(*(operation_seconds(run.trace, run.logs) for run in runs), strict=True))),
    )
