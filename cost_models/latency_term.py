"""Seconds of a network whose heads have not chosen their attention kind yet, differentiable in the choice.

Heads of one kind in one layer run as one batch: their bytes add up, their rounds do not. So a kind's rounds are paid
once for each layer in which it is present, its bytes for each head. An L1 norm on the heads' probabilities, MPCViT's
released loss, is the special case in which rounds are free.
"""

# L layers, H heads, K kinds

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cost_models.linear import CostModel
from models.kinds import KINDS, kind_named
from models.spec import ViTSpec
from models.vit import VisionTransformer
from mpc.network import NetworkProfile
from mpc.reading import shape_reading
from mpc.scheme import Scheme
from mpc.trace import Trace


@dataclass(frozen=True, slots=True)
class KindLatency:
    """Seconds of a kind's own operations in one layer: `present_s` once if any head has it, `per_head_s` for each head.

    Products that every kind shares (Q K^T, P V) are in neither.
    """

    present_s: float
    per_head_s: float


@dataclass(frozen=True)
class MixtureLatency:
    """Expected seconds of a network, given the probability of every kind at every head; `base_s` is everything else.

    `layers` holds what each kind costs in each layer, `heads` the number of heads of each layer.
    """

    kinds: tuple[str, ...]
    network: str
    base_s: float
    layers: tuple[Mapping[str, KindLatency], ...]
    heads: tuple[int, ...]

    def expected_s(self, p_LHK: Tensor | Sequence[Tensor]) -> Tensor:
        """base + sum over layers and kinds of (1 - prod_h (1 - p_h)) present_s + (sum_h p_h) per_head_s.

        Differentiable. Exact where every head has one kind with probability 1. A sequence of (H, K) tensors serves
        layers with different numbers of heads. Raises ValueError for other shapes.
        """
        if len(p_LHK) != len(self.layers):
            raise ValueError(f"probabilities for {len(p_LHK)} layers, but the network has {len(self.layers)}")
        total = p_LHK[0].new_tensor(self.base_s)
        for p_HK, heads, layer in zip(p_LHK, self.heads, self.layers, strict=True):
            if tuple(p_HK.shape) != (heads, len(self.kinds)):
                expected = f"({heads} heads, {len(self.kinds)} kinds)"
                raise ValueError(f"probabilities of a layer have shape {tuple(p_HK.shape)}, expected {expected}")
            present_s = p_HK.new_tensor([layer[kind].present_s for kind in self.kinds])
            per_head_s = p_HK.new_tensor([layer[kind].per_head_s for kind in self.kinds])
            present_K = 1 - torch.prod(1 - p_HK, dim=0)
            total = total + present_K @ present_s + p_HK.sum(0) @ per_head_s
        return total

    def exact_s(self, kinds_per_layer: Sequence[Sequence[str]]) -> float:
        """Seconds of the network in which head h of layer l has kind `kinds_per_layer[l][h]`."""
        return float(self.expected_s([self._one_hot(kinds) for kinds in kinds_per_layer]))

    @property
    def all_s(self) -> float:
        """Seconds of the dearest network with one kind everywhere; for normalising."""
        return max(self.uniform_s(kind) for kind in self.kinds)

    def uniform_s(self, kind: str) -> float:
        """Seconds of the network with `kind` at every head."""
        return self.exact_s([(kind,) * heads for heads in self.heads])

    def rounds_free(self) -> MixtureLatency:
        """The same with no charge for presence: a weighted L1 norm of the probabilities, plus `base_s`."""
        layers = tuple({kind: replace(cost, present_s=0.0) for kind, cost in layer.items()} for layer in self.layers)
        return replace(self, layers=layers)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a record."""
        layers = [{kind: asdict(cost) for kind, cost in layer.items()} for layer in self.layers]
        return {"kinds": list(self.kinds), "network": self.network, "base_s": self.base_s, "layers": layers}

    def _one_hot(self, kinds: Sequence[str]) -> Tensor:
        unknown = sorted(set(kinds) - set(self.kinds))
        if unknown:
            raise ValueError(f"no latency for kind {unknown[0]!r}; this mixture is over: {', '.join(self.kinds)}")
        return torch.tensor([[float(kind == mine) for mine in self.kinds] for kind in kinds], dtype=torch.float64)


def mixture_latency(
    spec: ViTSpec,
    kinds: Sequence[str],
    cost_model: CostModel,
    scheme: Scheme,
    network: NetworkProfile,
    batch: int = 1,
) -> MixtureLatency:
    """The latency of `spec` with the kind of every head left open among `kinds`, for `batch` images at once.

    Every figure is a difference between seconds of counted networks: one head of a kind against all heads of it. Raises
    ValueError for kinds that do not map scores to weights: with those, Q K^T and A V depend on the mixture too.
    """
    kinds = tuple(kinds)
    _demand_maps(kinds)

    def trace_of(kinds_per_layer: Sequence[Sequence[str]]) -> Trace:
        with torch.random.fork_rng(devices=[]):  # weights are drawn and not used: the caller's generator stays put
            model = VisionTransformer(spec.with_kinds(kinds_per_layer)).eval()
        shape = (batch, spec.in_channels, spec.image_px, spec.image_px)
        return shape_reading(model, shape, scheme.weights)

    def seconds(trace: Trace) -> float:
        return cost_model.seconds(trace, scheme, network).p50_s

    everywhere = {kind: trace_of([(kind,) * heads for heads in spec.heads]) for kind in kinds}
    layers: list[dict[str, KindLatency]] = [{} for _ in spec.blocks]
    for kind in kinds:
        other = next(k for k in (*kinds, *KINDS) if k != kind and KINDS[k].form == "map")
        alone = trace_of([(kind,) + (other,) * (heads - 1) for heads in spec.heads])
        for layer, heads in enumerate(spec.heads):
            site = f"blocks.{layer}.attn.kind.{kind}"
            one_s, all_s = seconds(alone.within(site)), seconds(everywhere[kind].within(site))
            layers[layer][kind] = _split(one_s, all_s, heads)
    first = kinds[0]
    kinds_s = sum(
        layers[i][first].present_s + heads * layers[i][first].per_head_s for i, heads in enumerate(spec.heads)
    )
    return MixtureLatency(kinds, network.name, seconds(everywhere[first]) - kinds_s, tuple(layers), spec.heads)


def _split(one_s: float, all_s: float, heads: int) -> KindLatency:
    """Seconds that come once, and with every head; a lone head is present or absent, nothing between."""
    per_head_s = (all_s - one_s) / (heads - 1) if heads > 1 else 0.0
    return KindLatency(one_s - per_head_s, per_head_s)


def _demand_maps(kinds: tuple[str, ...]) -> None:
    if not kinds or len(set(kinds)) != len(kinds):
        raise ValueError(f"a mixture is over different attention kinds, got {kinds}")
    maps = ", ".join(name for name, kind in KINDS.items() if kind.form == "map")
    for name in kinds:
        if kind_named(name).form != "map":
            raise ValueError(f"kind {name!r} replaces Q K^T and A V, so it cannot be mixed; these can: {maps}")
