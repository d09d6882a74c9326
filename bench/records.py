"""Records: JSON Lines on disk, one record a line, `schema` first and `record` (its kind) second.

A writer may be killed at any moment: rows go out whole, and what a killed writer left of its last row is set aside.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

SCHEMA = 1

Record = dict[str, Any]


class TornRecordWarning(UserWarning):
    """The last row of a file was cut short by a killed writer; it was moved to PATH.torn."""


def plain(value: Any, where: str = "record") -> Any:
    """`value` as JSON holds it: tuples, numpy and torch become lists and numbers, a to_json() is called.

    Raises ValueError, naming the field, for NaN, infinity, keys that are not text and anything JSON has no form for.
    """
    if hasattr(value, "to_json"):
        value = value.to_json()
    elif hasattr(value, "tolist"):  # numpy and torch, scalars and arrays alike
        value = value.tolist()
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}: a record holds finite numbers; leave the field out, or write null")
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"{where} has the key {key!r}: keys of a record are text")
        return {key: plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise ValueError(f"{where} is a {type(value).__name__}, which a record cannot hold")


def append(path: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
    """Adds one whole row to `path`, creating it and its folder: a single write, flushed to the disk.

    `record` names its kind under "record"; the schema number is added. Raises ValueError where it cannot be stored.
    """
    if not isinstance(record.get("record"), str):
        raise ValueError('a record names its kind: {"record": "measurement", ...}')
    if record.get("schema", SCHEMA) != SCHEMA:
        raise ValueError(f"this program writes schema {SCHEMA}, not {record['schema']}")
    row = {"schema": SCHEMA, "record": record["record"], **plain(record)}
    line = json.dumps(row, allow_nan=False, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        _mend_end(path, file)
        written = file.write(line)
        if written != len(line):
            raise OSError(f"only {written} of {len(line)} bytes of a record reached {path}: is the disk full?")
        os.fsync(file.fileno())


def read(path: str | os.PathLike[str], kind: str | None = None) -> list[Record]:
    """All records of `path` in order, or those of one `kind`.

    A torn last row is moved to PATH.torn with a TornRecordWarning. Raises FileNotFoundError for a missing file and
    ValueError for a damaged row elsewhere or a schema that this program does not know.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no records at {path}")
    if os.access(path, os.W_OK):
        with path.open("a+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            _mend_end(path, file)
    lines = path.read_bytes().split(b"\n")
    if _is_torn(lines[-1]):  # only where this process may not write
        warnings.warn(f"{path}: the last row is cut short and was left out", TornRecordWarning, stacklevel=2)
        lines.pop()
    records = [_parse(path, number, line) for number, line in enumerate(lines, start=1) if line]
    return [record for record in records if kind is None or record["record"] == kind]


def machines(records: Iterable[Record]) -> dict[str, list[Record]]:
    """The records of each machine, by the label in their "machine", in the order in which the machines appear.

    Raises ValueError for a record that names no machine.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        machine = record.get("machine")
        label = machine.get("label") if isinstance(machine, Mapping) else machine
        if not isinstance(label, str):
            raise ValueError(f"a {record.get('record')} record names no machine: its seconds cannot be compared")
        groups.setdefault(label, []).append(record)
    return groups


def of_one_machine(records: Iterable[Record]) -> list[Record]:
    """The records unchanged, all measured on one machine; ValueError naming the machines where there are several."""
    groups = machines(records)
    if len(groups) > 1:
        raise ValueError(f"records of {len(groups)} machines cannot be merged: {'; '.join(groups)}")
    return [record for group in groups.values() for record in group]


def _parse(path: Path, number: int, line: bytes) -> Record:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{path}, line {number} is damaged ({error}); remove that line") from error
    schema = record.get("schema") if isinstance(record, dict) else None
    if schema != SCHEMA:
        raise ValueError(f"{path}, line {number} has schema {schema}; this program reads schema {SCHEMA}")
    if not isinstance(record.get("record"), str):
        raise ValueError(f'{path}, line {number} does not say what it records (its "record" is missing)')
    return dict(record)


def _is_torn(tail: bytes) -> bool:
    """Whether bytes after the last newline are less than a whole row; a row that lacks only its newline is whole."""
    if not tail:
        return False
    try:
        return not isinstance(json.loads(tail), dict)
    except ValueError:
        return True


def _mend_end(path: Path, file: BinaryIO | Any) -> None:
    """Makes the file end in a whole row: moves a torn one to PATH.torn, adds a newline that is missing."""
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        return
    file.seek(end - 1)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    tail = file.read().rpartition(b"\n")[2]
    if not _is_torn(tail):
        file.write(b"\n")
        return
    aside = path.with_name(path.name + ".torn")
    with aside.open("ab") as torn:
        torn.write(tail + b"\n")
    file.truncate(end - len(tail))
    message = f"{path}: the last row was cut short by a killed run and is now in {aside.name}"
    warnings.warn(message, TornRecordWarning, stacklevel=3)
