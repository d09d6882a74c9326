"""What a differentiable search adds to the cross-entropy: seconds on a named network, or the paper's L1 norm.

Unlike the paper, probabilities of kinds start at equal shares. At its alpha = 1 the latency term, which charges a
kind's rounds once a layer, would have no gradient away from the dear kind.
"""

# L layers, H heads, K kinds

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Protocol

from torch import Tensor

from cost_models.latency_term import MixtureLatency
from models.mixture import Parametrisation
from nas.binarise import kind_column


class Objective(Protocol):
    """A differentiable penalty on the probabilities of the kinds."""

    @property
    def name(self) -> str:
        """What records call it."""
        ...

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that the search mixes, in the order of the last axis of the probabilities."""
        ...

    @property
    def parametrisation(self) -> Parametrisation:
        """How the search network turns its logits into probabilities."""
        ...

    def penalty(self, p_LHK: Tensor) -> Tensor:
        """The term of the loss, weight included."""
        ...

    def seconds(self, p_LHK: Tensor) -> float | None:
        """Expected seconds, None where the objective knows no network."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Plain values that tell one objective from another."""
        ...


@dataclass(frozen=True)
class Latency:
    """`weight` x (expected seconds on the term's network / the spread of its uniform choices).

    The spread, the dearest minus the cheapest network of one kind everywhere, makes one weight mean the same on every
    network. Raises ValueError where all of them cost the same: there is nothing to search.
    """

    latency: MixtureLatency
    weight: float

    def __post_init__(self) -> None:
        if not self.spread_s > 0:
            raise ValueError(f"{', '.join(self.kinds)} cost the same on {self.latency.network}: nothing to search")

    @property
    def name(self) -> str:
        """`latency@` and the network."""
        return f"latency@{self.latency.network}"

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of the latency."""
        return self.latency.kinds

    @property
    def parametrisation(self) -> Parametrisation:
        """`sigmoid`: presence needs probabilities inside (0, 1)."""
        return "sigmoid"

    @cached_property
    def spread_s(self) -> float:
        """Seconds between the dearest and the cheapest network of one kind everywhere."""
        seconds = [self.latency.uniform_s(kind) for kind in self.kinds]
        return max(seconds) - min(seconds)

    def penalty(self, p_LHK: Tensor) -> Tensor:
        """Weight x expected seconds / spread; `base_s` is a constant in it."""
        return self.weight * self.latency.expected_s(p_LHK) / self.spread_s

    def seconds(self, p_LHK: Tensor) -> float:
        """Expected seconds."""
        return float(self.latency.expected_s(p_LHK.detach()))

    def to_json(self) -> dict[str, Any]:
        """Name, weight and the latency's own figures."""
        return {"name": self.name, "weight": self.weight, "latency": self.latency.to_json()}


@dataclass(frozen=True)
class L1:
    """MPCViT's released term: `weight` x sum over all heads of |alpha|, alpha the probability of the dear kind `keep`.

    The paper's weight is 1e-5, for a `direct` alpha that starts at 1 and also decays; `sigmoid`, our default, starts
    where `Latency` starts, so that the two can be compared. Where rounds are free and all layers alike, it equals
    `Latency` up to weight and a constant.
    """

    weight: float
    kinds: tuple[str, ...] = ("relu_softmax", "scaling")
    keep: str = "relu_softmax"
    parametrisation: Parametrisation = "sigmoid"

    def __post_init__(self) -> None:
        kind_column(self.kinds, self.keep)

    @property
    def name(self) -> str:
        """`l1`."""
        return "l1"

    def penalty(self, p_LHK: Tensor) -> Tensor:
        """Weight x L1 norm of the dear kind's probabilities."""
        return self.weight * p_LHK[..., kind_column(self.kinds, self.keep)].abs().sum()

    def seconds(self, p_LHK: Tensor) -> None:
        """None: the norm knows no network."""
        return

    def to_json(self) -> dict[str, Any]:
        """Name, weight and kinds."""
        return {"name": self.name, **asdict(self)}
