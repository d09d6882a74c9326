"""`bench attention`, `bench model` and `bench ops`: workloads measured on real parties.

Registered on `cli.app` when this module is imported; heavy imports stay inside the verbs.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from cli import (
    Batch,
    Dealer,
    Functions,
    InputOwner,
    JsonOnly,
    Model,
    ModelOwner,
    Networks,
    PrecisionBits,
    RevealTo,
    SchemeName,
    Transport,
    Weights,
    app,
    finish,
    progress_console,
    roles_of,
    scheme_of,
    show,
)
from cli import Parties as PartyCount
from verbs import Out, Repeats, Seed, demand_this_machine, keep, kinds_of, progress_bar, rows_of

bench_app = typer.Typer(help="Measure workloads on real parties.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")


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
    scheme: SchemeName = "crypten",
    functions: Annotated[str, typer.Option(help="documented, released, or both: documented,released")] = "documented",
    parties: PartyCount = 2,
    dealer: Dealer = "tfp",
    transport: Transport = "gloo",
    weights: Weights = "private",
    precision_bits: PrecisionBits = 16,
    input_owner: InputOwner = 0,
    model_owner: ModelOwner = 1,
    reveal_to: RevealTo = "0",
    seed: Seed = 0,
    out: Out = None,
    json_only: JsonOnly = False,
) -> None:
    """Measure one attention layer of every kind, projections included, and re-time it on other links.

    Seconds are online seconds of the slowest party on loopback; --network adds rows replayed from the message log.
    """
    from bench.attention import AttentionShape, measure_attention, reference_of, relative_seconds
    from models.kinds import KINDS
    from mpc.network import network as profile
    from mpc.parties import Parties
    from workflow import replayed_attention

    shape = AttentionShape(tokens, dim, heads, batch)
    names = kinds_of(kinds) if kinds else list(KINDS)
    schemes = [scheme_of(scheme, parties, f, dealer, transport, weights, precision_bits) for f in functions.split(",")]
    links = [profile(name) for name in network or [] if name != "loopback"]
    rows: list[dict[str, Any]] = []
    roles = roles_of(input_owner, model_owner, reveal_to, parties)
    demand_this_machine(out)
    with progress_bar() as progress, Parties(schemes[0]) as running:
        task = progress.add_task("starting parties", total=len(names) * len(schemes))

        def on_kind(what: str) -> None:
            progress.update(task, description=what, completed=len(rows) // (1 + len(links)))

        for kind in names:
            for run, record in measure_attention(
                running, shape, [kind], schemes, repeats, linformer_k, seed, on_kind, roles
            ):
                rows += [record, *replayed_attention(run, record, links)]
        progress.update(task, completed=len(names) * len(schemes))
    keep(ctx, out, "bench attention", "attention", rows)
    if not json_only:
        typer.echo(
            f"one attention layer: {tokens} tokens, {dim} wide, {heads} heads, batch {batch}; {schemes[0].label}"
        )
        show(attention_table(rows))
    relative = [{**row, "relative": ratio} for row, ratio in zip(rows, relative_seconds(rows), strict=True)]
    finish({"rows": rows_of(relative), "reference": reference_of(rows)})


def attention_table(rows: list[dict[str, Any]]) -> Table:
    """`relative` is to softmax where it was measured, else to the first kind, as `relative_seconds` gives it."""
    from bench.attention import reference_of, relative_seconds

    table = Table("kind", "functions", "network", "mode", caption=f"seconds relative to {reference_of(rows)}")
    for heading in ("rounds", "MB sent", "seconds", "IQR", "relative", "max error", "peak MB"):
        table.add_column(heading, justify="right")
    for row, ratio in zip(rows, relative_seconds(rows), strict=True):
        online = row["seconds"]["online"]
        table.add_row(
            row["kind"],
            row["scheme"]["functions"],
            row["network"],
            row["mode"],
            str(row["online"]["rounds"]),
            f"{row['online']['bytes'] / 1e6:.3f}",
            f"{online['median']:.4f}",
            f"{online['iqr']:.4f}",
            "-" if ratio is None else f"{ratio:.2f}x",
            f"{row['max_abs_error']:.1e}",
            f"{row['peak_bytes'] / 1e6:.0f}",
        )
    return table


@bench_app.command("model")
def bench_model(
    ctx: typer.Context,
    model: Model,
    batch: Batch = 1,
    repeats: Repeats = 5,
    network: Networks = None,
    scheme: SchemeName = "crypten",
    functions: Functions = "documented",
    parties: PartyCount = 2,
    dealer: Dealer = "tfp",
    transport: Transport = "gloo",
    weights: Weights = "private",
    precision_bits: PrecisionBits = 16,
    input_owner: InputOwner = 0,
    model_owner: ModelOwner = 1,
    reveal_to: RevealTo = "0",
    seed: Seed = 0,
    out: Out = None,
    json_only: JsonOnly = False,
) -> None:
    """Measure a whole network with freshly drawn weights on a random input, by operation, and on other links."""
    import torch

    from bench.secure_run import run_module
    from models.names import build, input_shape
    from mpc.network import network as profile
    from mpc.parties import Parties
    from workflow import network_rows

    chosen = scheme_of(scheme, parties, functions, dealer, transport, weights, precision_bits)
    links = [profile(name) for name in network or [] if name != "loopback"]
    torch.manual_seed(seed)
    module = build(model)
    inputs = torch.randn(batch, *input_shape(module)[1:])
    roles = roles_of(input_owner, model_owner, reveal_to, parties)
    demand_this_machine(out)
    with progress_console.status(f"running {model} on {parties} parties"), Parties(chosen) as running:
        run = run_module(running, module, inputs, chosen, roles, repeats, warm_up=1)
    with torch.no_grad():
        error = float((run.output - module(inputs)).abs().max())
    rows = network_rows(run, model, batch, error, links)
    keep(ctx, out, "bench model", "models", rows)
    if not json_only:
        typer.echo(f"{model}, batch {batch}: {chosen.label}; online phase")
        table = Table("network", "mode", "seconds", "IQR", "rounds", "MB sent", "max error")
        for row in rows:
            online = row["seconds"]["online"]
            sent = f"{row['online']['bytes'] / 1e6:.2f}"
            figures = (f"{online['median']:.3f}", f"{online['iqr']:.3f}", str(row["online"]["rounds"]), sent)
            table.add_row(row["network"], row["mode"], *figures, f"{row['max_abs_error']:.1e}")
        show(table)
        by_op = Table("operation", *[row["network"] for row in rows], title="online seconds by operation")
        for op in sorted(rows[0]["by_op_s"], key=lambda op: -rows[0]["by_op_s"][op]):
            by_op.add_row(op, *[f"{row['by_op_s'][op]:.4f}" for row in rows])
        show(by_op)
    finish({"rows": rows_of(rows), "reference": None})


@bench_app.command("ops")
def bench_ops(
    ctx: typer.Context,
    elements: Annotated[int, typer.Option(min=64, help="elements of every function, a multiple of 64")] = 16384,
    repeats: Repeats = 5,
    functions: Functions = "documented",
    parties: PartyCount = 2,
    dealer: Dealer = "tfp",
    seed: Seed = 0,
    out: Out = None,
    json_only: JsonOnly = False,
) -> None:
    """Measure the non-linear functions one by one on the same number of elements."""
    from bench.operations import demand_rows, measure_operations
    from mpc.parties import Parties

    demand_rows(elements)
    chosen = scheme_of("crypten", parties, functions, dealer, "gloo", "private", 16)
    demand_this_machine(out)
    with progress_console.status("measuring operations"), Parties(chosen) as running:
        rows = measure_operations(running, elements, repeats, seed)
    keep(ctx, out, "bench ops", "operations", rows)
    if not json_only:
        table = Table("operation", "rounds", "bytes an element", "seconds", "IQR", "max error")
        for row in rows:
            online = row["seconds"]["online"]
            cost = f"{row['online']['bytes'] / row['elements']:.1f}"
            seconds = (f"{online['median']:.4f}", f"{online['iqr']:.4f}")
            table.add_row(row["op"], str(row["online"]["rounds"]), cost, *seconds, f"{row['max_abs_error']:.1e}")
        typer.echo(f"{elements} elements; {chosen.label}; online phase on loopback, measured")
        show(table)
    finish({"rows": rows_of(rows), "reference": None})
