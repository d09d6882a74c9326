"""`map`: over bandwidth and round-trip time, which attention kind or which network of a run is fastest.

Registered on `cli.app` when this module is imported; heavy imports stay inside the verb.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.table import Table

from cli import (
    Batch,
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
    progress_console,
    scheme_of,
    show,
    wrong_usage,
)
from cli import Parties as PartyCount
from verbs import kinds_of

if TYPE_CHECKING:
    from cost_models.linear import CostModel
    from cost_models.winners import Contender
    from mpc.scheme import Scheme

_OF_SCHEME = ("scheme", "functions", "parties", "dealer", "transport", "weights", "precision_bits", "truncation")
_OF_KINDS = ("kinds", "tokens", "dim", "heads", "batch")
_OF_RUNS = ("accuracy", "accuracy_within")


@app.command("map")
def map_winners(
    ctx: typer.Context,
    run: Annotated[Path | None, typer.Argument(help="run directory with trained networks; attention kinds if none")] = (
        None
    ),
    kinds: Annotated[str, typer.Option(help="attention kinds that compete, separated by commas; all by default")] = "",
    tokens: Annotated[int, typer.Option(help="tokens of the layer, class token included")] = 65,
    dim: Annotated[int, typer.Option(help="width of the layer")] = 256,
    heads: Annotated[int, typer.Option(help="heads of the layer")] = 4,
    batch: Batch = 1,
    accuracy: Annotated[
        str | None, typer.Option(help="accuracies asked of a run's networks, as 0.95,0.97: a panel each; the best")
    ] = None,
    accuracy_within: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="what a network may fall short of the accuracy asked for; 0.005, or the best one's standard error",
        ),
    ] = None,
    bandwidth: Annotated[str, typer.Option(help="least and largest bandwidth, Mbit/s")] = "10,10000",
    round_trip: Annotated[str, typer.Option(help="least and largest round-trip time, ms")] = "0.1,200",
    points: Annotated[int, typer.Option(min=2, help="points along each axis")] = 60,
    scheme: SchemeName = "crypten",
    functions: Functions = "documented",
    parties: PartyCount = 2,
    dealer: Dealer = "tfp",
    transport: Transport = None,
    weights: Weights = "private",
    precision_bits: PrecisionBits = 16,
    truncation: Truncation = "local",
    range_check: RangeCheck = False,
    out: Annotated[Path | None, typer.Option(help="folder of the figure; RUN/map, or runs/map")] = None,
    json_only: JsonOnly = False,
) -> None:
    """Draw which attention kind, or which trained network of a RUN, is fastest on every network; no party runs.

    Seconds are predicted: this machine has to be calibrated. Of a RUN, under its own scheme unless one is given, only
    networks compete that reach the accuracy of a panel, less --accuracy-within; attention kinds have no accuracy of
    their own. Where the winner's 90 % interval overlaps another's, the map says that it is too close to call.
    """
    from bench.run_directory import write_json
    from cost_models.winners import Plane, at, winner_map
    from reports.report import draw_winner_map

    with wrong_usage():
        plane = Plane(_bounds(bandwidth, "--bandwidth"), _bounds(round_trip, "--round-trip"), points)
        levels = tuple(float(level) for level in accuracy.split(",")) if accuracy else ()
    _refuse(ctx, _OF_RUNS if run is None else _OF_KINDS, "attention kinds" if run is None else "a run's networks")
    with progress_console.status("counting and predicting"):
        if run is None:
            cost_model = _calibrated(None, scheme_of(ctx.params))
            contenders, source = _layers(ctx, cost_model), None
        else:
            cost_model = _calibrated(run, _scheme_for(ctx, run))
            contenders, source = _networks(run, cost_model)
        what = "attention kinds" if run is None else "networks"
        record = winner_map(what, contenders, cost_model, plane, levels, accuracy_within, source)
        folder = out or (run or Path("runs")) / "map"
        kept = write_json((run or folder) / "winners.json", record, indent=None)
        files = draw_winner_map(cast(Any, record), folder)
    rows = [at(record, profile["name"]) for profile in record["profiles"]]
    if not json_only:
        typer.echo(f"fastest of {len(contenders)} {what}; {cost_model.scheme.label}; predicted")
        show(_table(rows, record))
        typer.echo(f"figure: {files.png}; data: {kept}")
    panels = [_summary(record, panel) for panel in record["panels"]]
    figure = {"png": files.png, "svg": files.svg, "csv": files.csv}
    finish({"what": what, "json": kept, "figure": figure, "panels": panels, "networks": rows})


def _bounds(text: str, option: str) -> tuple[float, float]:
    try:
        low, high = map(float, text.split(","))
    except ValueError as error:
        raise ValueError(f"{option} takes two numbers separated by a comma, got {text!r}") from error
    return low, high


def _given(ctx: typer.Context, names: tuple[str, ...]) -> list[str]:
    sources = {name: ctx.get_parameter_source(name) for name in names}
    return [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]


def _refuse(ctx: typer.Context, names: tuple[str, ...], what: str) -> None:
    if given := _given(ctx, names):
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UsageError(f"{options} does not apply to {what}; leave it out")


def _scheme_for(ctx: typer.Context, run: Path) -> Scheme:
    from cost_models.contenders import scheme_of_run

    return scheme_of(ctx.params) if _given(ctx, (*_OF_SCHEME, "range_check")) else scheme_of_run(run)


def _calibrated(run: Path | None, scheme: Scheme) -> CostModel:
    from cost_models.calibration import load_default
    from cost_models.contenders import cost_model_of_run

    cost_model = load_default(scheme) if run is None else cost_model_of_run(run, scheme)
    if cost_model is None:
        advice = f"run: mpc-pareto calibrate --scheme {scheme.name} --transport {scheme.transport}"
        raise ValueError(f"a map needs a calibration of this machine for {scheme.label}; {advice}")
    return cost_model


def _layers(ctx: typer.Context, cost_model: CostModel) -> list[Contender]:
    from bench.attention import AttentionShape
    from cost_models.calibration import AttentionWorkload
    from cost_models.contenders import kinds_that_compete
    from models.kinds import KINDS

    with wrong_usage():
        shape = AttentionShape(*(ctx.params[name] for name in ("tokens", "dim", "heads", "batch")))
    sizes = (shape.tokens, shape.dim, shape.batch)
    names = kinds_of(ctx.params["kinds"]) if ctx.params["kinds"] else list(KINDS)
    return kinds_that_compete([AttentionWorkload((name,) * shape.heads, *sizes) for name in names], cost_model)


def _networks(run: Path, cost_model: CostModel) -> tuple[list[Contender], str]:
    from cost_models.contenders import networks_that_compete

    return networks_that_compete(run, cost_model)


def _summary(record: dict[str, Any], panel: dict[str, Any]) -> dict[str, Any]:
    """A panel in few numbers: who competes, the share of the plane that each wins, the share that is too close."""
    names = [contender["name"] for contender in record["contenders"]]
    won = Counter(place for row in panel["winner"] for place in row)
    total = sum(won.values())
    return {
        "accuracy": panel["accuracy"],
        "accuracy_within": panel["accuracy_within"],
        "contenders": [names[place] for place in panel["contenders"]],
        "shares": {names[place]: count / total for place, count in won.most_common()},
        "too_close": sum(close for row in panel["too_close"] for close in row) / total,
    }


def _table(rows: list[dict[str, Any]], record: dict[str, Any]) -> Table:
    """The winner on every named network, a column for each panel."""
    table = Table("network", caption="(runner-up and its seconds over the fastest's); ~: too close to call")
    for panel in record["panels"]:
        level = panel["accuracy"]
        table.add_column("fastest" if level is None else f"fastest at {100 * level:.1f} %, seconds")
    for row in rows:
        cells = []
        for won in row["winners"]:
            ahead = "" if won["ratio"] is None else f" ({won['runner_up']} {won['ratio']:.2f}x)"
            cells.append(f"{'~ ' if won['too_close'] else ''}{won['winner']} {won['seconds']:.3g} s{ahead}")
        table.add_row(row["network"], *cells)
    return table
