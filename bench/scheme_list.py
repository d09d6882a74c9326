"""Schemes as a command line names them: lists of protocol sets and their choices, of which each takes what it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from itertools import product
from typing import Any

from mpc.scheme import Scheme, default_transport

_LISTED = ("functions", "dealer", "transport", "truncation")  # options that may name several choices


def schemes_named(options: Mapping[str, Any]) -> list[Scheme]:
    """The schemes that `options` name: `scheme`, a list separated by commas, and fields of Scheme; others are left out.

    `functions`, `dealer`, `transport` and `truncation` may be lists too: each protocol set takes the combinations that
    it has. No transport means the protocol set's own. Where several sets are named, range checks are for those that
    have them. Raises ValueError where a set takes none, or where nothing takes one of the choices.
    """
    given = {f.name: options[f.name] for f in fields(Scheme) if f.name in options and options[f.name] is not None}
    names = str(options.get("scheme", "crypten")).split(",")
    found: list[Scheme] = []
    refused: list[tuple[dict[str, Any], ValueError]] = []
    for name in names:
        own = {"transport": default_transport(name), **given, "name": name}
        if name == "crypten" and len(names) > 1:
            own["range_check"] = False
        schemes, refusals = _accepted(own)
        if not schemes:
            raise refusals[0][1]
        found += schemes
        refused += refusals
    _demand_all_taken(given, found, refused)
    return list(dict.fromkeys(found))


def _accepted(own: dict[str, Any]) -> tuple[list[Scheme], list[tuple[dict[str, Any], ValueError]]]:
    """Every combination of the listed choices that is a scheme, and every other with the reason."""
    keys = [key for key in _LISTED if key in own]
    accepted, refused = [], []
    for values in product(*(str(own[key]).split(",") for key in keys)):
        choice = {**own, **dict(zip(keys, values, strict=True))}
        try:
            accepted.append(Scheme(**choice))
        except ValueError as error:
            refused.append((choice, error))
    return accepted, refused


def _demand_all_taken(
    given: Mapping[str, Any], schemes: list[Scheme], refused: list[tuple[dict[str, Any], ValueError]]
) -> None:
    for key in _LISTED:
        for value in str(given[key]).split(",") if key in given else ():
            if value not in {getattr(scheme, key) for scheme in schemes}:
                raise next(error for choice, error in refused if choice[key] == value)


def one_scheme(options: Mapping[str, Any]) -> Scheme:
    """The only scheme that `options` name; ValueError where they name several."""
    schemes = schemes_named(options)
    if len(schemes) > 1:
        raise ValueError(f"this takes one scheme, not {len(schemes)}: {'; '.join(scheme.label for scheme in schemes)}")
    return schemes[0]
