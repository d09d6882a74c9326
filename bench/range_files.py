"""Declared ranges in a file of their own, so that what one run calibrated another can use."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.run_directory import write_json
from mpc.ranges import DEFAULT, NOTHING_DECLARED, Ranges
from mpc.scheme import Scheme
from mpc.trace import Trace

_RECORD = "ranges"
_SCHEMA = 1


def ranges_named(choice: str | None, schemes: Sequence[Scheme], calibrates: bool = True) -> Ranges | None:
    """The ranges that `choice` names: those of a file, none for `default`, None (to be found) for `calibrated`.

    Where nothing is chosen they are calibrated, if this run `calibrates`. Raises ValueError where no scheme takes
    ranges, for a file that is not there or holds none, and for ranges that were calibrated for other functions.
    """
    if choice is not None:
        demand_tuned(schemes, f"--ranges {choice}")
    if calibrates and choice in (None, "calibrated"):
        return None
    if choice in (None, "default"):
        return NOTHING_DECLARED
    path = Path(str(choice))
    if not path.is_file():
        known = "calibrated, default or" if calibrates else "default or"
        raise ValueError(f"--ranges is {known} a file of ranges; there is no file {choice}")
    return _read(path, {scheme.functions for scheme in schemes if scheme.name == "tuned"})


def demand_tuned(schemes: Sequence[Scheme], option: str) -> None:
    """Raises ValueError where none of the schemes takes ranges: the option would be ignored."""
    if not any(scheme.name == "tuned" for scheme in schemes):
        raise ValueError(f"{option} is for scheme tuned: leave it out, or add --scheme tuned")


def _read(path: Path, functions: set[str]) -> Ranges:
    """The ranges of a file. Raises ValueError with its path, in one line, for whatever is wrong with it."""
    try:
        held: Any = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # of JSON, of UTF-8, of a number with too many digits
        raise ValueError(f"{path} holds no ranges: it is not JSON ({error})") from error
    if isinstance(held, dict) and (held.get("record"), held.get("schema")) == (_RECORD, _SCHEMA):
        made_for = held.get("functions")
        if not isinstance(made_for, str):
            raise ValueError(f"{path} does not say for which functions; write such a file with --save-ranges")
        if others := functions - {made_for}:
            raise ValueError(f"{path} holds ranges for {made_for} functions, not for {' and '.join(sorted(others))}")
        held = held.get("ranges")
    if not isinstance(held, list):
        raise ValueError(f"{path} holds no ranges; write such a file with --save-ranges")
    for number, row in enumerate(held, 1):
        if wrong := _wrong_with(row):
            raise ValueError(f"{path}, row {number}: {wrong}")
    return Ranges.from_json(held)


def _wrong_with(row: Any) -> str | None:
    """What keeps a row of a file from being a range; None where it is one."""
    if not isinstance(row, Mapping) or not {"site", "op", "low", "high"} <= row.keys():
        return f"a row needs site, op, low and high, this is {json.dumps(row)[:80]}"
    site, op, low, high = (row[key] for key in ("site", "op", "low", "high"))
    if not isinstance(site, str) or not isinstance(op, str):
        return f"site and op are names, not {json.dumps(site)[:40]} and {json.dumps(op)[:40]}"
    if op not in DEFAULT:
        nearest = difflib.get_close_matches(op, DEFAULT, n=1)
        hint = f"; did you mean {nearest[0]}? Known: " if nearest else "; known: "
        return f"unknown op {op!r} in module {site!r}{hint}{', '.join(DEFAULT)}"
    if not (_is_finite(low) and _is_finite(high) and low < high):
        return f"low and high of {op} in module {site!r} are numbers with low < high, got {low!r:.40} and {high!r:.40}"
    return None


def _is_finite(value: Any) -> bool:
    """Whether a value of JSON is a number that a float holds; true and false are none."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def unused_rows(choice: str | None, ranges: Ranges | None, traces: Iterable[Trace]) -> list[str]:
    """Rows of the file `choice` that no operation of `traces` takes, as `op in module`; none where it names no file.

    Raises ValueError where no row is taken though there are rows or functions with ranges: every range would be the
    wide default.
    """
    if choice in (None, "calibrated", "default") or ranges is None:
        return []
    taken = {(operation.site, operation.op) for trace in traces for operation in trace.operations}
    rows = {(site, op) for site, op, _, _ in ranges.declared}
    ranged = sorted((site, op) for site, op in taken if op in DEFAULT)
    if not rows & taken and (rows or ranged):
        held = f"its rows are for {_some(sorted(rows))}" if rows else "it has no rows"
        asked = f"this network's functions are {_some(ranged)}" if ranged else "this network has none with a range"
        raise ValueError(f"no row of {choice} is for this network: {held}; {asked}")
    return [_named(row) for row in sorted(rows - taken)]


def _named(row: tuple[str, str]) -> str:
    site, op = row
    return f"{op} in module {site!r}"


def _some(rows: Sequence[tuple[str, str]]) -> str:
    return ", ".join(map(_named, rows[:3])) + f" and {len(rows) - 3} more" * (len(rows) > 3)


def save_ranges(path: Path, used: Iterable[tuple[Scheme, Ranges]]) -> None:
    """Write the ranges that workloads were run with, all in one file, whole or not at all.

    Raises ValueError where they are not of one kind (`demand_one_kind`).
    """
    tuned = [(scheme, ranges) for scheme, ranges in used if scheme.name == "tuned"]
    functions = demand_one_kind([scheme for scheme, _ in tuned])
    rows = dict.fromkeys(row for _, ranges in tuned for row in ranges.declared)
    record = {"schema": _SCHEMA, "record": _RECORD, "functions": functions, "ranges": Ranges(tuple(rows)).to_json()}
    write_json(path, record)


def demand_one_kind(schemes: Sequence[Scheme]) -> str:
    """The functions of the tuned schemes; ValueError unless they agree, since other functions read ranges otherwise."""
    functions = sorted({scheme.functions for scheme in schemes if scheme.name == "tuned"})
    if len(functions) != 1:
        known = " and ".join(functions) or "no tuned scheme"
        raise ValueError(f"--save-ranges is for tuned schemes with the same functions; here is {known}")
    return functions[0]
