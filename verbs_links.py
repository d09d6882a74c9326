"""`bench links`: the two ways of emulating a network against each other, and TCP's slow start fitted to the link."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from cli import JsonOnly, Networks, UsageError, finish, link_of, progress_console, show
from verbs import Out, demand_this_machine, keep
from verbs_bench import bench_app


@bench_app.command("links")
def bench_links(
    ctx: typer.Context,
    network: Networks = None,
    repeats: Annotated[int, typer.Option(min=3, help="passes over all sizes, the ways in turn")] = 9,
    sizes: Annotated[str, typer.Option(help="bytes of the messages, separated by commas; 8 to 4 million")] = "",
    out: Out = None,
    json_only: JsonOnly = False,
) -> None:
    """Exchange messages of many sizes on a network emulated by the transport and on a shaped link, and compare.

    Medians of all passes; back to back, and after idling until TCP begins anew. A way agrees within 5 % up to 90 kB and
    within 10 % above. Without root on Linux, the transport is compared with the law alone.
    """
    from bench.link_agreement import SIZES_BYTES, agreement, cases_of, measure_ways, ways_of
    from bench.shaped_link import why_not
    from mpc.network import LOOPBACK

    profiles = [link_of(name) for name in network or ["cheetah-wan"]]
    if LOOPBACK in profiles:
        raise UsageError("on loopback nothing is emulated; name other networks")
    try:
        sizes_bytes = tuple(sorted({int(size) for size in sizes.split(",")})) if sizes else SIZES_BYTES
    except ValueError:
        raise UsageError(f"--sizes is whole numbers of bytes separated by commas, got {sizes!r}") from None
    if sizes_bytes[0] < 1:
        raise UsageError(f"--sizes must be at least 1 byte, got {sizes_bytes[0]}")
    demand_this_machine(out)
    if reason := why_not():
        typer.echo(f"without a shaped link: {reason}", err=True)
    rows: list[dict[str, Any]] = []
    for profile in profiles:
        cases = cases_of(profile, sizes_bytes)
        with progress_console.status(f"measuring {profile.name}"), ways_of(profile, reason is None) as ways:
            seconds = measure_ways(ways, cases, repeats)
        rows.append(agreement(profile, cases, seconds))
        if not json_only:
            show(_table(rows[-1]))
    keep(ctx, out, "bench links", "links", rows)
    finish({"rows": [{key: value for key, value in row.items() if key != "machine"} for row in rows]})


def _table(record: dict[str, Any]) -> Table:
    """A row for each size: milliseconds of an exchange by way, the law's, and how they compare."""
    fit = record.get("fit")
    caption = "no shaped link here"
    if fit:
        window, growth = fit["initial_window_bytes"], fit["growth"]
        caption = (
            f"{record['agreeing']:.0%} of the sizes agree; slow start fitted to the link: {window / 1000:.0f} kB at "
            f"first, x {growth:.2f} a round trip (median error of the law then {fit['median_error']:.1%})"
        )
    table = Table("bytes", "sent", title=f"{record['network']}: milliseconds an exchange", caption=caption)
    for heading in ("transport", "link", "ratio", "law", "law / link", "program alone", "loopback"):
        table.add_column(heading, justify="right")
    for row in record["rows"]:
        median_s = row["median_s"]

        def shown(way: str, median_s: dict[str, float] = median_s) -> str:
            return f"{1e3 * median_s[way]:.3f}" if way in median_s else "-"

        ratio = f"{row['ratio']:.3f}{'' if row['agrees'] else ' *'}" if "ratio" in row else "-"
        law_ratio = f"{row['law_ratio']:.3f}" if "law_ratio" in row else "-"
        table.add_row(
            f"{row['payload_bytes']:,}",
            "after idling" if row["after_idle"] else "in a row",
            shown("transport"),
            shown("link"),
            ratio,
            f"{1e3 * row['law_s']:.3f}",
            law_ratio,
            shown("program"),
            shown("loopback"),
        )
    return table
