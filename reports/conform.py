"""Does a decoded JSON value have the shape that a TypedDict declares?"""

from __future__ import annotations

import types
from typing import Any, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

_SCALARS: dict[Any, tuple[type, ...]] = {float: (int, float), int: (int,), str: (str,), bool: (bool,)}


def conform(value: object, declared: Any, where: str) -> None:
    """Raises ValueError naming the place in `value` (below `where`) that is not what `declared` says.

    Understands TypedDict, list, dict, unions, Any and the JSON scalars; keys beyond the declared ones are let through.
    """
    origin = get_origin(declared)
    if declared is Any:
        return
    if origin in (Union, types.UnionType):
        _conform_union(value, get_args(declared), where)
    elif is_typeddict(declared):
        _conform_typed_dict(value, declared, where)
    elif origin is list:
        _expect(value, (list,), where)
        for index, item in enumerate(value):  # type: ignore[arg-type, var-annotated]
            conform(item, get_args(declared)[0], f"{where}[{index}]")
    elif origin is dict:
        _expect(value, (dict,), where)
        for key, item in value.items():  # type: ignore[attr-defined]
            conform(item, get_args(declared)[1], f"{where}.{key}")
    else:
        _expect(value, _SCALARS[declared], where)


def _conform_union(value: object, choices: tuple[Any, ...], where: str) -> None:
    if value is None and type(None) in choices:
        return
    others = [choice for choice in choices if choice is not type(None)]
    conform(value, others[0], where)


def _conform_typed_dict(value: object, declared: Any, where: str) -> None:
    _expect(value, (dict,), where)
    assert isinstance(value, dict)
    # Where annotations are strings, `__required_keys__` does not know of NotRequired.
    marked = get_type_hints(declared, include_extras=True).items()
    optional = {key for key, hint in marked if get_origin(hint) is NotRequired}
    missing = sorted(declared.__required_keys__ - optional - value.keys())
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}; reports/records.py says what a record holds")
    for key, hint in get_type_hints(declared).items():
        if key in value:
            conform(value[key], hint, f"{where}.{key}")


def _expect(value: object, allowed: tuple[type, ...], where: str) -> None:
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        wanted = " or ".join(kind.__name__ for kind in allowed)
        raise ValueError(f"{where} is {value!r}, expected {wanted}; reports/records.py says what a record holds")
