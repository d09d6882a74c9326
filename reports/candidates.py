"""What a candidate costs on a link, and the order in which families and links are shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from reports.records import CandidateRecord

_PREFERRED_LINKS = ("cheetah-lan", "cheetah-wan")


@dataclass(frozen=True, slots=True)
class Reading:
    """A cost (seconds, or millions of multiply-accumulates) with its interval and how it is known."""

    cost: float
    low: float
    high: float
    mode: str

    @property
    def observed(self) -> bool:
        """Whether the cost comes from a run (measured, replayed, emulated) and not from a prediction."""
        return self.mode not in ("predicted", "counted")


def reading(candidate: CandidateRecord, link: str | None) -> Reading | None:
    """The cost of `candidate` on `link`, a run before a prediction; its MACs where `link` is None; None if unknown."""
    if link is None:
        macs = candidate["macs"] / 1e6
        return Reading(macs, macs, macs, "counted")
    if observed := candidate["measured_s"].get(link):
        half = observed["iqr"] / 2
        return Reading(observed["median"], observed["median"] - half, observed["median"] + half, observed["mode"])
    if predicted := candidate["seconds"].get(link):
        return Reading(predicted["p50"], predicted["p05"], predicted["p95"], "predicted")
    return None


def links(candidates: Sequence[CandidateRecord]) -> tuple[str, ...]:
    """At most two networks to show: Cheetah's LAN and WAN where known, else the first in the records."""
    known = dict.fromkeys(
        name for candidate in candidates for name in (*candidate["seconds"], *candidate["measured_s"])
    )
    preferred = tuple(name for name in _PREFERRED_LINKS if name in known)
    if preferred:
        return preferred
    others = [name for name in known if name != "loopback"] or list(known)
    return tuple(others[:2])


def families(candidates: Iterable[CandidateRecord]) -> tuple[str, ...]:
    """The values of `found_by` in a stable order: searches by name, then the rest."""
    return tuple(
        sorted(
            {candidate["found_by"] for candidate in candidates}, key=lambda name: (not name.startswith("mpcvit"), name)
        )
    )
