"""Networks between the parties: bandwidth, one-way delay and where each figure comes from."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Literal

Emulation = Literal["transport", "link"]

_MBIT = 1_000_000 / 8


@dataclass(frozen=True, slots=True)
class NetworkProfile:
    """A link between two parties, equal in both directions.

    Raises ValueError for a negative delay or a bandwidth that is not positive.
    """

    name: str
    one_way_delay_s: float
    bytes_per_s: float
    source: str

    def __post_init__(self) -> None:
        if not self.one_way_delay_s >= 0:
            raise ValueError(f"one_way_delay_s must be >= 0, got {self.one_way_delay_s}")
        if not self.bytes_per_s > 0:
            raise ValueError(f"bytes_per_s must be > 0, got {self.bytes_per_s}")

    def link_s(self, hops: float, payload_bytes: float) -> float:
        """Seconds that `hops` one-way delays and `payload_bytes` in one direction take on this link."""
        return hops * self.one_way_delay_s + payload_bytes / self.bytes_per_s


@dataclass(frozen=True, slots=True)
class Wire:
    """Where the parties of a run stand: a network namespace and an address for each, and the interface between them.

    `namespaces` are names under /run/netns, empty for this process's own. A `profile` is emulated: by stamps of the
    direct `transport`, or by a `link` between the namespaces, which is shaped by whoever made them.
    """

    hosts: tuple[str, ...] = ("127.0.0.1", "127.0.0.1", "127.0.0.1")
    interface: str = "lo"
    namespaces: tuple[str, ...] = ()
    profile: NetworkProfile | None = None
    emulation: Emulation = "link"

    @property
    def mode(self) -> str:
        """What records of runs on this wire say of their seconds."""
        return "measured" if self.profile is None else f"emulated-{self.emulation}"

    @property
    def stamped(self) -> NetworkProfile | None:
        """The profile that direct links emulate, if they do."""
        return self.profile if self.emulation == "transport" else None


def _profile(name: str, mbit_per_s: float, round_trip_ms: float, source: str) -> NetworkProfile:
    return NetworkProfile(name, round_trip_ms / 2000, mbit_per_s * _MBIT, source)


# Loopback is this machine: its delay and copying are part of the fitted compute, so the link itself is free.
LOOPBACK = NetworkProfile("loopback", 0.0, float("inf"), "this machine; its cost is part of the fitted compute")

PROFILES: dict[str, NetworkProfile] = {
    profile.name: profile
    for profile in (
        LOOPBACK,
        _profile("cheetah-lan", 3000, 0.3, "OpenCheetah throttle.sh"),
        _profile("cheetah-wan", 400, 40, "OpenCheetah throttle.sh; MPCViT follows it"),
        _profile("bolt-lan", 3000, 0.8, "BOLT, as used by FABLE's plots"),
        _profile("bolt-wan1", 200, 40, "BOLT, as used by Nimbus table 6"),
        _profile("bolt-wan2", 100, 80, "BOLT, as used by SecP-Tuning"),
        _profile("bumblebee-lan", 1000, 0.5, "BumbleBee"),
        _profile("bumblebee-wan", 400, 4, "BumbleBee"),
        _profile("nimbus-lan", 3000, 1, "Nimbus figure 6"),
        _profile("nimbus-wan", 400, 10, "Nimbus figure 6"),
        _profile("spu-wan", 300, 20, "SecretFlow SPU documentation"),
    )
}

_AD_HOC = re.compile(r"(?P<rate>\d+(?:\.\d+)?)(?P<unit>[kmg])bit/(?P<delay>\d+(?:\.\d+)?)ms", re.IGNORECASE)
_UNIT_MBIT = {"k": 1e-3, "m": 1.0, "g": 1e3}


def network(name: str) -> NetworkProfile:
    """The profile called `name`, or the ad hoc link `400mbit/40ms` (bandwidth / round-trip time).

    Raises ValueError naming the nearest known profile.
    """
    if name in PROFILES:
        return PROFILES[name]
    if match := _AD_HOC.fullmatch(name):
        mbit_per_s = float(match["rate"]) * _UNIT_MBIT[match["unit"].lower()]
        return _profile(name, mbit_per_s, float(match["delay"]), "ad hoc: bandwidth / round-trip time")
    nearest = difflib.get_close_matches(name, PROFILES, n=1)
    hint = f"; did you mean {nearest[0]}? Known: " if nearest else "; known: "
    known = ", ".join(PROFILES)
    raise ValueError(f"unknown network {name!r}{hint}{known}, or ad hoc as 400mbit/40ms")
