"""Multi-head attention whose heads may differ in kind, each head computing only its own."""

# B images, N tokens, C channels of the stream, H heads, D head_dim

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.kinds import AttentionLayout, kind_named


def scores(q_BHND: Tensor, k_BHND: Tensor) -> Tensor:
    """S = Q K^T / sqrt(d), B H N N."""
    return (q_BHND @ k_BHND.transpose(-2, -1)) * float(q_BHND.shape[-1] ** -0.5)


class MultiHead(nn.Module, ABC):
    """Tokens to queries, keys and values of all heads in one product, and the heads' outputs back to tokens in another.

    The output projection has a bias. Parameter names are timm's. Subclasses say what the heads compute in between.
    """

    def __init__(self, dim: int, heads: int, layout: AttentionLayout, qkv_bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = layout.head_dim
        width = heads * layout.head_dim
        self.qkv = nn.Linear(dim, 3 * width, bias=qkv_bias)
        self.dropout = nn.Dropout(layout.attn_dropout)
        self.proj = nn.Linear(width, dim)

    @abstractmethod
    def attend(self, qkv_3BHND: Tensor) -> Tensor:
        """Output of every head, B H N D."""

    def forward(self, x_BNC: Tensor) -> Tensor:
        """The layer's output, B N C, without the residual connection."""
        images, tokens = x_BNC.shape[:2]
        qkv_3BHND = self.qkv(x_BNC).reshape(images, tokens, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        output_BHND = self.attend(qkv_3BHND)
        output: Tensor = self.proj(output_BHND.transpose(1, 2).reshape(images, tokens, self.heads * self.head_dim))
        return output


class Attention(MultiHead):
    """Attention with one kind a head.

    Whatever the mix, there is one product Q K^T and one product A V over the heads of all map kinds, and every kind
    that is present runs once, over its own heads, in the child module `kind.<name>`. `tokens` counts the class token;
    `linformer_k` None means round(0.3 tokens). Dropout acts on the attention weights, in training mode only.
    """

    order: Tensor
    inverse: Tensor

    def __init__(
        self,
        dim: int,
        kinds: Sequence[str],
        head_dim: int,
        tokens: int,
        qkv_bias: bool = False,
        linformer_k: int | None = None,
        attn_dropout: float = 0.0,
    ) -> None:
        layout = AttentionLayout(tokens, head_dim, linformer_k, attn_dropout)
        super().__init__(dim, len(kinds), layout, qkv_bias)
        present = sorted(dict.fromkeys(kinds), key=lambda kind: kind_named(kind).form)  # "map" before "whole"; stable
        self.kind = nn.ModuleDict({kind: kind_named(kind).make(layout) for kind in present})
        self._map_heads = [(kind, kinds.count(kind)) for kind in present if kind_named(kind).form == "map"]
        self._whole_heads = [(kind, kinds.count(kind)) for kind in present if kind_named(kind).form == "whole"]
        order = [head for kind in present for head in range(len(kinds)) if kinds[head] == kind]
        self._in_order = order == sorted(order)
        self.register_buffer("order", torch.tensor(order), persistent=False)
        self.register_buffer("inverse", torch.tensor(order).argsort(), persistent=False)

    def attend(self, qkv_3BHND: Tensor) -> Tensor:
        """Output of every head: heads of a kind are brought together, computed, and put back in place."""
        grouped = qkv_3BHND if self._in_order else qkv_3BHND.index_select(2, self.order)
        q_BHND, k_BHND, v_BHND = grouped.unbind(0)
        mapped = sum(heads for _, heads in self._map_heads)
        outputs = [self._attend_by_maps(q_BHND[:, :mapped], k_BHND[:, :mapped], v_BHND[:, :mapped])] if mapped else []
        start = mapped
        for kind, heads in self._whole_heads:
            own = slice(start, start + heads)
            outputs.append(self.kind[kind](q_BHND[:, own], k_BHND[:, own], v_BHND[:, own]))
            start += heads
        output_BHND = torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0]
        return output_BHND if self._in_order else output_BHND.index_select(1, self.inverse)

    def _attend_by_maps(self, q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor) -> Tensor:
        parts = torch.split(scores(q_BHND, k_BHND), [heads for _, heads in self._map_heads], dim=1)
        maps = [self.kind[kind](part) for (kind, _), part in zip(self._map_heads, parts, strict=True)]
        weights_BHNN = torch.cat(maps, dim=1) if len(maps) > 1 else maps[0]
        output_BHND: Tensor = self.dropout(weights_BHNN) @ v_BHND
        return output_BHND
