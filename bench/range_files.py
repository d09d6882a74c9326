"""Declared ranges in a file of their own, so that what one run calibrated another can use."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.run_directory import write_json
from mpc.ranges import NOTHING_DECLARED, Ranges
from mpc.scheme import Scheme

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
    try:
        held: Any = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} holds no ranges: it is not JSON ({error})") from error
    if isinstance(held, dict) and (held.get("record"), held.get("schema")) == (_RECORD, _SCHEMA):
        others = functions - {held["functions"]}
        if others:
            raise ValueError(
                f"{path} holds ranges for {held['functions']} functions, not for {' and '.join(sorted(others))}"
            )
        held = held["ranges"]
    if not isinstance(held, list):
        raise ValueError(f"{path} holds no ranges; write such a file with --save-ranges")
    return Ranges.from_json(held)


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
