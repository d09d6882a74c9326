"""`search mpcvit`: a search, its front measured on real parties, and a budget met by measured seconds.

Registered on `cli.app` when this module is imported; heavy imports stay inside the verb.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from cli import Functions, JsonOnly, SchemeName, Transport, app, finish, link_of, progress_console, scheme_of, show
from verbs import Data, Seed, kinds_of, progress_bar, rows_of

if TYPE_CHECKING:
    from nas.runs import Searched
    from remeasure import Settled

search_app = typer.Typer(help="Search networks under a latency term.", no_args_is_help=True)
app.add_typer(search_app, name="search")


@search_app.command("mpcvit")
def search_mpcvit(
    out: Annotated[Path, typer.Option(help="run directory; the same command resumes a killed search")],
    model: Annotated[str, typer.Option(help="a named mpcvit: spec, or spec:PATH")] = "mpcvit:vit_4_4_32_demo",
    data: Data = "digits",
    network: Annotated[
        str | None, typer.Option(help="link whose latency is in the loss (the budget's, or cheetah-wan), or l1")
    ] = None,
    kinds: Annotated[str, typer.Option(help="the kinds that heads choose from")] = "relu_softmax,scaling",
    ratios: Annotated[str, typer.Option(help="shares of heads that keep the first kind")] = "0.1,0.3,0.5,0.7",
    budget: Annotated[
        str | None, typer.Option(help="latency<=20s@cheetah-wan: the likeliest network within it, as measured")
    ] = None,
    weight: Annotated[float | None, typer.Option(help="weight of the latency (0.05) or L1 (0.05 / 16) term")] = None,
    epochs: Annotated[int | None, typer.Option(help="epochs of the search; 7 on the digits")] = None,
    scheme: SchemeName = "crypten",
    functions: Functions = "documented",
    transport: Transport = None,
    repeats: Annotated[int, typer.Option(min=5, help="runs of each network of the front, interleaved")] = 5,
    measure: Annotated[bool, typer.Option(help="measure the front; without, no budget counts as met")] = True,
    seed: Seed = 0,
    json_only: JsonOnly = False,
) -> None:
    """Search the attention kind of every head (MPCViT) under the latency of a named network; needs a calibration.

    Writes front/RATIO.json, a spec for each ratio, and front/budget.json, with the accuracy right after binarisation.
    Then every network of the front is run on real parties, on the searched network: emulated by the direct transport,
    on a shaped link (gloo, as root), or else replayed from loopback. A budget is met where the median of the measured
    seconds meets it; another network is chosen, within a scaled limit, where only the prediction did. Exit code 1
    where none meets it. Under l1 the front is run on loopback.
    """
    from nas.runs import SearchRequest, parse_budget, search_on_link
    from nas.training_bar import TrainingBar

    chosen = scheme_of({"scheme": scheme, "functions": functions, "transport": transport})
    shares = tuple(float(ratio) for ratio in ratios.split(","))
    if network not in (None, "l1"):
        link_of(network)
    link = network or (parse_budget(budget)[1] if budget else "cheetah-wan")
    request = SearchRequest(model, data, link, tuple(kinds_of(kinds)), shares, budget, weight, epochs, seed)
    with TrainingBar(progress_console, "searching") as bar:
        searched = search_on_link(out, request, chosen, bar.on_epoch, bar.on_update)
    found = {**searched.to_json(), "budget_met": None}
    settled = _measured(searched, found["front"], repeats) if measure else None
    if settled is not None:
        records = rows_of(settled.remeasured)
        found |= {"front": settled.front, "remeasured": records, "budget_met": settled.budget_met}
    asked = {"asked_s": searched.budget_s, "network": link, **_budget_figures(settled)} if budget else None
    if not json_only:
        typer.echo(f"{model} on {data}, latency of {link}; {chosen.label}")
        show(_front_table(found["front"], request.kinds[0], settled))
        typer.echo(_verdict(asked, found["budget_met"], measure))
    finish({**found, "budget": asked})
    if found["budget_met"] is False:
        assert asked is not None
        fastest = f"the fastest of {asked['tries']} tried takes {asked['measured_s']:.4g} s ({asked['mode']})"
        typer.echo(f"mpc-pareto: no network found meets {budget}: {fastest}; allow more seconds", err=True)
        raise typer.Exit(1)


def _measured(searched: Searched, front: Sequence[dict[str, Any]], repeats: int) -> Settled:
    from mpc.network import LOOPBACK
    from mpc.network import network as profile_of
    from remeasure import Remeasuring, place_for, settle

    link = LOOPBACK if searched.request.link == "l1" else profile_of(searched.request.link)
    place, seed = place_for(searched.scheme, link), searched.request.seed
    remeasuring = Remeasuring(searched.run, searched.scheme, place, searched.cost_model, repeats, seed)
    with progress_bar() as progress, remeasuring:
        task = progress.add_task("measuring", total=None)
        on_run = lambda i, n, what: progress.update(task, completed=i, total=n, description=f"measuring {what}")  # noqa: E731
        return settle(searched, front, remeasuring, on_run)


def _budget_figures(settled: Settled | None) -> dict[str, Any]:
    if settled is None or settled.budget is None:
        return {"measured_s": None, "predicted_s": None, "mode": None, "tries": 0}
    record = settled.budget
    return {
        "measured_s": record["measured_s"]["median"],
        "predicted_s": record["predicted_s"]["p50"],
        "mode": record["mode"],
        "tries": sum("budget" in other for other in settled.remeasured),
    }


def _front_table(front: Sequence[Mapping[str, Any]], keep: str, settled: Settled | None) -> Table:
    """The networks found; where they were measured, predicted against measured, those tried for a budget too."""
    accuracies = {row["name"]: f"{row['accuracy']:.3f}" for row in front}
    table = Table("network", f"{keep} heads by layer", "accuracy before retraining")
    if settled is None:
        for heading in ("predicted s", "spec"):
            table.add_column(heading)
        for row in front:
            seconds = "-" if row["seconds"] is None else f"{row['seconds']:.3f}"
            table.add_row(row["name"], str(row["heads"]), accuracies[row["name"]], seconds, row["spec"])
        return table
    for heading in ("predicted s (5 % to 95 %)", "measured s (IQR, runs)", "mode", "predicted / measured", "in 90 %"):
        table.add_column(heading, justify="right")
    for record in settled.remeasured:
        seconds, measured = record["predicted_s"], record["measured_s"]
        predicted = "-" if seconds is None else f"{seconds['p50']:.3f} ({seconds['p05']:.3f} to {seconds['p95']:.3f})"
        table.add_row(
            record["name"],
            str([layer.count(keep) for layer in record["kinds"]]),
            accuracies.get(record["name"], "-"),
            predicted,
            f"{measured['median']:.3f} ({measured['iqr']:.3f}, {measured['n']})",
            record["mode"],
            "-" if record["ratio"] is None else f"{record['ratio']:.3f}",
            {None: "-", True: "yes", False: "no"}[record["within_90"]],
        )
    return table


def _verdict(asked: Mapping[str, Any] | None, met: bool | None, measured: bool) -> str:
    """What became of the budget, in a line."""
    if not measured:
        return "not measured" + (": whether the budget is met is not known" if asked else "")
    if asked is None:
        return "measured; no budget was asked for"
    result = "met" if met else "NOT met"
    return (
        f"budget of {asked['asked_s']:g} s on {asked['network']} {result}: {asked['measured_s']:.4g} s "
        f"({asked['mode']}; predicted {asked['predicted_s']:.4g} s; networks tried: {asked['tries']})"
    )
