"""The verbs infer, retrain, report and demo, and what verbs share.

Each is registered on `cli.app` when this module is imported; heavy imports stay inside the verbs.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from cli import (
    Batch,
    Dealer,
    DeclaredRanges,
    Functions,
    InputOwner,
    JsonOnly,
    ModelOwner,
    Networks,
    PrecisionBits,
    RangeCheck,
    RevealTo,
    SaveRanges,
    SchemeName,
    Transport,
    Truncation,
    UsageError,
    Weights,
    app,
    finish,
    link_of,
    progress_console,
    ranges_of,
    roles_of,
    scheme_of,
    show,
    warn_of_unused,
    wrong_usage,
)
from cli import Parties as PartyCount

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.run_directory import RunDirectory
    from mpc.scheme import Scheme

Out = Annotated[Path | None, typer.Option(help="run directory that keeps the records")]
Seed = Annotated[int, typer.Option(help="seed of weights, data order and search")]
Data = Annotated[str, typer.Option(help="digits, or folder:PATH with class folders in train/ and test/")]
Repeats = Annotated[int, typer.Option(min=1, help="runs that are timed, after one that is not")]


def progress_bar() -> Progress:
    """A bar on stderr with the time that remains; nothing where that is no terminal, so that an error stands alone."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=progress_console, disable=not progress_console.is_terminal)


def kinds_of(names: str) -> list[str]:
    """Names separated by commas; UsageError for one that is no attention kind."""
    from models.kinds import kind_named

    with wrong_usage():
        return [kind_named(name).name for name in names.split(",")]


def demand_this_machine(out: Path | None) -> None:
    """Raises ValueError where `out` holds a run of another machine: seconds of two machines do not belong together."""
    if out is None or not (out / "manifest.json").exists():
        return
    from bench.machine import this_machine
    from bench.records import of_one_machine
    from bench.run_directory import RunDirectory

    manifest = RunDirectory.existing(out).manifest
    stages = [manifest, *manifest.get("resumed", ()), {"machine": this_machine().to_json()}]
    try:
        of_one_machine({"record": "manifest", "machine": stage.get("machine")} for stage in stages)
    except ValueError as error:
        raise ValueError(f"{out} cannot be added to here, choose another --out: {error}") from error


def run_at(ctx: typer.Context, out: Path, verb: str) -> RunDirectory:
    """The run at `out`: begun by this verb, or an earlier one whose manifest now lists the verb under "added"."""
    from bench.run_directory import RunDirectory, commit, versions

    arguments = {name: value for name, value in ctx.params.items() if name not in ("out", "json_only", "seed")}
    seeds = [ctx.params["seed"]] if "seed" in ctx.params else []
    if not (out / "manifest.json").exists():
        return RunDirectory.start(out, verb, arguments, seeds)
    run = RunDirectory.existing(out)
    added = {"verb": verb, "arguments": arguments, "seeds": seeds, "versions": versions(), "commit": commit()}
    run.manifest["added"] = [*run.manifest.get("added", ()), added]
    run.write_json("manifest.json", run.manifest)
    return run


def keep(ctx: typer.Context, out: Path | None, verb: str, name: str, records: Sequence[dict[str, Any]]) -> None:
    """Adds records to NAME.jsonl of the run at `out`; nothing where none is asked for."""
    if out is None:
        return
    run = run_at(ctx, out, verb)
    for record in records:
        run.append(name, record)


def rows_of(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records as rows of the last line: the scheme's name under `scheme`, its other settings beside it."""
    rows = []
    for record in records:
        settings = dict(record["scheme"])
        rows.append({**record, "scheme": settings.pop("name"), **settings})
    return rows


@app.command()
def infer(
    ctx: typer.Context,
    model: Annotated[
        str, typer.Argument(help="run directory, folder of a trained network (RUN/train/NAME), or a MODEL")
    ],
    data: Data = "digits",
    images: Annotated[int, typer.Option(min=1, help="test images, from the first on")] = 64,
    batch: Batch = 16,
    network: Networks = None,
    scheme: SchemeName = "crypten",
    functions: Functions = "documented",
    parties: PartyCount = 2,
    dealer: Dealer = "tfp",
    transport: Transport = None,
    weights: Weights = "private",
    precision_bits: PrecisionBits = 16,
    truncation: Truncation = "local",
    range_check: RangeCheck = False,
    ranges: DeclaredRanges = None,
    save_ranges: SaveRanges = None,
    input_owner: InputOwner = 0,
    model_owner: ModelOwner = 1,
    reveal_to: RevealTo = "0",
    no_shadow: Annotated[
        bool, typer.Option("--no-shadow", help="observe no plain values; ranges are checked securely or not at all")
    ] = False,
    seed: Annotated[int, typer.Option(help="seed of the weights of a MODEL that is no folder")] = 0,
    out: Out = None,
    json_only: JsonOnly = False,
) -> None:
    """Run real test images through a network securely: accuracy, agreement with the plain reading, latency, health.

    For a run directory, every network trained in it is measured, replayed on --network (cheetah-lan and cheetah-wan
    where none is given), and its report can draw them. A MODEL that is no folder has untrained weights, drawn from
    --seed.
    """
    import torch

    from bench.infer import CALIBRATION_IMAGES, inference_record
    from bench.infer import infer as secure_inference
    from bench.range_files import demand_tuned
    from bench.range_files import save_ranges as write_ranges
    from bench.running import ranges_for
    from models.names import build, input_shape
    from mpc.parties import Parties
    from mpc.ranges import NOTHING_DECLARED
    from mpc.reading import shape_reading
    from nas.data import load
    from nas.retrain import load_network

    chosen = scheme_of(ctx.params)
    folder = Path(model)
    trained = folder.is_dir()
    if (folder / "manifest.json").is_file():
        ignored = ("input_owner", "model_owner", "reveal_to", "seed", "out", "ranges", "save_ranges", "no_shadow")
        demand_unset(ctx, "a run directory", *ignored)
        _infer_run(folder, chosen, data, images, batch, network or ["cheetah-lan", "cheetah-wan"], json_only)
        return
    demand_unset(ctx, "one network: it is for run directories", "network")
    if trained:
        demand_unset(ctx, "a trained network: it draws the weights of a MODEL", "seed")
    if not trained and ":" not in model:
        raise ValueError(f"there is no folder {model}; give a run's train/NAME, or a MODEL such as mpcvit:vit_7_4_32")
    declared = ranges_of(ranges, [chosen])
    if save_ranges is not None:
        with wrong_usage():
            demand_tuned([chosen], "--save-ranges")
    torch.manual_seed(seed)
    module = load_network(folder) if trained else build(model)
    dataset = load(data, input_shape(module)[-1])
    declared = ranges_for([chosen], module, dataset.train_images[:CALIBRATION_IMAGES], declared).get(chosen)
    x, y = dataset.test_images[:images], dataset.test_labels[:images]
    warn_of_unused(ranges, declared, (shape_reading(net, tuple(x[:1].shape), chosen.weights) for net in [module]))
    roles = roles_of(input_owner, model_owner, reveal_to, parties)
    demand_this_machine(out)
    with progress_bar() as progress, Parties(chosen) as running:
        task = progress.add_task("images", total=len(x))
        on_batch = lambda i, n: progress.update(task, completed=i)  # noqa: E731
        used = declared or NOTHING_DECLARED
        result = secure_inference(running, module, x, y, chosen, roles, batch, on_batch, used, not no_shadow)
    if save_ranges is not None and declared is not None:
        write_ranges(save_ranges, [(chosen, declared)])
    record = {**inference_record(result, model), "weights_trained": trained, "seed": None if trained else seed}
    keep(ctx, out, "infer", "inference", [record])
    if not json_only:
        table = Table("", "value")
        for key in (
            "images",
            "plain_accuracy",
            "secure_accuracy",
            "agreement",
            "max_logit_difference",
            "min_plain_margin",
        ):
            value = record[key]
            table.add_row(key.replace("_", " "), f"{value:.4f}" if isinstance(value, float) else str(value))
        table.add_row("weights", "trained" if trained else f"untrained (seed {seed})")
        table.add_row("online seconds an image", f"{record['seconds_per_image']:.4f}")
        outside = record["health"]["functions_outside_their_domain"]
        table.add_row("functions outside their domain", "not observed" if outside is None else str(len(outside)))
        table.add_row("ranges", record["health"]["ranges"])
        if record["health"]["outside_securely"] is not None:
            table.add_row("values outside, counted securely", str(record["health"]["outside_securely"]))
        typer.echo(f"{model} on {data}: {chosen.label}; measured on loopback")
        show(table)
    finish(record)


def demand_unset(ctx: typer.Context, what: str, *names: str) -> None:
    """Raises UsageError where one of these options was given: it would be ignored."""
    sources = {name: ctx.get_parameter_source(name) for name in names}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UsageError(f"{options} does not apply to {what}; leave it out")


def _infer_run(
    run: Path, scheme: Scheme, data: str, images: int, batch: int, networks: list[str], json_only: bool
) -> None:
    from mpc.parties import Parties
    from workflow import measure_run

    links = [link_of(name) for name in networks if name != "loopback"]
    with progress_bar() as progress, Parties(scheme) as running:
        task = progress.add_task("measuring", total=None)
        on_network = lambda i, n, what: progress.update(task, completed=i, total=n, description=what)  # noqa: E731
        records = measure_run(run, running, data, images, batch, links, on_network)
    if not json_only:
        show(_networks_table(records))
        typer.echo(f"{scheme.label}; links other than loopback are replayed; draw them with: mpc-pareto report {run}")
    finish({"run": str(run), "rows": rows_of(records)})


def _networks_table(records: Sequence[dict[str, Any]]) -> Table:
    """Trained networks: accuracy plain and secure, and online seconds of one image, predicted in brackets."""
    links = list(records[0]["measured_s"])
    table = Table("network", "found by", "accuracy", "secure accuracy", "agreement")
    for link in links:
        table.add_column(f"{link} s (predicted)", justify="right")
    for row in records:
        shares = (f"{row[key]:.4f}" for key in ("accuracy", "secure_accuracy", "agreement"))
        seconds = []
        for link in links:
            predicted = f" ({row['seconds'][link]['p50']:.3f})" if link in row["seconds"] else ""
            seconds.append(f"{row['measured_s'][link]['median']:.3f}{predicted}")
        table.add_row(", ".join([row["name"], *row.get("also", [])]), row["found_by"], *shares, *seconds)
    return table


@app.command("retrain")
def retrain_run(
    run: Annotated[Path, typer.Argument(help="run directory of a search")],
    data: Data = "digits",
    distil: Annotated[bool, typer.Option(help="train a softmax teacher first and distil from it")] = True,
    token_weight: Annotated[float | None, typer.Option(help="weight of token distillation; none by default")] = None,
    epochs: Annotated[int | None, typer.Option(help="epochs of every training; 12 on the digits")] = None,
    seed: Seed = 0,
    json_only: JsonOnly = False,
) -> None:
    """Train every network that a search found from fresh weights; the same command resumes."""
    from nas.runs import retrain_front

    with progress_bar() as progress:
        task = progress.add_task("training", total=None)
        on_epoch = lambda done, total, what: progress.update(task, completed=done, total=total, description=what)  # noqa: E731
        rows = retrain_front(run, data, distil, token_weight, epochs, seed, on_epoch)
    if not json_only:
        table = Table("network", "test accuracy", "folder")
        for row in rows:
            table.add_row(row["name"], f"{row['accuracy']:.4f}", row["folder"])
        show(table)
    finish({"rows": rows})


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="run directory with records")],
    out: Annotated[Path | None, typer.Option(help="folder of the page; RUN/report")] = None,
) -> None:
    """Draw fronts and figures and write one self-contained page from a run's records.

    Where the run has several trained networks and the machine is calibrated, a winner map of them is made as well.
    """
    from reports import build

    with progress_console.status("drawing"):
        _add_winners(run)
        summary = build(run, out)
    for line in summary.findings:
        typer.echo(line)
    typer.echo(f"page: {summary.page}")
    finish(summary.to_json())


def _add_winners(run: Path) -> None:
    """Makes RUN/winners.json where it can be made and is absent, or older than the networks."""
    from bench.run_directory import write_json
    from cost_models.contenders import map_of_run

    kept, networks = run / "winners.json", run / "networks.jsonl"
    current = kept.exists() and not (networks.exists() and networks.stat().st_mtime > kept.stat().st_mtime)
    if not current and (record := map_of_run(run)) is not None:
        write_json(kept, record, indent=None)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="run directory; the same command resumes a killed demo")] = Path(
        "runs/demo"
    ),
) -> None:
    """All of it, small, on the embedded digits: about ten minutes on two cores."""
    from bench.records import read
    from demo import demo as whole_path
    from verbs_bench import attention_table

    result = whole_path(out, progress_console)
    show(attention_table(read(out / "attention.jsonl")))
    show(_networks_table(read(out / "networks.jsonl")))
    for line in result["findings"]:
        typer.echo(line)
    typer.echo(f"page: {result['page']}")
    finish(result)
