"""Everything about the protocol that changes traffic or accuracy, and who plays which part."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

ProtocolSet = Literal["crypten", "tuned"]
Functions = Literal["documented", "released", "max_free"]
Dealer = Literal["tfp", "ttp"]
Transport = Literal["gloo", "direct"]
Weights = Literal["private", "public"]
Truncation = Literal["local", "dealer"]

# What each protocol set can do, its default first.
_FUNCTIONS = {"crypten": ("documented", "released"), "tuned": ("documented", "max_free")}
_TRANSPORTS = {"crypten": ("gloo", "direct"), "tuned": ("direct",)}


def _one_of(what: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise ValueError(f"{what} {value!r} is not available; choose from: {', '.join(get_args(choices))}")


@dataclass(frozen=True, slots=True)
class Scheme:
    """A secure protocol, fixed down to what its parties send.

    `name` is the protocol set: `crypten` (its released protocols) or `tuned` (ours, for two parties and a dealer over
    `direct`; docs/security.md). `functions` is `documented` (for crypten: its protocols with our compositions where it
    has no function or a wrong one, docs/functions.md), `released` (CrypTen 0.4.1 as it is) or `max_free` (tuned, with a
    softmax that takes no maximum). `dealer` is `tfp` (the first party deals: for benchmarks only, it could read every
    secret) or `ttp` (a third process deals). `transport` is `gloo`, or `direct`: one socket for each pair of parties.
    `truncation` and `range_check` are choices of `tuned`: `dealer` truncation opens every product once more and cannot
    wrap; a range check opens how many values lay outside the declared ranges.
    """

    name: ProtocolSet = "crypten"
    parties: int = 2
    functions: Functions = "documented"
    dealer: Dealer = "tfp"
    transport: Transport = "gloo"
    weights: Weights = "private"
    precision_bits: int = 16
    truncation: Truncation = "local"
    range_check: bool = False

    ring_bits = 64

    def __post_init__(self) -> None:
        _one_of("scheme", self.name, ProtocolSet)
        _one_of("functions", self.functions, Functions)
        _one_of("dealer", self.dealer, Dealer)
        _one_of("transport", self.transport, Transport)
        _one_of("weights", self.weights, Weights)
        _one_of("truncation", self.truncation, Truncation)
        if self.parties not in (2, 3):
            raise ValueError(f"parties must be 2 or 3, got {self.parties}")
        self._check_protocol_set()
        if not 14 <= self.precision_bits <= 20:
            raise ValueError(
                f"precision_bits must lie in 14..20, got {self.precision_bits}: a product needs twice as many"
            )

    def _check_protocol_set(self) -> None:
        for what, value, choices in (
            ("functions", self.functions, _FUNCTIONS[self.name]),
            ("transport", self.transport, _TRANSPORTS[self.name]),
        ):
            if value not in choices:
                raise ValueError(f"scheme {self.name} has {what} {' or '.join(choices)}, not {value!r}")
        if self.name == "tuned" and self.parties != 2:
            raise ValueError(f"scheme tuned is for two parties and a dealer, not {self.parties}; use scheme crypten")
        if self.name == "crypten" and (self.truncation != "local" or self.range_check):
            raise ValueError("dealer truncation and range checks are options of scheme tuned, not of crypten")
        if self.name == "crypten" and self.transport == "direct" and self.dealer == "ttp":
            raise ValueError("scheme crypten has its third-party dealer over gloo only; use --transport gloo or TFP")

    @property
    def label(self) -> str:
        """One line for tables and figures: scheme, transport, dealer and what the dealer means."""
        dealer = "TFP: benchmark only" if self.dealer == "tfp" else "TTP"
        protocol = f"{self.name} ({self.functions} functions)"
        options = ", dealer truncation" * (self.truncation == "dealer") + ", range check" * self.range_check
        return f"{protocol}{options}, {self.parties} parties, {self.transport}, dealer {dealer}, weights {self.weights}"

    def to_json(self) -> dict[str, Any]:
        """Plain values for a record."""
        return asdict(self)


def default_transport(name: str) -> Transport:
    """The transport that a protocol set has where none is asked for; ValueError for an unknown set."""
    _one_of("scheme", name, ProtocolSet)
    transport: Transport = _TRANSPORTS[name][0]  # type: ignore[assignment]
    return transport


@dataclass(frozen=True, slots=True)
class Roles:
    """Who brings the input, who brings the weights and who learns the result (a party number, or None for all)."""

    input_owner: int = 0
    model_owner: int = 1
    reveal_to: int | None = 0

    def check(self, parties: int) -> None:
        """Raises ValueError where a role names a party that does not exist."""
        for role in ("input_owner", "model_owner", "reveal_to"):
            party = getattr(self, role)
            if party is not None and not 0 <= party < parties:
                raise ValueError(f"{role} is party {party}, but the parties are 0..{parties - 1}")

    def to_json(self) -> dict[str, Any]:
        """Plain values for a record."""
        return asdict(self)
