"""Declared ranges: between which bounds the argument of a function lies, by module, so that protocols can be as narrow.

A range is declared from a calibration pass on plain data (`mpc.domains.declared_ranges`), or a default from here is
used. What lies outside is computed wrongly: a plain shadow or the scheme's secure range check flags it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Range = tuple[float, float]

# Where nothing is declared. Of softmax: how far an entry may lie below its row's largest, and scores themselves where
# no maximum is taken.
DEFAULT: dict[str, Range] = {
    "relu": (-65535.0, 65535.0),
    "abs": (-65535.0, 65535.0),
    "maximum": (-65535.0, 65535.0),
    "gelu": (-32767.0, 32767.0),
    "silu": (-32767.0, 32767.0),
    "sigmoid": (-32767.0, 32767.0),
    "tanh": (-32767.0, 32767.0),
    "softmax": (-54.0, 0.0),
    "softmax_max_free": (-8.0, 8.0),
    "exp": (-8.0, 8.0),
    "reciprocal": (4.0**-7, 65535.0),
    "inverse_square_root": (4.0**-7, 65535.0),
    "row_normalize": (4.0**-6, 65535.0),
    "layer_norm": (2.0**-13, 2048.0),
}


@dataclass(frozen=True, slots=True)
class Ranges:
    """Ranges by (module, operation); hashable, with a JSON round trip."""

    declared: tuple[tuple[str, str, float, float], ...] = ()

    def __post_init__(self) -> None:
        """Refuse what is no range."""
        for site, op, low, high in self.declared:
            if not low < high:
                raise ValueError(f"the range of {op} in {site or '(top)'} must have low < high, not {low} and {high}")

    def of(self, op: str, site: str) -> Range | None:
        """The declared range of operation `op` in module `site`; None where there is none."""
        for where, name, low, high in self.declared:
            if (where, name) == (site, op):
                return low, high
        return None

    def to_json(self) -> list[dict[str, Any]]:
        """Plain values for a record."""
        return [{"site": site, "op": op, "low": low, "high": high} for site, op, low, high in self.declared]

    @classmethod
    def from_json(cls, rows: list[Mapping[str, Any]]) -> Ranges:
        """The ranges of a record. Raises ValueError for a row that is none."""
        try:
            return cls(tuple((str(r["site"]), str(r["op"]), float(r["low"]), float(r["high"])) for r in rows))
        except (KeyError, TypeError) as error:
            raise ValueError(f"declared ranges need site, op, low and high in every row: {error}") from error


NOTHING_DECLARED = Ranges()
