"""Everything about the protocol that changes traffic or accuracy, and who plays which part."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

ProtocolSet = Literal["crypten"]
Functions = Literal["documented", "released"]
Dealer = Literal["tfp", "ttp"]
Transport = Literal["gloo"]
Weights = Literal["private", "public"]


def _one_of(what: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise ValueError(f"{what} {value!r} is not available; choose from: {', '.join(get_args(choices))}")


@dataclass(frozen=True, slots=True)
class Scheme:
    """A secure protocol, fixed down to what its parties send.

    `functions` is `documented` (CrypTen's protocols with our compositions where CrypTen has no function or a wrong
    one, see docs/functions.md) or `released` (CrypTen 0.4.1 as it is). `dealer` is `tfp` (the first party deals:
    for benchmarks only, it could read every secret) or `ttp` (a third process deals).
    """

    name: ProtocolSet = "crypten"
    parties: int = 2
    functions: Functions = "documented"
    dealer: Dealer = "tfp"
    transport: Transport = "gloo"
    weights: Weights = "private"
    precision_bits: int = 16

    ring_bits = 64

    def __post_init__(self) -> None:
        _one_of("scheme", self.name, ProtocolSet)
        _one_of("functions", self.functions, Functions)
        _one_of("dealer", self.dealer, Dealer)
        _one_of("transport", self.transport, Transport)
        _one_of("weights", self.weights, Weights)
        if self.parties not in (2, 3):
            raise ValueError(f"parties must be 2 or 3, got {self.parties}")
        if not 14 <= self.precision_bits <= 20:
            raise ValueError(
                f"precision_bits must lie in 14..20, got {self.precision_bits}: a product needs twice as many"
            )

    @property
    def label(self) -> str:
        """One line for tables and figures: scheme, transport, dealer and what the dealer means."""
        dealer = "TFP: benchmark only" if self.dealer == "tfp" else "TTP"
        protocol = f"{self.name} ({self.functions} functions)"
        return f"{protocol}, {self.parties} parties, {self.transport}, dealer {dealer}, weights {self.weights}"

    def to_json(self) -> dict[str, Any]:
        """Plain values for a record."""
        return asdict(self)


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
