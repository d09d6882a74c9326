"""`calibrate`: measure what the cost model needs on this machine, fit it, and test it on what it never saw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from cli import (
    Dealer,
    Functions,
    JsonOnly,
    PrecisionBits,
    RangeCheck,
    SchemeName,
    Transport,
    Truncation,
    UsageError,
    Weights,
    app,
    finish,
    scheme_of,
    show,
)
from cli import Parties as PartyCount
from verbs import Out, demand_this_machine, demand_unset, progress_bar, run_at

if TYPE_CHECKING:
    from cost_models.calibration import CalibrationPlan, EvaluationPlan
    from mpc.scheme import Scheme

_STEADY = 0.05  # a pace that drifts by more, during a test, is half of the error that "within 10 %" allows


@app.command()
def calibrate(
    ctx: typer.Context,
    scheme: SchemeName = "crypten",
    functions: Functions = "documented",
    parties: PartyCount = 2,
    dealer: Dealer = "tfp",
    transport: Transport = None,
    weights: Weights = "private",
    precision_bits: PrecisionBits = 16,
    truncation: Truncation = "local",
    range_check: RangeCheck = False,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of each party")] = 1,
    evaluate: Annotated[
        str | None,
        typer.Option(
            help="how much to test the model on: none, quick, or full (several times as long); "
            "quick unless given, none with --pace-only"
        ),
    ] = None,
    passes: Annotated[
        int | None, typer.Option(min=1, help="passes over all that is tested; 5 of quick, 9 of full")
    ] = None,
    links: Annotated[
        bool, typer.Option("--links/--no-links", help="also fit and test on emulated links, where there can be any")
    ] = True,
    pace_only: Annotated[
        bool,
        typer.Option(
            "--pace-only",
            help="only read how fast this machine is now, in a minute or two, and keep the calibration at that pace",
        ),
    ] = False,
    out: Out = None,
    json_only: JsonOnly = False,
) -> None:
    """Measure what the cost model needs on this machine, fit it, and test it on what is measured afterwards.

    The model is kept as soon as it is fitted; the test runs on shapes, networks and links that it never saw. A shared
    machine changes its pace: --pace-only brings what is kept up to it.
    """
    import calibrating
    from cost_models.calibration import EVALUATIONS, evaluation_plan, load_record, plan, save_default
    from mpc.parties import Parties

    chosen = scheme_of(ctx.params)
    evaluate = evaluate or ("none" if pace_only else "quick")
    if evaluate not in ("none", *EVALUATIONS):
        raise UsageError(f"--evaluate {evaluate} is unknown; choose from: none, {', '.join(EVALUATIONS)}")
    if evaluate == "none" and pace_only:
        demand_unset(ctx, "--pace-only without --evaluate", "passes", "links")
    if evaluate == "none" and passes is not None:
        raise UsageError("--passes is of the test, and --evaluate none leaves it out; give one of the two")
    demand_this_machine(out)
    earlier = load_record(chosen, threads)
    calibrated = plan(chosen.name)
    test = None if evaluate == "none" else evaluation_plan(calibrated, chosen.name, EVALUATIONS[evaluate])
    if test is not None:
        test = replace(test, passes=passes or test.passes, links=test.links if links else 0)
    if pace_only:
        _read_pace(ctx, chosen, threads, earlier, calibrated, test, out, json_only)
        return
    with progress_bar() as progress:
        task = progress.add_task("calibrating", total=None)
        on_run = lambda i, n, what: progress.update(task, completed=i, total=n, description=what[:50])  # noqa: E731
        with Parties(chosen, threads) as running:
            record = calibrating.calibrate(
                running,
                calibrated,
                test,
                on_run,
                lambda frozen: save_default(frozen, chosen),
                links,
                earlier,
            )
    path = save_default(record, chosen)
    if out is not None:
        run_at(ctx, out, "calibrate").write_json("calibration.json", record)
    if not json_only:
        _show(record, path)
    finish({**record, "kept_in": str(path)})


def _read_pace(
    ctx: typer.Context,
    chosen: Scheme,
    threads: int,
    kept: Mapping[str, Any] | None,
    calibrated: CalibrationPlan,
    test: EvaluationPlan | None,
    out: Path | None,
    json_only: bool,
) -> None:
    """Brings the kept calibration to the machine's pace of now, keeps it, and then tests it."""
    import calibrating
    from cost_models.calibration import save_default
    from mpc.parties import Parties

    if kept is None:
        raise ValueError(f"nothing is calibrated for {chosen.label} with {threads} threads: run mpc-pareto calibrate")
    with progress_bar() as progress, Parties(chosen, threads) as running:
        task = progress.add_task("reading the pace", total=None)
        on_run = lambda i, n, what: progress.update(task, completed=i, total=n, description=what[:50])  # noqa: E731
        record = calibrating.read_pace(
            running, dict(kept), calibrated, test, on_run, lambda paced: save_default(paced, chosen)
        )
    path = save_default(record, chosen)
    if out is not None:
        run_at(ctx, out, "calibrate").write_json("calibration.json", record)
    if not json_only:
        pace = record["read_pace"]
        if test is not None:
            _show_test(record)
        typer.echo(
            f"now {pace['alone']:.2f} times as long as when calibrated or read before for operations alone, "
            f"{pace['inside']:.2f} inside networks"
        )
        typer.echo(_hours(record))
        typer.echo(f"kept in {path}")
        _say_of_others(pace)
    finish({**record, "kept_in": str(path)})


def _show(record: Mapping[str, Any], path: Path) -> None:
    """What was measured, and whatever disturbed it."""
    _show_test(record)
    typer.echo(_hours(record))
    seconds = f"calibrated in {record['calibration_s']:.0f} s"
    typer.echo(f"{seconds}; frozen {record['frozen_at']}; kept in {path}")
    _say_of_others(record)


def _show_test(record: Mapping[str, Any]) -> None:
    """The model beside its baselines, group by group, and by how much the machine changed meanwhile."""
    for group, evaluation in record["evaluation"].items():
        scores = evaluation["scores"]
        table = Table(title=f"{group}: {scores['points']} never seen before the model was frozen", title_justify="left")
        for heading in ("", "median error", "90th percentile", "worst", "within 10 %", "Spearman", "Kendall"):
            table.add_column(heading, justify="left" if not heading else "right")
        paced = []
        if "paced" in evaluation:  # on links, where most of the time is counted, there is no pace
            pace = record["pace"]["alone" if group == "operations" else "inside"]
            paced = [(f"cost model at the test's pace, x {pace:.2f}", evaluation["paced"])]
        even = [("cost model, the machine's spells taken out", evaluation["even"])] if "even" in evaluation else []
        for name, row in (("cost model", scores), *even, *paced, *evaluation["baselines"].items()):
            table.add_row(name, *_cells(row))
        show(table)
        repeats = scores["repeatability_median"]
        typer.echo(
            f"  90 % intervals hold {scores['coverage_90']:.0%} of the points, 50 % ones {scores['coverage_50']:.0%}"
            + (f" (at the pace: {paced[0][1]['coverage_90']:.0%}, {paced[0][1]['coverage_50']:.0%})" if paced else "")
            + (f"; two medians of the same workload differ by {repeats:.1%} (median)" if repeats is not None else "")
            + (_without_spells(even[0][1]) if even else "")
            + (f"; thirds of the passes by {scores['drift']:.1%}" if scores["drift"] is not None else "")
        )
    if record.get("no_links"):
        typer.echo(f"nothing was measured on links ({record['no_links']}): intervals on networks hold compute alone")
    drifts = {group: evaluation["scores"]["drift"] or 0.0 for group, evaluation in record["evaluation"].items()}
    if drifts and max(drifts.values()) > _STEADY:
        group = max(drifts, key=lambda name: drifts[name])
        typer.echo(
            f"this machine changed its pace by {drifts[group]:.0%} while {group} were tested, which errors and "
            "intervals hold too: test again in a quieter hour",
            err=True,
        )


def _say_of_others(record: Mapping[str, Any]) -> None:
    from cost_models.hours import DISTURBED

    if (record["others_share"] or 0.0) > DISTURBED:  # None where that cannot be known
        typer.echo(
            f"other programs took {record['others_share']:.0%} of the CPU meanwhile: seconds scatter, calibrate again "
            "when they are gone",
            err=True,
        )


def _without_spells(scores: Mapping[str, Any]) -> str:
    repeats = scores["repeatability_median"]
    return "" if repeats is None else f", without spells by {repeats:.1%}"


def _hours(record: Mapping[str, Any]) -> str:
    """What the intervals know of other hours of this machine."""
    if record["no_earlier"] is not None:
        return (
            f"no calibration of another hour to compare with ({record['no_earlier']}): intervals know this hour's pace "
            "only; calibrate again in another one"
        )
    paces = [hour["pace"] for hour in record["earlier"]]
    counted = "1 calibration before" if len(paces) == 1 else f"{len(paces)} calibrations before"
    return (
        f"intervals hold the pace of {counted}: this machine took {min(paces):.2f} to {max(paces):.2f} times as long "
        "as now"
    )


def _cells(row: Mapping[str, Any] | None) -> list[str]:
    if row is None:
        return ["-"] * 6
    shares = [f"{row[key]:.1%}" for key in ("median_error", "p90_error", "worst_error", "within_10")]
    return [*shares, *("-" if row[key] is None else f"{row[key]:.3f}" for key in ("spearman", "kendall"))]
