"""The vision transformer that a `ViTSpec` describes."""

# B images, N tokens (class token first), C channels

from __future__ import annotations

from collections.abc import Callable

import torch
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from timm.layers.patch_embed import PatchEmbed
from timm.layers.weight_init import trunc_normal_
from torch import Tensor, nn

from models.attention import Attention, MultiHead
from models.spec import BlockSpec, Residual, ViTSpec

AttentionFactory = Callable[[ViTSpec, BlockSpec, float], MultiHead]

_ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "identity": nn.Identity}
LAYER_NORM_EPS = {"mpcvit": 1e-5, "pre_norm": 1e-6}  # torch's default, as MPCViT has it; timm's default


def discrete_attention(spec: ViTSpec, block: BlockSpec, attn_dropout: float) -> Attention:
    """The attention layer of `block`, each head of the kind that the spec gives it."""
    return Attention(spec.dim, block.kinds, block.head_dim, spec.tokens, spec.qkv_bias, spec.linformer_k, attn_dropout)


class Block(nn.Module):
    """One transformer block on the stream s, with stochastic depth DP.

    MPCViT: s <- s + DP(attn(LN1(s))); s <- LN2(s); s <- s + DP(mlp(s)): the normalised stream goes on.
    pre_norm: s <- s + DP(attn(LN1(s))); s <- s + DP(mlp(LN2(s))).
    """

    def __init__(
        self, dim: int, block: BlockSpec, attention: MultiHead, drop_path: float, residual: Residual = "pre_norm"
    ) -> None:
        super().__init__()
        self._norm_replaces_stream = residual == "mpcvit"
        eps = LAYER_NORM_EPS[residual]
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = attention
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, block.mlp_width, act_layer=_ACTIVATIONS[block.activation])
        self.drop_path2 = DropPath(drop_path)

    def forward(self, stream_BNC: Tensor) -> Tensor:
        """The stream after the block."""
        stream_BNC = stream_BNC + self.drop_path1(self.attn(self.norm1(stream_BNC)))
        normed_BNC = self.norm2(stream_BNC)
        kept_BNC = normed_BNC if self._norm_replaces_stream else stream_BNC
        output_BNC: Tensor = kept_BNC + self.drop_path2(self.mlp(normed_BNC))
        return output_BNC


class VisionTransformer(nn.Module):
    """Images to logits, read off the class token. Parameter names are timm's, so its weights load as they are.

    `attn_dropout` acts on attention weights, stochastic depth rises linearly from 0 to `drop_path` over the blocks;
    both in training mode only, by default as in MPCViT. `attention` makes the attention layer of each block. Weights
    are drawn from torch's global generator: convolution Kaiming-normal, linear layers truncated normal .02 with zero
    bias, positions truncated normal .2, class token zero.
    """

    def __init__(
        self,
        spec: ViTSpec,
        attn_dropout: float = 0.1,
        drop_path: float = 0.1,
        attention: AttentionFactory = discrete_attention,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.patch_embed = PatchEmbed(spec.image_px, spec.patch_px, spec.in_channels, spec.dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, spec.dim))
        self.pos_embed = nn.Parameter(torch.empty(1, spec.tokens, spec.dim))
        rates = torch.linspace(0, drop_path, len(spec.blocks)).tolist()
        self.blocks = nn.ModuleList(
            Block(spec.dim, block, attention(spec, block, attn_dropout), rate, spec.residual)
            for block, rate in zip(spec.blocks, rates, strict=True)
        )
        self.norm = nn.LayerNorm(spec.dim, eps=LAYER_NORM_EPS[spec.residual])
        self.head = nn.Linear(spec.dim, spec.classes)
        self._initialise()

    def _initialise(self) -> None:
        trunc_normal_(self.pos_embed, std=0.2)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, one row an image. Only the class token passes the last LayerNorm: the others would not be used."""
        logits: Tensor = self.head(self.norm(self._stream(images)[:, 0]))
        return logits

    def tokens(self, images: Tensor) -> Tensor:
        """All tokens after the last LayerNorm, B N C; `head(tokens[:, 0])` gives the logits."""
        tokens_BNC: Tensor = self.norm(self._stream(images))
        return tokens_BNC

    def _stream(self, images: Tensor) -> Tensor:
        patches_BNC = self.patch_embed(images)
        class_token = self.cls_token.expand(patches_BNC.shape[0], -1, -1)
        stream_BNC = torch.cat([class_token, patches_BNC], dim=1) + self.pos_embed
        for block in self.blocks:
            stream_BNC = block(stream_BNC)
        return stream_BNC
