"""The command line. A verb reads its arguments, calls the folders, shows a table and ends with `finish`.

To add a verb: a function under `@app.command()`, heavy imports inside it. `main` turns known errors into one line.
"""

from __future__ import annotations

import atexit
import dis
import gc
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from mpc.network import NetworkProfile
    from mpc.ranges import Ranges
    from mpc.scheme import Roles, Scheme
    from mpc.trace import Trace
    from mpc.traffic import Traffic

app = typer.Typer(
    help="Vision transformers under secure multi-party computation: counted, predicted, searched, measured.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
progress_console = Console(stderr=True)

# Options that several verbs share. Their choices are checked by Scheme and Roles, which name the known ones;
# `wrong_usage` gives a wrong choice the exit code 2.
Model = Annotated[str, typer.Argument(help="mpcvit:, vitas:, resnas: or deit:NAME, timm:NAME?arg=value or spec:PATH")]
Networks = Annotated[
    list[str] | None, typer.Option("--network", help="a profile, or bandwidth/round trip: 400mbit/40ms; repeatable")
]
SchemeName = Annotated[str, typer.Option("--scheme", help="protocols: crypten, or tuned (ours, two parties)")]
Functions = Annotated[
    str,
    typer.Option(
        help="documented; released (crypten: nothing of ours); max_free (tuned: a softmax that takes no maximum)"
    ),
]
Parties = Annotated[int, typer.Option(help="computing parties: 2 or 3")]
Dealer = Annotated[str, typer.Option(help="tfp (the first party deals: benchmark only) or ttp (a third process)")]
Transport = Annotated[
    str | None,
    typer.Option(help="how messages travel: gloo or direct; by default crypten's is gloo, tuned's direct"),
]
Truncation = Annotated[str, typer.Option(help="local, or for tuned dealer: one opening more, cannot wrap")]
RangeCheck = Annotated[bool, typer.Option("--range-check", help="tuned counts securely what lay outside its ranges")]
Weights = Annotated[str, typer.Option(help="private (shared) or public")]
PrecisionBits = Annotated[int, typer.Option(help="fraction bits of the fixed-point numbers")]
Batch = Annotated[int, typer.Option(min=1, help="images in one forward pass")]
InputOwner = Annotated[int, typer.Option(help="party that brings the images")]
ModelOwner = Annotated[int, typer.Option(help="party that brings the weights")]
RevealTo = Annotated[str, typer.Option(help="party that learns the logits, or all")]
DeclaredRanges = Annotated[
    str | None,
    typer.Option("--ranges", help="of tuned: calibrated (on other inputs), default, or a file; calibrated by default"),
]
SaveRanges = Annotated[Path | None, typer.Option(help="write the ranges that were used to this file")]
JsonOnly = Annotated[bool, typer.Option("--json", help="leave out the table")]


class UsageError(ValueError):
    """The command line asks for something that no verb does; `main` exits with 2 and its one line."""


@contextmanager
def wrong_usage() -> Iterator[None]:
    """A ValueError inside becomes a UsageError: for what is decided by the command line's words alone."""
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error)) from error


@app.callback()
def _verbs() -> None:
    """Keeps verbs verbs, however few there are."""


@app.command()
def doctor(
    out: Annotated[Path, typer.Option(help="folder that runs would be written to")] = Path("runs"),
    json_only: JsonOnly = False,
) -> None:
    """Check what the other verbs need on this machine, and say how to mend what is wrong."""
    from bench.doctor import examine

    with progress_console.status("checking"):
        checks = list(examine(out))
    broken = [check for check in checks if check.needed and not check.ok]
    if not json_only:
        table = Table("", "check", "found", "what to do")
        for check in checks:
            mark = "ok" if check.ok else "BROKEN" if check.needed else "advice"
            table.add_row(mark, check.name, check.found, check.fix)
        show(table)
    finish({"ok": not broken, "checks": [check.to_json() for check in checks]})
    if broken:
        raise typer.Exit(1)


@app.command()
def predict(
    ctx: typer.Context,
    model: Model,
    network: Networks = None,
    scheme: SchemeName = "crypten",
    functions: Functions = "documented",
    parties: Parties = 2,
    dealer: Dealer = "tfp",
    transport: Transport = None,
    weights: Weights = "private",
    precision_bits: PrecisionBits = 16,
    truncation: Truncation = "local",
    range_check: RangeCheck = False,
    ranges: Annotated[str | None, typer.Option(help="of tuned: default, or a file as --save-ranges writes it")] = None,
    batch: Batch = 1,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of each party, as calibrated for")] = 1,
    input_owner: InputOwner = 0,
    model_owner: ModelOwner = 1,
    reveal_to: RevealTo = "0",
    depth: Annotated[int, typer.Option(min=1, help="dotted parts of a module's name that make a row")] = 3,
    json_only: JsonOnly = False,
) -> None:
    """Count traffic and predict seconds of one secure forward pass, without starting a party.

    Traffic and seconds are those of a whole --batch, macs those of one image. Without --network, seconds are given for
    every profile.
    """
    from mpc.network import PROFILES

    profiles = [link_of(name) for name in network] if network else list(PROFILES.values())
    chosen = scheme_of(ctx.params)
    roles = roles_of(input_owner, model_owner, reveal_to, parties)
    declared = ranges_of(ranges, [chosen], calibrates=False)
    with progress_console.status(f"reading {model}"), _nothing_collected():
        from models.names import build, input_shape
        from mpc.ranges import NOTHING_DECLARED
        from mpc.reading import shape_reading

        # Of public weights, which are no secrets, the reading may ask for values; of private ones for shapes alone.
        module = build(model, draws=chosen.weights == "public")
        trace = shape_reading(module, (batch, *input_shape(module)[1:]), chosen.weights, declared or NOTHING_DECLARED)
        warn_of_unused(ranges, declared, [trace])
        seconds = _seconds(trace, chosen, profiles, threads)
    traffic, by_op, by_module = trace.traffic(chosen), trace.by_op(chosen), trace.by_module(chosen)
    phases = traffic.to_json()
    phases["offline"]["derived"] = chosen.dealer == "tfp"  # what a third party would have sent
    if not json_only:
        typer.echo(f"{model}, batch {batch}: {chosen.label}; online phase; predicted")
        show(_traffic_table("op", by_op, traffic))
        show(_traffic_table("module", _rolled_up(by_module, depth), traffic))
        if seconds is not None:
            show(_seconds_table(seconds))
    finish(
        {
            "model": model,
            "params": sum(parameter.numel() for parameter in module.parameters()),
            "macs": trace.macs // batch,
            **{"scheme" if key == "name" else key: value for key, value in chosen.to_json().items()},
            "roles": roles.to_json(),
            "batch": batch,
            "mode": "predicted",
            **phases,
            "hops": max(traffic.online.hops),
            "seconds": seconds,
            "by_module": {name: _row(part) for name, part in by_module.items()},
            "by_op": {name: _row(part) for name, part in by_op.items()},
        }
    )


def scheme_of(options: Mapping[str, Any]) -> Scheme:
    """The scheme that a verb's options name; UsageError where there is no such scheme, or they name several."""
    from bench.scheme_list import one_scheme

    with wrong_usage():
        return one_scheme(options)


def schemes_of(options: Mapping[str, Any]) -> list[Scheme]:
    """The schemes that a verb's options name, for verbs that compare; UsageError as `scheme_of`."""
    from bench.scheme_list import schemes_named

    with wrong_usage():
        return schemes_named(options)


def roles_of(input_owner: int, model_owner: int, reveal_to: str, parties: int) -> Roles:
    """The roles as options give them; UsageError for a party that does not exist."""
    from mpc.scheme import Roles

    if reveal_to != "all" and not (reveal_to.isascii() and reveal_to.isdecimal()):
        raise UsageError(f"--reveal-to is a party's number or all, got {reveal_to!r}")
    roles = Roles(input_owner, model_owner, None if reveal_to == "all" else int(reveal_to))
    with wrong_usage():
        roles.check(parties)
    return roles


def link_of(name: str) -> NetworkProfile:
    """The network that --network names; UsageError where there is none."""
    from mpc.network import network

    with wrong_usage():
        return network(name)


def ranges_of(choice: str | None, schemes: Sequence[Scheme], calibrates: bool = True) -> Ranges | None:
    """The ranges that --ranges names, None where they are to be calibrated; UsageError where it names none."""
    from bench.range_files import ranges_named

    with wrong_usage():
        return ranges_named(choice, schemes, calibrates)


def warn_of_unused(choice: str | None, ranges: Ranges | None, traces: Iterable[Trace]) -> None:
    """Says on stderr which rows of the file `choice` no operation takes. Raises ValueError where none is taken."""
    from bench.range_files import unused_rows

    if unused := unused_rows(choice, ranges, traces):
        shown = ", ".join(unused[:5]) + f" and {len(unused) - 5} more" * (len(unused) > 5)
        typer.echo(f"{choice}: rows that nothing here takes: {shown}", err=True)


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """Garbage collection is off inside, and passes over what was made: importing torch makes a million lasting objects.

    Searching them again and again takes as long as a third of the imports. On exit they are cleared away as usual.
    """
    collected = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)  # else libraries find their own objects alive at exit, and say that they leaked
        if collected:
            gc.enable()


def _seconds(trace: Trace, scheme: Scheme, profiles: list[Any], threads: int) -> dict[str, dict[str, float]] | None:
    """Predicted seconds on each network, or None with advice where this machine is not calibrated."""
    from cost_models.calibration import load_default

    try:
        cost_model = load_default(scheme, threads)
    except ValueError as error:
        typer.echo(f"no seconds: {error}", err=True)
        return None
    if cost_model is None:
        command = _calibrate_command(scheme) + f" --threads {threads}" * (threads != 1)
        typer.echo(f"no seconds: this machine is not calibrated; run: {command}", err=True)
        return None
    estimates = {profile.name: cost_model.seconds(trace, scheme, profile) for profile in profiles}
    return {name: {"p50": e.p50_s, "p05": e.p05_s, "p95": e.p95_s} for name, e in estimates.items()}


def _calibrate_command(scheme: Scheme) -> str:
    """The command that calibrates for `scheme`: every option that is not what its protocol set has by default."""
    from mpc.scheme import default_transport

    default = type(scheme)(scheme.name, transport=default_transport(scheme.name)).to_json()
    options = {key: value for key, value in scheme.to_json().items() if value != default[key]}
    if scheme.name != "crypten":
        options = {"scheme": scheme.name, **options}
    words = [
        f"--{key.replace('_', '-')}" + (f" {value}" if value is not True else "") for key, value in options.items()
    ]
    return " ".join(["mpc-pareto calibrate", *words])


def _row(traffic: Traffic) -> dict[str, int]:
    """The largest values over parties, online, and what the dealer sends."""
    online = traffic.online.to_json()
    return {**{key: online[key] for key in ("rounds", "bytes", "hops")}, "offline_bytes": sum(traffic.offline.bytes)}


def _rolled_up(by_module: Mapping[str, Traffic], depth: int) -> dict[str, Traffic]:
    """Traffic of modules joined by the first `depth` parts of their dotted names."""
    rolled: dict[str, Traffic] = {}
    for site, traffic in by_module.items():
        name = ".".join(site.split(".")[:depth]) or "(model)"
        rolled[name] = rolled[name] + traffic if name in rolled else traffic
    return rolled


def _traffic_table(what: str, parts: Mapping[str, Traffic], whole: Traffic) -> Table:
    table = Table(what)
    for heading in ("rounds", "hops", "bytes sent per party", "share of bytes", "offline bytes"):
        table.add_column(heading, justify="right")
    rows = {name: _row(traffic) for name, traffic in parts.items()}
    total = _row(whole)
    for name, row in [*rows.items(), ("total", total)]:
        share = row["bytes"] / total["bytes"] if total["bytes"] else 0.0
        numbers = (row["rounds"], row["hops"], row["bytes"])
        table.add_row(name, *(f"{n:,}" for n in numbers), f"{share:.1%}", f"{row['offline_bytes']:,}")
    return table


def _seconds_table(seconds: Mapping[str, Mapping[str, float]]) -> Table:
    table = Table("network")
    for heading in ("seconds", "5 % to 95 %", "relative"):
        table.add_column(heading, justify="right")
    least = min(row["p50"] for row in seconds.values())
    for name, row in seconds.items():
        interval = f"{row['p05']:.3g} to {row['p95']:.3g}"
        table.add_row(name, f"{row['p50']:.3g}", interval, f"{row['p50'] / least:.2f}x")
    return table


def show(table: Table) -> None:
    """Prints a table for people; wide enough for its columns where stdout is no terminal."""
    console = Console() if sys.stdout.isatty() else Console(width=240)
    console.print(table)


def finish(payload: Mapping[str, Any]) -> None:
    """Prints the verb's last line: one compact JSON object. NaN and infinity are refused."""
    from bench.records import plain

    typer.echo(json.dumps(plain(payload, "result"), separators=(",", ":"), allow_nan=False))


_OWN = ("bench", "calibrating", "cost_models", "demo", "models", "mpc", "nas", "remeasure", "reports", "workflow")
_TRACEBACK = "Traceback (most recent call last):"


def _is_known(error: Exception) -> bool:
    """Whether the message of `error` says what is wrong and what to do, so that a traceback would add nothing."""
    known: tuple[type[Exception], ...] = (ValueError, OSError, ImportError)
    for module, name in (("mpc.parties", "PartyError"), ("nas.jobs", "JobError")):
        if module in sys.modules:  # what was never imported cannot have failed
            known += (getattr(sys.modules[module], name),)
    if isinstance(error, known):
        return True
    return type(error) in (RuntimeError, FloatingPointError) and bool(str(error)) and _raised_by_us(error)


def _raised_by_us(error: Exception) -> bool:
    """Whether a `raise` of our own packages raised `error`, not a library that they called."""
    step = error.__traceback__
    while step is not None and step.tb_next is not None:
        step = step.tb_next
    if step is None or str(step.tb_frame.f_globals.get("__name__")).partition(".")[0] not in _OWN:
        return False
    return dis.opname[step.tb_frame.f_code.co_code[step.tb_lasti]] == "RAISE_VARARGS"


def _one_line(error: Exception) -> str:
    """The first line of the message; where it ends in another process's traceback, what was raised there."""
    text = str(error).strip() or type(error).__name__
    start, is_traceback, rest = text.partition(_TRACEBACK)
    return f"{start.strip()} {rest.splitlines()[-1]}" if is_traceback and rest else text.splitlines()[0]


def main() -> NoReturn:
    """Runs the command line and exits: 0 done, 1 a known error, 2 wrong usage, 130 interrupted.

    MPC_PARETO_DEBUG=1 shows the traceback of a known error.
    """
    try:
        app()
    except Exception as error:
        if os.environ.get("MPC_PARETO_DEBUG") or not _is_known(error):
            raise
        print(f"mpc-pareto: {_one_line(error)}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 1)
    sys.exit(0)


import verbs  # noqa: E402, F401 - registers the verbs that run something; they need the names above
import verbs_bench  # noqa: E402, F401
import verbs_breakdown  # noqa: E402, F401
import verbs_calibrate  # noqa: E402, F401
import verbs_links  # noqa: E402, F401
import verbs_map  # noqa: E402, F401
import verbs_recipes  # noqa: E402, F401
import verbs_replay  # noqa: E402, F401
import verbs_search  # noqa: E402, F401
import verbs_throughput  # noqa: E402, F401

if __name__ == "__main__":
    main()
