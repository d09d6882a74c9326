"""The searchable network: every head is a mixture of attention kinds, with learnable probabilities.

A head's weights are A = sum_K p_HK kind_K(S): convex in the kinds, one product A V. A mixture whose p has one-hot
rows equals the discrete network, and both name their shared weights alike.
"""

# B images, N tokens, L layers, H heads, D head_dim, K kinds

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from models.attention import MultiHead, scores
from models.kinds import KINDS, AttentionLayout, kind_named, unknown_name
from models.spec import BlockSpec, ViTSpec
from models.vit import VisionTransformer

Parametrisation = Literal["sigmoid", "direct"]


class MixedAttention(MultiHead):
    """Attention in which every head mixes all `kinds`; parameter `theta` (H, K-1) sets the probabilities.

    `sigmoid` takes softmax over (theta, 0), which for two kinds is (sigmoid(theta), 1 - sigmoid(theta)), and starts at
    equal probabilities. `direct`, for two kinds only, takes (theta, 1 - theta), unbounded, and starts at 1, as MPCViT's
    released code does (its alpha). Raises ValueError for fewer than two kinds, equal kinds, or a kind without a map.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        kinds: Sequence[str],
        layout: AttentionLayout,
        qkv_bias: bool = False,
        parametrisation: Parametrisation = "sigmoid",
    ) -> None:
        _demand_mixable(kinds)
        if parametrisation not in ("sigmoid", "direct"):
            raise unknown_name("parametrisation", parametrisation, ("sigmoid", "direct"))
        if parametrisation == "direct" and len(kinds) != 2:
            raise ValueError(f"parametrisation 'direct' mixes two kinds, got {len(kinds)}; use 'sigmoid'")
        super().__init__(dim, heads, layout, qkv_bias)
        self.kinds = tuple(kinds)
        self.kind = nn.ModuleDict({kind: kind_named(kind).make(layout) for kind in kinds})
        self._direct = parametrisation == "direct"
        self.theta = nn.Parameter(torch.full((heads, len(kinds) - 1), 1.0 if self._direct else 0.0))

    def probabilities(self) -> Tensor:
        """p_HK, with gradient; rows sum to 1."""
        if self._direct:
            return torch.cat([self.theta, 1 - self.theta], dim=1)
        return torch.softmax(torch.cat([self.theta, torch.zeros_like(self.theta[:, :1])], dim=1), dim=1)

    def attend(self, qkv_3BHND: Tensor) -> Tensor:
        """Output of every head, B H N D."""
        q_BHND, k_BHND, v_BHND = qkv_3BHND.unbind(0)
        scores_BHNN = scores(q_BHND, k_BHND)
        p_K1H11 = self.probabilities().t().reshape(len(self.kinds), 1, self.heads, 1, 1)
        parts = [p_K1H11[index] * self.kind[kind](scores_BHNN) for index, kind in enumerate(self.kinds)]
        output_BHND: Tensor = self.dropout(torch.stack(parts).sum(0)) @ v_BHND
        return output_BHND


def search_network(
    spec: ViTSpec,
    kinds: Sequence[str],
    parametrisation: Parametrisation = "sigmoid",
    attn_dropout: float = 0.1,
    drop_path: float = 0.1,
) -> VisionTransformer:
    """The network of `spec` with a `MixedAttention` over `kinds` in every block; the kinds in `spec` are not used.

    Started from one random state, it draws the same weights as `VisionTransformer(spec)`. Raises ValueError as
    `MixedAttention` does.
    """

    def mixed(spec: ViTSpec, block: BlockSpec, attn_dropout: float) -> MixedAttention:
        layout = AttentionLayout(spec.tokens, block.head_dim, spec.linformer_k, attn_dropout)
        return MixedAttention(spec.dim, block.heads, kinds, layout, spec.qkv_bias, parametrisation)

    return VisionTransformer(spec, attn_dropout, drop_path, mixed)


def mixed_layers(network: VisionTransformer) -> list[MixedAttention]:
    """The mixed attention of every block, in order; ValueError where `network` is not a search network."""
    layers = [block.attn for block in network.blocks]
    mixed = [layer for layer in layers if isinstance(layer, MixedAttention)]
    if len(mixed) < len(layers):
        raise ValueError("this network mixes no attention kinds; make it with search_network(spec, kinds)")
    return mixed


def probabilities(network: VisionTransformer) -> Tensor:
    """p_LHK of a search network, with gradient; ValueError where its layers differ in their number of heads."""
    layers = mixed_layers(network)
    heads = tuple(layer.heads for layer in layers)
    if len(set(heads)) > 1:
        raise ValueError(f"layers have {heads} heads, which is no p_LHK; read mixed_layers(network) one by one")
    return torch.stack([layer.probabilities() for layer in layers])


def discretise(network: VisionTransformer, kinds_per_layer: Sequence[Sequence[str]]) -> VisionTransformer:
    """The discrete network with these kinds and a copy of the search network's weights, on its device, in its mode."""
    weights = {name: value for name, value in network.state_dict().items() if not name.endswith(".theta")}
    discrete = VisionTransformer(network.spec.with_kinds(kinds_per_layer))
    discrete.load_state_dict(weights)
    return discrete.to(network.cls_token).train(network.training)


def _demand_mixable(kinds: Sequence[str]) -> None:
    if isinstance(kinds, str) or len(kinds) < 2 or len(set(kinds)) < len(kinds):
        raise ValueError(f"a mixture needs at least two different attention kinds, got {kinds!r}")
    for kind in kinds:
        if kind_named(kind).form == "whole":
            known = ", ".join(name for name, entry in KINDS.items() if entry.form == "map")
            raise ValueError(f"attention kind {kind!r} has no map of its own to mix; kinds that have: {known}")
