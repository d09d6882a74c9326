"""Schemes beside each other: which one is the reference, and how many times faster than it the others are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mpc.scheme import Scheme

_PHASES = ("online", "total")


def reference_scheme(schemes: Sequence[Scheme]) -> Scheme:
    """The stock scheme among several: CrypTen as released over gloo, or what is nearest to it; else the first."""

    def distance(scheme: Scheme) -> tuple[bool, bool, bool]:
        return scheme.name != "crypten", scheme.functions != "released", scheme.transport != "gloo"

    return min(schemes, key=distance)


def short_label(scheme: Mapping[str, Any]) -> str:
    """A record's scheme for a column: protocol set, functions, transport, dealer, and options that are not default."""
    options = ["dealer truncation"] * (scheme.get("truncation") == "dealer")
    options += ["range check"] * scheme.get("range_check", False)
    return ", ".join([f"{scheme['name']} {scheme['functions']}", scheme["transport"], scheme["dealer"], *options])


def times_faster(rows: Sequence[Mapping[str, Any]], reference: Scheme) -> list[dict[str, float | None]]:
    """For each row, the reference scheme's median seconds over its own, online and total, on the same work and network.

    None where the reference was not measured there, or where a mode cannot tell seconds.
    """

    def case(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return row["workload"], row.get("kind") or row.get("op") or row.get("model"), row["network"], row["mode"]

    theirs = {case(row): row["seconds"] for row in rows if row["scheme"] == reference.to_json()}

    def ratio(row: Mapping[str, Any], phase: str) -> float | None:
        own, other = row["seconds"][phase], theirs.get(case(row), {}).get(phase)
        return other["median"] / own["median"] if own and other and own["median"] > 0 else None

    return [{phase: ratio(row, phase) for phase in _PHASES} for row in rows]
