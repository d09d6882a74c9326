"""`bench attention`, `bench model` and `bench ops`: workloads measured on real parties.

Registered on `cli.app` when this module is imported; heavy imports stay inside the verbs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from cli import (
    Batch,
    Dealer,
    DeclaredRanges,
    InputOwner,
    JsonOnly,
    Model,
    ModelOwner,
    Networks,
    PrecisionBits,
    RangeCheck,
    RevealTo,
    SaveRanges,
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
    schemes_of,
    show,
    warn_of_unused,
    wrong_usage,
)
from cli import Parties as PartyCount
from verbs import Out, Repeats, Seed, demand_this_machine, keep, kinds_of, progress_bar, rows_of

if TYPE_CHECKING:
    from bench.running import Stage
    from bench.secure_run import SecureRun
    from mpc.ranges import Ranges
    from mpc.scheme import Scheme

bench_app = typer.Typer(help="Measure workloads on real parties.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")

Schemes = Annotated[
    str, typer.Option("--scheme", help="protocols: crypten, tuned (ours, two parties), or both: crypten,tuned")
]
FunctionLists = Annotated[
    str,
    typer.Option(
        help="documented, released (crypten), max_free (tuned), or several: of such a list, as of those of "
        "--transport, --dealer and --truncation, each scheme takes what it has"
    ),
]
Emulate = Annotated[
    str | None,
    typer.Option(
        help="how each --network comes about. transport: run, held by time stamps, no root (direct only); link: run on "
        "a shaped link (Linux, root); replay: re-timed from loopback; left out: transport for direct, replay for gloo"
    ),
]
Log = Annotated[
    Path | None, typer.Option(help="write the message logs of all runs to this file: for mpc-pareto replay")
]
_CALIBRATION_IMAGES = 8


@bench_app.command("attention")
def bench_attention(
    ctx: typer.Context,
    tokens: Annotated[int, typer.Option(help="tokens, class token included")] = 65,
    dim: Annotated[int, typer.Option(help="width of the model")] = 256,
    heads: Annotated[int, typer.Option(help="heads of the layer")] = 4,
    kinds: Annotated[str, typer.Option(help="attention kinds, separated by commas; all where left out")] = "",
    batch: Batch = 1,
    repeats: Repeats = 5,
    linformer_k: Annotated[int | None, typer.Option(help="rows of Linformer's projection; round(0.3 N)")] = None,
    network: Networks = None,
    emulate: Emulate = None,
    scheme: Schemes = "crypten",
    functions: FunctionLists = "documented",
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
    seed: Seed = 0,
    log: Log = None,
    out: Out = None,
    json_only: JsonOnly = False,
) -> None:
    """Measure one attention layer of every kind, projections included, on loopback and on other networks.

    Several schemes run interleaved. Seconds are of the slowest party; --network adds rows of each network, emulated or
    replayed from the message log as --emulate says, and each row says which.
    """
    from bench.attention import AttentionShape, attention_layer, measure_attention, reference_of, relative_seconds
    from bench.running import parties_on
    from models.kinds import KINDS
    from mpc.reading import shape_reading
    from workflow import replayed_attention

    shape = AttentionShape(tokens, dim, heads, batch)
    names = kinds_of(kinds) if kinds else list(KINDS)
    schemes = schemes_of(ctx.params)
    declared = _ranges_of(ranges, save_ranges, schemes)
    stages = places_of(network, emulate, schemes)
    rows: list[dict[str, Any]] = []
    runs: list[SecureRun] = []
    logs: list[tuple[str, SecureRun, Mapping[str, Any]]] = []
    roles = roles_of(input_owner, model_owner, reveal_to, parties)
    demand_this_machine(out)
    layers = (attention_layer(kind, shape, linformer_k).eval() for kind in names)
    warn_of_unused(ranges, declared, (shape_reading(layer, (batch, tokens, dim)) for layer in layers))
    with progress_bar() as progress:
        task = progress.add_task("starting parties", total=len(names) * len(stages))
        on_kind = lambda what: progress.update(task, description=what)  # noqa: E731
        for stage in stages:
            with parties_on(stage.schemes, stage.place, emulate=stage.emulation) as running:
                for kind in names:
                    for run, record in measure_attention(
                        running, shape, [kind], stage.schemes, repeats, linformer_k, seed, on_kind, roles, declared
                    ):
                        rows += [record, *replayed_attention(run, record, stage.replays.get(run.scheme, ()))]
                        runs.append(run)
                        logs.append((f"attention {kind}", run, record))
                    progress.advance(task)
    keep(ctx, out, "bench attention", "attention", rows)
    _save(save_ranges, runs)
    _write_logs(log, logs)
    if not json_only:
        typer.echo(
            f"one attention layer: {tokens} tokens, {dim} wide, {heads} heads, batch {batch}; {_labels(schemes)}"
        )
        show(attention_table(rows, schemes))
    relative = [{**row, "relative": ratio} for row, ratio in zip(rows, relative_seconds(rows), strict=True)]
    _finish(relative, schemes, reference_of(rows))


def attention_table(rows: Sequence[dict[str, Any]], schemes: Sequence[Scheme] = ()) -> Table:
    """Times faster than the reference among several `schemes`; of one, seconds relative to softmax where measured."""
    from bench.attention import reference_of, relative_seconds

    if len(schemes) > 1:
        return _measured_table("kind", [row["kind"] for row in rows], rows, _faster(rows, schemes), _caption(schemes))
    relative = {"relative": ["-" if ratio is None else f"{ratio:.2f}x" for ratio in relative_seconds(rows)]}
    caption = f"online seconds relative to {reference_of(rows)}"
    return _measured_table("kind", [row["kind"] for row in rows], rows, relative, caption)


@bench_app.command("model")
def bench_model(
    ctx: typer.Context,
    model: Model,
    batch: Batch = 1,
    repeats: Repeats = 5,
    network: Networks = None,
    emulate: Emulate = None,
    scheme: Schemes = "crypten",
    functions: FunctionLists = "documented",
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
    seed: Seed = 0,
    log: Log = None,
    out: Out = None,
    json_only: JsonOnly = False,
) -> None:
    """Measure a whole network with freshly drawn weights on a random input, by operation, and on other links.

    Several schemes run interleaved; --network and --emulate as in bench attention.
    """
    import torch

    from bench.attention import where
    from bench.running import parties_on, ranges_for, run_in_turn
    from models.names import build, input_shape
    from mpc.reading import shape_reading
    from workflow import network_rows, output_figures

    schemes = schemes_of(ctx.params)
    declared = _ranges_of(ranges, save_ranges, schemes)
    stages = places_of(network, emulate, schemes)
    torch.manual_seed(seed)
    module = build(model)
    inputs = torch.randn(batch, *input_shape(module)[1:])
    others = torch.randn(_CALIBRATION_IMAGES, *input_shape(module)[1:])
    roles = roles_of(input_owner, model_owner, reveal_to, parties)
    demand_this_machine(out)
    warn_of_unused(ranges, declared, (shape_reading(net, tuple(inputs.shape)) for net in [module]))
    rows: list[dict[str, Any]] = []
    runs: list[SecureRun] = []
    logs: list[tuple[str, SecureRun, Mapping[str, Any]]] = []
    with progress_console.status(f"running {model} on {parties} parties"):
        calibrated = ranges_for(schemes, module, others, declared)
        for stage in stages:
            with parties_on(stage.schemes, stage.place, emulate=stage.emulation) as running:
                for run in run_in_turn(running, module, inputs, stage.schemes, roles, repeats, calibrated).values():
                    figures = output_figures(run, module, inputs)
                    links = stage.replays.get(run.scheme, ())
                    rows += network_rows(run, model, batch, figures, links, where(running))
                    runs.append(run)
                    logs.append((model, run, where(running)))
    keep(ctx, out, "bench model", "models", rows)
    _save(save_ranges, runs)
    _write_logs(log, logs)
    if not json_only:
        typer.echo(f"{model}, batch {batch}: {_labels(schemes)}")
        extra = {"top-1 same": [f"{row['top1_agreement']:.0%}" for row in rows], **_faster(rows, schemes)}
        show(_measured_table("model", [model] * len(rows), rows, extra, _caption(schemes)))
        show(_by_op_table(rows))
    _finish(rows, schemes, None)


def _by_op_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Online seconds of every operation, a column for each scheme and network."""
    from bench.comparing import short_label

    headings = [f"{short_label(row['scheme'])}; {row['network']}, {row['mode']}" for row in rows]
    table = Table("operation", title="online seconds by operation")
    for heading in headings:
        table.add_column(heading, justify="right")
    largest: dict[str, float] = {}
    for row in rows:
        for op, seconds in row["by_op_s"].items():
            largest[op] = max(seconds, largest.get(op, 0.0))
    for op in sorted(largest, key=lambda op: -largest[op]):
        table.add_row(op, *[f"{row['by_op_s'][op]:.4f}" if op in row["by_op_s"] else "-" for row in rows])
    return table


@bench_app.command("ops")
def bench_ops(
    ctx: typer.Context,
    elements: Annotated[int, typer.Option(min=64, help="elements of every function, a multiple of 64")] = 16384,
    repeats: Repeats = 5,
    scheme: Schemes = "crypten",
    functions: FunctionLists = "documented",
    parties: PartyCount = 2,
    dealer: Dealer = "tfp",
    transport: Transport = None,
    precision_bits: PrecisionBits = 16,
    truncation: Truncation = "local",
    range_check: RangeCheck = False,
    ranges: DeclaredRanges = None,
    seed: Seed = 0,
    out: Out = None,
    json_only: JsonOnly = False,
) -> None:
    """Measure the non-linear functions one by one on the same number of elements; several schemes run interleaved."""
    from bench.operations import OPERATIONS, ROW, Operation, demand_rows, measure_operations
    from bench.running import parties_on
    from mpc.reading import shape_reading

    demand_rows(elements)
    schemes = schemes_of(ctx.params)
    declared = ranges_of(ranges, schemes)
    demand_this_machine(out)
    shape = (elements // ROW, ROW)
    warn_of_unused(ranges, declared, (shape_reading(Operation(name).eval(), shape) for name in OPERATIONS))
    with progress_console.status("measuring operations"), parties_on(schemes) as running:
        rows = measure_operations(running, elements, repeats, seed, schemes, declared)
    keep(ctx, out, "bench ops", "operations", rows)
    if not json_only:
        typer.echo(f"{elements} elements; {_labels(schemes)}")
        extra = {"bytes an element": [f"{row['online']['bytes'] / elements:.1f}" for row in rows]}
        extra |= _faster(rows, schemes)
        show(_measured_table("operation", [row["op"] for row in rows], rows, extra, _caption(schemes)))
    _finish(rows, schemes, None)


def places_of(networks: Sequence[str] | None, emulate: str | None, schemes: Sequence[Scheme]) -> list[Stage]:
    """Where to run what. Raises ValueError where this machine cannot have a shaped link that is asked for."""
    from bench.running import stages_of
    from bench.shaped_link import why_not
    from mpc.network import LOOPBACK

    way: Literal["transport", "link", "replay"] | None
    match emulate:
        case None | "transport" | "link" | "replay":
            way = emulate
        case _:
            raise UsageError(f"--emulate {emulate} is not available; choose from: transport, link, replay")
    named = [link_of(name) for name in networks or []]
    if way is not None and not named:
        raise UsageError(f"--emulate {emulate} needs --network: the network to run on")
    with wrong_usage():
        stages = stages_of(schemes, named, way)
    if any(s.place != LOOPBACK and s.emulation == "link" for s in stages) and (reason := why_not()):
        raise ValueError(reason)
    return stages


def _ranges_of(choice: str | None, save: Path | None, schemes: Sequence[Scheme]) -> Ranges | None:
    from bench.range_files import demand_one_kind

    if save is not None:
        with wrong_usage():
            demand_one_kind(schemes)
    return ranges_of(choice, schemes)


def _save(path: Path | None, runs: Sequence[SecureRun]) -> None:
    from bench.range_files import save_ranges

    if path is not None:
        save_ranges(path, [(run.scheme, run.ranges) for run in runs])


def _write_logs(path: Path | None, runs: Sequence[tuple[str, SecureRun, Mapping[str, Any]]]) -> None:
    """Keeps the logs of runs; each comes with what it ran and a record that says on which network, in which mode."""
    from bench.message_log import RunLog, write_logs

    if path is not None:
        write_logs(path, [RunLog.of(run, what, where["network"], where["mode"]) for what, run, where in runs])


def _labels(schemes: Sequence[Scheme]) -> str:
    return "; ".join(scheme.label for scheme in schemes)


def _caption(schemes: Sequence[Scheme]) -> str:
    from bench.comparing import reference_scheme, short_label

    if len(schemes) < 2:
        return ""
    stock = reference_scheme(schemes)
    released = (stock.name, stock.functions, stock.transport) == ("crypten", "released", "gloo")
    remark = "" if released else "; the reference is not CrypTen as released over gloo"
    return f"x faster: median seconds under {short_label(stock.to_json())} over the row's, on the same network{remark}"


def _faster(rows: Sequence[dict[str, Any]], schemes: Sequence[Scheme]) -> dict[str, list[str]]:
    """Columns with how many times faster than the reference each row is; none for one scheme."""
    from bench.comparing import reference_scheme, times_faster

    if len(schemes) < 2:
        return {}
    ratios = times_faster(rows, reference_scheme(schemes))
    return {
        f"x faster {phase}": ["-" if (ratio := row[phase]) is None else f"{ratio:.2f}" for row in ratios]
        for phase in ("online", "total")
    }


def _finish(rows: Sequence[dict[str, Any]], schemes: Sequence[Scheme], reference: str | None) -> None:
    """The last line: rows, and what they are relative to; of several schemes, the reference scheme."""
    from bench.comparing import reference_scheme, short_label, times_faster

    if len(schemes) < 2:
        finish({"rows": rows_of(rows), "reference": reference})
        return
    stock = reference_scheme(schemes)
    faster = [{**row, "times_faster": ratio} for row, ratio in zip(rows, times_faster(rows, stock), strict=True)]
    finish({"rows": rows_of(faster), "reference": short_label(stock.to_json())})


def _measured_table(
    what: str,
    names: Sequence[str],
    rows: Sequence[dict[str, Any]],
    extra: Mapping[str, Sequence[str]],
    caption: str = "",
) -> Table:
    """A row for each record: what and under which scheme, traffic and seconds by phase, error, ranges, and more."""
    from bench.comparing import short_label

    table = Table(caption=caption or None, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in (what, "scheme", "network", "mode"):
        table.add_column(heading, no_wrap=True)
    headings = ("rounds", "MB online", "MB offline", "MB setup", "online s", "IQR", "dealer s", "total s", "setup s")
    for heading in (*headings, "max error", "outside / ranges", "peak MB", *extra):
        table.add_column(heading, justify="right")
    for number, (name, row) in enumerate(zip(names, rows, strict=True)):
        seconds = row["seconds"]
        total = "-" if seconds["total"] is None else f"{seconds['total']['median']:.4f}"
        setup_s = seconds.get("setup_s")
        table.add_row(
            name,
            short_label(row["scheme"]),
            row["network"],
            row["mode"],
            str(row["online"]["rounds"]),
            *(f"{row[phase]['bytes'] / 1e6:.3f}" for phase in ("online", "offline", "setup")),
            f"{seconds['online']['median']:.4f}",
            f"{seconds['online']['iqr']:.4f}",
            f"{seconds['dealer']['median']:.4f}",
            total,
            "-" if setup_s is None else f"{setup_s:.4f}",
            f"{row['max_abs_error']:.1e}",
            _outside(row.get("health")),
            f"{row['peak_bytes'] / 1e6:.0f}",
            *(column[number] for column in extra.values()),
        )
    return table


def _outside(health: Mapping[str, Any] | None) -> str:
    """How many of the functions checked met values outside their range; after a plus, values found securely."""
    if health is None:
        return "-"
    securely = "" if health["outside_securely"] is None else f" + {health['outside_securely']} values"
    return f"{len(health['outside'])} / {health['checked']}{securely}"
