"""`bench breakdown`: where the online seconds of a workload go, and how far they are from the floor."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from cli import Dealer, JsonOnly, Transport, Truncation, UsageError, finish, link_of, progress_console, schemes_of, show
from verbs import Out, Repeats, Seed, demand_this_machine, keep, kinds_of, rows_of
from verbs_bench import Emulate, FunctionLists, Schemes, bench_app, places_of

_PARTS = ("arithmetic_s", "python_s", "transfer_s", "waiting_s")


@bench_app.command("breakdown")
def bench_breakdown(
    ctx: typer.Context,
    kinds: Annotated[str, typer.Option(help="attention kinds of a layer of 65 tokens, 256 wide, 4 heads")] = "softmax",
    network: Annotated[str | None, typer.Option(help="the network to run on, with --emulate; loopback")] = None,
    emulate: Emulate = None,
    scheme: Schemes = "crypten,tuned",
    functions: FunctionLists = "documented",
    dealer: Dealer = "tfp",
    transport: Transport = None,
    truncation: Truncation = "local",
    repeats: Repeats = 9,
    seed: Seed = 0,
    out: Out = None,
    json_only: JsonOnly = False,
) -> None:
    """Split the online seconds of an attention layer into arithmetic, Python, transfer and waiting.

    Python is what remains of a party's own time when the batch goes to 0 (a line through batches 1, 2 and 4). The floor
    is bytes / bandwidth + hops x one-way delay; on loopback, bandwidth is that of a direct link, measured.
    """
    import torch

    from bench.attention import AttentionShape, attention_layer, unit_input
    from bench.breakdown import BATCHES, measure_breakdown
    from bench.running import parties_on, ranges_for

    schemes = schemes_of({**ctx.params, "parties": 2, "weights": "private", "precision_bits": 16, "range_check": False})
    if network and emulate in (None, "replay"):
        link_of(network)
        raise UsageError(f"a breakdown is measured, not replayed: add --emulate link to run on {network}")
    (stage,) = places_of([network] if network else None, emulate, schemes)
    names = kinds_of(kinds)
    demand_this_machine(out)
    shape = AttentionShape()
    inputs = unit_input(AttentionShape(batch=max(BATCHES)), seed)
    others = torch.cat([unit_input(shape, seed + 1000 + i) for i in range(8)])
    rows: list[dict[str, Any]] = []
    with progress_console.status("measuring"), parties_on(schemes, stage.place, emulate=stage.emulation) as running:
        for kind in names:
            layer = attention_layer(kind, shape, seed=seed)
            ranges = ranges_for(schemes, layer, others)
            rows += measure_breakdown(running, f"attention {kind}", layer, inputs, ranges, stage.place, repeats)
    keep(ctx, out, "bench breakdown", "breakdown", rows)
    if not json_only:
        show(_table(rows))
    finish({"rows": rows_of(rows)})


def _table(rows: list[dict[str, Any]]) -> Table:
    """A row for each workload and scheme, milliseconds."""
    from bench.comparing import short_label

    table = Table("workload", "scheme", "network", "mode", caption="milliseconds, online, of the slowest party")
    for heading in ("online", *(part.removesuffix("_s") for part in _PARTS), "floor", "times the floor"):
        table.add_column(heading, justify="right")
    for row in rows:
        seconds = row["seconds"]
        table.add_row(
            row["workload"],
            short_label(row["scheme"]),
            row["network"],
            row["mode"],
            *(f"{1e3 * seconds[part]:.2f}" for part in ("online_s", *_PARTS, "floor_s")),
            f"{seconds['online_s'] / seconds['floor_s']:.2f}" if seconds["floor_s"] else "-",
        )
    return table
