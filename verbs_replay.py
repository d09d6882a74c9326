"""`replay`: runs that were measured once, re-timed on any network, and drawn as a trace.

Registered on `cli.app` when this module is imported; heavy imports stay inside the verb.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from cli import JsonOnly, Networks, UsageError, app, finish, link_of, show
from verbs import Out, keep, rows_of

if TYPE_CHECKING:
    from bench.message_log import RunLog
    from cost_models.replay import Replay
    from mpc.network import NetworkProfile


@app.command("replay")
def replay_log(
    ctx: typer.Context,
    log: Annotated[Path, typer.Argument(help="a message log, as bench attention --log or bench model --log writes it")],
    network: Networks = None,
    run: Annotated[int | None, typer.Option(min=1, help="take only this run of the log; all where left out")] = None,
    perfetto: Annotated[
        Path | None,
        typer.Option(help="write a trace of one run for ui.perfetto.dev: on the one --network given, else as measured"),
    ] = None,
    out: Out = None,
    json_only: JsonOnly = False,
) -> None:
    """Re-time measured runs on other networks: what each would take, in local work, delay and transfer.

    The log is of runs on loopback; the timelines of all parties are simulated together. Without --network, every
    profile.
    """
    from bench.message_log import read_logs
    from mpc.network import LOOPBACK, PROFILES

    links = [link_of(name) for name in network] if network else list(PROFILES.values())
    runs = read_logs(log)
    if run is not None:
        if run > len(runs):
            raise UsageError(f"--run {run}: {log} holds {len(runs)} runs")
        runs = [runs[run - 1]]
    if perfetto is not None and (len(runs) > 1 or (network and len(links) > 1)):
        raise UsageError("a trace is of one run on one network: add --run, and --network at most once")
    away = [link for link in links if link != LOOPBACK]
    replayed = [(one, [_replayed(one, link) for link in away]) for one in runs]
    if perfetto is not None:
        _draw(perfetto, *replayed[0], simulated=bool(network))
    rows = [row for one, replays in replayed for row in _rows(one, replays)]
    keep(ctx, out, "replay", "replays", rows)
    if not json_only:
        show(_table(rows))
    finish({"rows": rows_of(rows), "perfetto": None if perfetto is None else str(perfetto)})


def _replayed(run: RunLog, link: NetworkProfile) -> Replay:
    from cost_models.replay import replay
    from mpc.network import LOOPBACK

    if run.network != LOOPBACK.name:
        raise ValueError(
            f"{run.workload} was run on {run.network} ({run.mode}): only runs on loopback can be replayed; "
            "record it without --emulate"
        )
    return replay(run.logs, link)


def _draw(path: Path, run: RunLog, replays: Sequence[Replay], simulated: bool) -> None:
    from bench.perfetto import write_trace

    about = {"workload": run.workload, "scheme": run.scheme.to_json(), "network": run.network, "mode": run.mode}
    if simulated and replays:
        write_trace(path, replays[0].logs, {**about, "network": replays[0].network, "mode": "replayed"})
    else:
        write_trace(path, run.logs, about)


def _rows(run: RunLog, replays: Sequence[Replay]) -> list[dict[str, Any]]:
    """A record of the run as it was measured and one of each replay; `online` are seconds of the slowest party."""
    from mpc.elapsed import together_s

    measured_s = together_s(run.logs)
    about = {"record": "replay", "workload": run.workload, "scheme": run.scheme.to_json()}
    here = {"network": run.network, "mode": run.mode, "online": {"total_s": measured_s, "samples": list(run.online_s)}}
    return [
        {**about, **part, "times_measured": part["online"]["total_s"] / measured_s, "machine": run.machine}
        for part in (here, *(one.to_json() for one in replays))
    ]


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    from bench.comparing import short_label

    table = Table("workload", "scheme", "network", "mode", caption="online seconds of the slowest party")
    for heading in ("online s", "local s", "delay s", "transfer s", "relative"):
        table.add_column(heading, justify="right")
    for row in rows:
        online = row["online"]
        parts = [f"{online[key]:.4f}" if key in online else "-" for key in ("compute_s", "delay_s", "transfer_s")]
        table.add_row(
            row["workload"],
            short_label(row["scheme"]),
            row["network"],
            row["mode"],
            f"{online['total_s']:.4f}",
            *parts,
            f"{row['times_measured']:.2f}x",
        )
    return table
