"""Seconds of a network whose heads have not chosen their attention kind yet, differentiable in the choice.

Heads of one kind in one layer run as one batch: their bytes add up, their rounds do not, and their compute does as the
cost model says. So a layer pays for each kind by the number N of heads that have it: c(0) = 0, c(1), c(2), ... Heads
that choose independently make N Poisson-binomial, and E[c(N)] = sum_n P(N = n) c(n). Where c is a line from c(1) on,
that is rounds paid once for each kind present and bytes for each head. An L1 norm on the heads' probabilities,
MPCViT's released loss, is the special case in which rounds are free.
"""

# L layers, H heads, K kinds, N heads that have a kind, from 0 to H; S pairs of layer and kind

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from cost_models.choices import LinkLaw, RelaxedSeconds, choice_seconds, ramp_levels
from cost_models.linear import Cost, CostModel
from cost_models.vit_table import vit_trace
from models.kinds import KINDS, kind_named
from models.spec import BlockSpec, ViTSpec
from mpc.network import NetworkProfile
from mpc.scheme import Scheme
from mpc.trace import Trace


@dataclass(frozen=True, slots=True)
class KindLatency:
    """Seconds of a kind's own operations in one layer, by the number of heads that have it.

    `present_s` comes once if any head has it and `per_head_s` for each head: the line through one head and all heads.
    `beyond_s` is what 0, 1, 2, ... heads take beyond that line, empty for nothing. `largest_bytes` is the largest
    message of 0, 1, 2, ... heads, empty where it does not matter. Products that every kind shares (Q K^T, P V) are in
    neither.
    """

    present_s: float
    per_head_s: float
    beyond_s: tuple[float, ...] = ()
    largest_bytes: tuple[int, ...] = ()

    @classmethod
    def through(cls, seconds: Sequence[float], largest_bytes: Sequence[int]) -> KindLatency:
        """The kind that takes `seconds[n]` for n heads; a lone head is present or absent, nothing between."""
        heads = len(seconds) - 1
        per_head_s = (seconds[heads] - seconds[1]) / (heads - 1) if heads > 1 else 0.0
        line = cls(seconds[1] - per_head_s, per_head_s)
        beyond_s = tuple(s - line.seconds(n) for n, s in enumerate(seconds))
        return replace(line, beyond_s=beyond_s, largest_bytes=tuple(largest_bytes))

    def seconds(self, heads: int) -> float:
        """Seconds where `heads` heads of the layer have the kind."""
        line_s = self.present_s * (heads > 0) + self.per_head_s * heads
        return line_s + (self.beyond_s[heads] if self.beyond_s else 0.0)

    def largest(self, heads: int) -> int:
        """Bytes of its largest message where `heads` heads have the kind."""
        return self.largest_bytes[heads] if self.largest_bytes else 0


@dataclass(frozen=True)
class MixtureLatency:
    """Expected seconds of a network, given the probability of every kind at every head; `base_s` is everything else.

    `layers` holds what each kind costs in each layer, `heads` the number of heads of each layer. `ramps` says what slow
    start adds: (bytes, seconds) for a largest message of up to so many bytes, ascending, from the largest of everything
    else on, whose own share is in `base_s`.
    """

    kinds: tuple[str, ...]
    network: str
    base_s: float
    layers: tuple[Mapping[str, KindLatency], ...]
    heads: tuple[int, ...]
    ramps: tuple[tuple[int, float], ...] = ()

    def expected_s(self, p_LHK: Tensor | Sequence[Tensor]) -> Tensor:
        """base + sum over layers and kinds of E[c(N)] + the expected ramp of the largest message.

        Differentiable. Exact where every head has one kind with probability 1. Seconds that add up are exact means
        everywhere; for the ramp, kinds of one layer count as independent. A sequence of (H, K) tensors serves layers
        with different numbers of heads. Raises ValueError for other shapes.
        """
        pmf_LKN = poisson_binomial(self._padded(p_LHK))
        return self._relaxed.expected_s(pmf_LKN.flatten(0, 1))

    def exact_s(self, kinds_per_layer: Sequence[Sequence[str]]) -> float:
        """Seconds of the network in which head h of layer l has kind `kinds_per_layer[l][h]`."""
        if tuple(map(len, kinds_per_layer)) != self.heads:
            raise ValueError(f"kinds for heads {tuple(map(len, kinds_per_layer))}, but the network has {self.heads}")
        counted = [
            (self._cost_of(layer, kind), list(kinds).count(kind))
            for layer, kinds in zip(self.layers, kinds_per_layer, strict=True)
            for kind in dict.fromkeys(kinds)
        ]
        ramp_s = self.ramp_s(cost.largest(heads) for cost, heads in counted)
        return self.base_s + sum(cost.seconds(heads) for cost, heads in counted) + ramp_s

    @property
    def all_s(self) -> float:
        """Seconds of the dearest network with one kind everywhere; for normalising."""
        return max(self.uniform_s(kind) for kind in self.kinds)

    def uniform_s(self, kind: str) -> float:
        """Seconds of the network with `kind` at every head."""
        return self.exact_s([(kind,) * heads for heads in self.heads])

    def ramp_s(self, largest_bytes: Iterable[int]) -> float:
        """What slow start adds to `base_s` where these are the largest messages of kinds."""
        largest = max(largest_bytes, default=0)
        reached = [seconds for size, seconds in self.ramps if size >= largest]
        return reached[0] if reached else self.ramps[-1][1] if self.ramps else 0.0

    def rounds_free(self) -> MixtureLatency:
        """The same as a weighted L1 norm of the probabilities, plus `base_s`: no charge for presence, no ramps."""
        layers = tuple({k: KindLatency(0.0, cost.per_head_s) for k, cost in layer.items()} for layer in self.layers)
        return replace(self, layers=layers, ramps=())

    def to_json(self) -> dict[str, Any]:
        """Plain values for a record."""
        layers = [
            {
                kind: {**asdict(cost), "beyond_s": list(cost.beyond_s), "largest_bytes": list(cost.largest_bytes)}
                for kind, cost in layer.items()
            }
            for layer in self.layers
        ]
        ramps = [list(ramp) for ramp in self.ramps]
        named = {"kinds": list(self.kinds), "network": self.network, "base_s": self.base_s}
        return {**named, "layers": layers, "ramps": ramps}

    @cached_property
    def _relaxed(self) -> RelaxedSeconds:
        """Slots are pairs of layer and kind, choices the number of heads."""
        seconds_SN = np.zeros((len(self.layers) * len(self.kinds), max(self.heads) + 1))
        largest_SN = np.zeros_like(seconds_SN)
        pairs = [
            (layer[kind], heads) for layer, heads in zip(self.layers, self.heads, strict=True) for kind in self.kinds
        ]
        for slot, (cost, heads) in enumerate(pairs):
            seconds_SN[slot, : heads + 1] = [cost.seconds(n) for n in range(heads + 1)]
            largest_SN[slot, : heads + 1] = [cost.largest(n) for n in range(heads + 1)]
        ramps = self.ramps or ((0, 0.0),)
        levels_SN = np.searchsorted([size for size, _ in ramps[:-1]], largest_SN)
        arrays = np.array([self.base_s]), seconds_SN[None], levels_SN, np.array([ramp_s for _, ramp_s in ramps])
        return RelaxedSeconds(*map(torch.from_numpy, arrays))

    def _padded(self, p_LHK: Tensor | Sequence[Tensor]) -> Tensor:
        """The probabilities as one tensor; a head that a layer does not have has no kind."""
        if len(p_LHK) != len(self.layers):
            raise ValueError(f"probabilities for {len(p_LHK)} layers, but the network has {len(self.layers)}")
        for p_HK, heads in zip(p_LHK, self.heads, strict=True):
            if tuple(p_HK.shape) != (heads, len(self.kinds)):
                expected = f"({heads} heads, {len(self.kinds)} kinds)"
                raise ValueError(f"probabilities of a layer have shape {tuple(p_HK.shape)}, expected {expected}")
        if isinstance(p_LHK, Tensor):
            return p_LHK
        return torch.stack([pad(p_HK, (0, 0, 0, max(self.heads) - len(p_HK))) for p_HK in p_LHK])

    def _cost_of(self, layer: Mapping[str, KindLatency], kind: str) -> KindLatency:
        if kind not in layer:
            raise ValueError(f"no latency for kind {kind!r}; this mixture is over: {', '.join(self.kinds)}")
        return layer[kind]


def poisson_binomial(p_LHK: Tensor) -> Tensor:
    """P(N = n) for the number N of independent heads that have a kind, (L, K, H + 1); differentiable."""
    pmf_LKN = p_LHK.new_ones(p_LHK.shape[0], p_LHK.shape[2], 1)
    for p_LK in p_LHK.unbind(1):
        has_LKN = pmf_LKN * p_LK.unsqueeze(-1)
        pmf_LKN = pad(pmf_LKN - has_LKN, (0, 1)) + pad(has_LKN, (1, 0))
    return pmf_LKN


def mixture_latency(
    spec: ViTSpec,
    kinds: Sequence[str],
    cost_model: CostModel,
    scheme: Scheme,
    network: NetworkProfile,
    batch: int = 1,
) -> MixtureLatency:
    """The latency of `spec` with the kind of every head left open among `kinds`, for `batch` images at once.

    Everything is counted on networks that have every number of heads of every kind. At three parties seconds are those
    of the party that is busiest where all messages are largest. Raises ValueError for another scheme than the cost
    model's, and for kinds that do not map scores to weights: with those, Q K^T and A V depend on the mixture too.
    """
    kinds = tuple(kinds)
    _demand_maps(kinds)
    cost_model.demand(scheme)
    whole = vit_trace(spec.with_kinds(kinds[0]), batch, scheme.weights)
    base = cost_model.cost(Trace(tuple(o for o in whole.operations if ".attn.kind." not in o.site)))
    by_layout = _costs_by_heads(spec, kinds, cost_model, batch)
    slots = [by_layout[block.heads, block.head_dim, kind] for block in spec.blocks for kind in kinds]
    choices = choice_seconds(base, slots, cost_model, network)
    lane = int(np.argmax(choices.base_s + sum(seconds_LN.max(axis=1) for seconds_LN in choices.seconds)))
    costs = iter(
        KindLatency.through(seconds_LN[lane].tolist(), [cost.largest_bytes for cost in slot])
        for seconds_LN, slot in zip(choices.seconds, slots, strict=True)
    )
    layers = tuple({kind: next(costs) for kind in kinds} for _ in spec.blocks)
    largest_bytes = [cost.largest_bytes for slot in slots for cost in slot]
    levels = ramp_levels(base.largest_bytes, largest_bytes, LinkLaw(cost_model, network))
    own_s = levels[0][1]
    ramps = tuple((size, ramp_s - own_s) for size, ramp_s in levels)
    return MixtureLatency(kinds, network.name, float(choices.base_s[lane]) + own_s, layers, spec.heads, ramps)


def _costs_by_heads(
    spec: ViTSpec, kinds: tuple[str, ...], cost_model: CostModel, batch: int
) -> dict[tuple[int, int, str], list[Cost]]:
    """For every number of heads, width of a head and kind: what 0, 1, ... all heads of the kind cost in a layer.

    They are read in blocks of one network that is narrow elsewhere: scores have the same shape at any width.
    """
    layouts = sorted({(block.heads, block.head_dim) for block in spec.blocks})
    cases = [(heads, head_dim, kind, n) for heads, head_dim in layouts for kind in kinds for n in range(1, heads + 1)]
    blocks = []
    for heads, head_dim, kind, n in cases:
        other = next(k for k in (*kinds, *KINDS) if k != kind and KINDS[k].form == "map")
        blocks.append(BlockSpec((kind,) * n + (other,) * (heads - n), head_dim, 1))
    trace = vit_trace(replace(spec, dim=1, blocks=tuple(blocks)), batch, cost_model.scheme.weights)
    costs = {(heads, dim, kind): [Cost.zero(cost_model.scheme.parties)] for heads, dim, kind, _ in cases}
    for place, (heads, head_dim, kind, _) in enumerate(cases):
        costs[heads, head_dim, kind].append(cost_model.cost(trace.within(f"blocks.{place}.attn.kind.{kind}")))
    return costs


def _demand_maps(kinds: tuple[str, ...]) -> None:
    if not kinds or len(set(kinds)) != len(kinds):
        raise ValueError(f"a mixture is over different attention kinds, got {kinds}")
    maps = ", ".join(name for name, kind in KINDS.items() if kind.form == "map")
    for name in kinds:
        if kind_named(name).form != "map":
            raise ValueError(f"kind {name!r} replaces Q K^T and A V, so it cannot be mixed; these can: {maps}")
