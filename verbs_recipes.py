"""The verbs recipes and train: the papers' configurations by name, and running them.

Registered on `cli.app` when this module is imported; heavy imports stay inside the verbs.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from cli import JsonOnly, app, finish, progress_console, show, wrong_usage
from verbs import Seed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bench.run_directory import RunDirectory
    from nas.recipe import Recipe

_COLUMNS = ("recipe", "what", "parameters", "MACs", "epochs", "expected result", "expected time", "runs")


@app.command()
def recipes(
    match: Annotated[str, typer.Argument(help="only recipes with this in their name")] = "",
    markdown: Annotated[
        bool, typer.Option("--markdown", help="the table as Markdown, as docs/training.md has it")
    ] = False,
    json_only: JsonOnly = False,
) -> None:
    """List every recipe: what it reproduces, parameters, MACs of an image, epochs, expected result with its source."""
    from nas.recipe import recipe_named, recipe_names

    found = [recipe_named(name) for name in recipe_names() if match in name]
    if not found:
        raise ValueError(f"no recipe has {match!r} in its name; all of them: mpc-pareto recipes")
    with progress_console.status("building"):
        rows = _rows(found)
    if not json_only:
        cells = [_cells(row) for row in rows]
        if markdown:
            lines = [" | ".join(row) for row in (_COLUMNS, ("---",) * len(_COLUMNS), *cells)]
            typer.echo("\n".join(f"| {line} |" for line in lines))
        else:
            table = Table(*_COLUMNS)
            for row in cells:
                table.add_row(*row)
            show(table)
    finish({"rows": rows})


def _rows(found: Sequence[Recipe]) -> list[dict[str, Any]]:
    """One row a recipe; networks that recipes share are built once."""
    from nas.recipe_runs import counts

    known: dict[Any, tuple[int, int]] = {}
    rows = []
    for recipe in found:
        key = (recipe.model, recipe.method, recipe.stage == "search")
        if recipe.buildable and key not in known:
            known[key] = counts(recipe)
        parameters, macs = known.get(key, (None, None)) if recipe.buildable else (None, None)
        rows.append(
            {
                "name": recipe.name,
                "reproduces": recipe.reproduces,
                "paper": recipe.paper,
                "model": recipe.model.name if recipe.model else None,
                "parameters": parameters,
                "macs": macs,
                "epochs": recipe.train.total_epochs if recipe.train else None,
                "expected_result": str(recipe.expected_result),
                "expected_time": str(recipe.expected_time),
                "command": recipe.command,
                "runs": recipe.runs,
                "missing": recipe.missing or None,
                "notes": recipe.notes or None,
            }
        )
    return rows


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    def count(key: str) -> str:
        return "" if row[key] is None else f"{row[key]:,}"

    runs = "yes" if row["runs"] else f"cannot be built: {row['missing']}" if row["missing"] else "not yet"
    return (
        row["name"],
        row["reproduces"],
        count("parameters"),
        count("macs"),
        count("epochs"),
        row["expected_result"],
        row["expected_time"],
        runs,
    )


@app.command("train")
def train_recipe(
    recipe: Annotated[str, typer.Argument(help="a name that mpc-pareto recipes lists")],
    out: Annotated[Path, typer.Option(help="run directory of all steps; the same command resumes a killed one")],
    data: Annotated[str | None, typer.Option(help="data set, as the recipe names it: cifar10:PATH; digits")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="epochs instead of the recipe's, without cool-down")] = None,
    amp: Annotated[str | None, typer.Option(help="precision instead of the recipe's: none, bf16 or fp16 (GPU)")] = None,
    spec: Annotated[
        Path | None, typer.Option(help="network to retrain; by default what the search left in --out")
    ] = None,
    teacher: Annotated[Path | None, typer.Option(help="folder of the teacher; by default the one in --out")] = None,
    seed: Seed = 0,
    json_only: JsonOnly = False,
) -> None:
    """Train or search as a recipe says, from fresh weights, on this machine or under torchrun.

    Networks go to OUT/train/RECIPE, those that a search finds to OUT/front. On fewer processes than the recipe's, each
    gathers more batches for an update. With fewer --epochs, the recipe's expected result is not to be expected.
    """
    from nas.distributed import join
    from nas.recipe import recipe_named
    from nas.recipe_runs import Order, run_order
    from nas.tracking import Tracker
    from nas.training_bar import TrainingBar

    with wrong_usage():
        chosen = recipe_named(recipe)
        source = data_of(chosen, data)
    order = Order(chosen, source, out, seed, epochs, amp, spec, teacher)  # type: ignore[arg-type] # settings check amp
    order.check()
    settings = order.settings
    asked: dict[str, Any] = {"recipe": recipe, "data": source, "epochs": epochs, "amp": amp}
    asked |= {"spec": spec and str(spec), "teacher": teacher and str(teacher)}
    manifest = _begun(out, asked, seed).manifest if join().first else {}
    bar = TrainingBar(progress_console, recipe)
    tracker = Tracker(order.folder, manifest=manifest, on_epoch=bar.on_epoch, on_update=bar.on_update)
    with bar, tracker:
        result = run_order(order, tracker.on_epoch, tracker.on_update)
    if not join().first:
        return
    if not json_only:
        show(_result_table(chosen, result, settings.total_epochs))
    shown = {"recipe": recipe, "folder": str(order.folder), "epochs": settings.total_epochs, "seed": seed}
    finish({**shown, **result, "expected_result": str(chosen.expected_result)})


def data_of(recipe: Recipe, data: str | None) -> str:
    """The data set: what is given, or the recipe's own where it needs no folder; ValueError where one is wanted."""
    if data is not None:
        return data
    if recipe.data.endswith("PATH") and not recipe.missing:  # what cannot be built is refused next, for that
        raise ValueError(f"recipe {recipe.name} reads {recipe.data}: give --data {recipe.data} with the folder's path")
    return recipe.data


def _begun(out: Path, asked: dict[str, Any], seed: int) -> RunDirectory:
    """The run at `out`: begun by this command, or going on, where a manifest lists each other command once."""
    from bench.run_directory import RunDirectory, commit, versions

    if not (out / "manifest.json").exists():
        return RunDirectory.start(out, "train", asked, [seed])
    run = RunDirectory.existing(out)
    added = {"verb": "train", "arguments": asked, "seeds": [seed]}
    known = [run.manifest, *run.manifest.get("added", ())]
    if not any(all(other.get(key) == value for key, value in added.items()) for other in known):
        told = {**added, "versions": versions(), "commit": commit()}
        run.manifest["added"] = [*run.manifest.get("added", ()), told]
        run.write_json("manifest.json", run.manifest)
    return run


def _result_table(recipe: Recipe, result: Mapping[str, Any], epochs: int) -> Table:
    table = Table("network", "accuracy", "epochs", "expected")
    if "front" in result:
        for row in result["front"]:
            table.add_row(row["spec"], f"{row['accuracy']:.4f} before retraining", str(epochs), "")
    else:
        table.add_row(recipe.name, f"{result['accuracy']:.4f} (test)", str(epochs), str(recipe.expected_result))
    return table
