"""The table of secure operations: one row states how shares compute an operation and what that sends.

`ROWS` maps aten overloads (and our own operators) to rows. `STRUCTURAL` holds overloads that only move data, which is
free. `COMPOSITES` rewrites an overload in terms of others. Anything else is decomposed by torch, or refused by name.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mpc.scheme import Scheme
from mpc.trace import Operation
from mpc.traffic import Event

Secure = Callable[..., Any]
Sends = Callable[[Scheme, Operation], Iterable[Event]]
Describe = Callable[..., Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Form:
    """A row under one protocol set: `secure` maps shares to shares, `sends` lists what that costs."""

    secure: Secure
    sends: Sends


@dataclass(frozen=True, slots=True)
class Row:
    """One secure operation: its forms by protocol set; `describe` names attributes."""

    name: str
    describe: Describe
    forms: dict[str, Form]


ROWS: dict[Any, Row] = {}
STRUCTURAL: set[Any] = set()
COMPOSITES: dict[Any, Callable[..., Tensor]] = {}
_BY_NAME: dict[str, Row] = {}


def _no_attributes(*_: object, **__: object) -> Mapping[str, Any]:
    return {}


def row(name: str, *overloads: Any, sends: Sends, describe: Describe = _no_attributes) -> Callable[[Secure], Secure]:
    """Register the decorated function as the secure form of `overloads`.

    It is called as `secure(scheme, *args, **kwargs)` with shares in place of secret tensors. `describe` is called with
    the original arguments and returns what `sends` needs beyond shapes. Raises ValueError for a name or overload taken
    twice.
    """

    def register(secure: Secure) -> Secure:
        if name in _BY_NAME or any(overload in ROWS for overload in overloads):
            raise ValueError(f"operation {name!r} is in the table already")
        entry = Row(name, describe, {"crypten": Form(secure, sends)})
        _BY_NAME[name] = entry
        ROWS.update(dict.fromkeys(overloads, entry))
        return secure

    return register


def tuned(*names: str, sends: Sends) -> Callable[[Secure], Secure]:
    """Register the decorated function as the form of rows `names` under the tuned scheme.

    It is called as `secure(engine, operation, *args, **kwargs)` with ring tensors in place of secret tensors. Raises
    ValueError for an unknown row and for one that has its form already.
    """

    def register(secure: Secure) -> Secure:
        for name in names:
            if name not in _BY_NAME or "tuned" in _BY_NAME[name].forms:
                raise ValueError(f"row {name!r} is unknown, or tuned already")
            _BY_NAME[name].forms["tuned"] = Form(secure, sends)
        return secure

    return register


def form_of(entry: Row, scheme: Scheme) -> Form:
    """The row's form under `scheme`; ValueError where that protocol set has none."""
    if scheme.name not in entry.forms:
        raise ValueError(f"operation {entry.name!r} has no form under scheme {scheme.name}; use scheme crypten")
    return entry.forms[scheme.name]


def composite(*overloads: Any) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Register the decorated function, written with ordinary tensor operations, in place of `overloads`."""

    def register(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        COMPOSITES.update(dict.fromkeys(overloads, function))
        return function

    return register


def row_named(name: str) -> Row:
    """The row called `name`; ValueError naming the nearest where there is none."""
    from mpc import rows  # noqa: F401 - importing the rows registers them

    if name not in _BY_NAME:
        nearest = difflib.get_close_matches(name, _BY_NAME, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        raise ValueError(f"no secure operation {name!r}{hint} Known: {', '.join(sorted(_BY_NAME))}")
    return _BY_NAME[name]


def row_names() -> list[str]:
    """Names of all rows, sorted."""
    from mpc import rows  # noqa: F401 - importing the rows registers them

    return sorted(_BY_NAME)
