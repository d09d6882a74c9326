"""`bench training`: images per second of this project's training loop against a plain loop of timm's parts.

Registered when this module is imported; heavy imports stay inside the verb.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from cli import JsonOnly, finish, progress_console, show, wrong_usage
from verbs import Out, keep
from verbs_bench import bench_app
from verbs_recipes import data_of

if TYPE_CHECKING:
    from nas.throughput import Throughputs


@bench_app.command("training")
def bench_training(
    ctx: typer.Context,
    recipe: Annotated[
        str, typer.Argument(help="whose network, batch, augmentation and mixing are taken")
    ] = "mpcvit-cifar10-teacher",
    data: Annotated[str | None, typer.Option(help="data set, as the recipe names it: cifar10:PATH; digits")] = None,
    batch: Annotated[int | None, typer.Option(min=2, help="images of an update; by default the recipe's")] = None,
    amp: Annotated[
        str | None, typer.Option(help="precision: none, bf16 or fp16 (GPU); by default the recipe's")
    ] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="torch.compile on both sides")] = False,
    workers: Annotated[int, typer.Option(min=0, help="processes of the plain loop's DataLoader")] = 0,
    batches: Annotated[int, typer.Option(min=1, help="timed updates in each turn")] = 10,
    segments: Annotated[int, typer.Option(min=3, help="turns of each loop")] = 5,
    out: Out = None,
    json_only: JsonOnly = False,
) -> None:
    """Train one network with our loop and with a plain loop of timm's parts, in turns, on the best device there is.

    Images per second by turn, their medians, and the ratio of the medians. Two updates before each turn do not count.
    """
    from bench.machine import this_machine
    from nas.recipe import recipe_named
    from nas.throughput import compare, course_of

    with wrong_usage():
        chosen = recipe_named(recipe)
        source = data_of(chosen, data)
    course = course_of(chosen, source, batch, amp)
    course = course.lasting(batches, segments, workers, compiled)
    with progress_console.status(f"training {course.model} in turns"):
        found = compare(course)
    record: dict[str, Any] = {"record": "throughput", **course.to_json(), **found.to_json(), "machine": this_machine()}
    keep(ctx, out, "bench training", "throughput", [record])
    if not json_only:
        typer.echo(f"{course.model} on {source}, batch {course.batch}, amp {course.amp}; {found.device}")
        show(_table(found))
    finish({key: value for key, value in record.items() if key != "machine"})


def _table(found: Throughputs) -> Table:
    table = Table("turn", caption=f"ours / plain: {found.ratio:.3f} (medians)")
    for heading in ("ours, images/s", "plain, images/s"):
        table.add_column(heading, justify="right")
    rows = [*enumerate(zip(found.ours, found.plain, strict=True), 1), ("median", found.medians)]
    for name, (ours, plain) in rows:
        table.add_row(str(name), f"{ours:,.1f}", f"{plain:,.1f}")
    return table
