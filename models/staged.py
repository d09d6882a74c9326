"""The staged vision transformer that a `StagedSpec` describes, as in ViT-ResNAS."""

# B images, N tokens (T class tokens first), C channels of a stage, G patches along one side, Y classes

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers.weight_init import trunc_normal_
from torch import Tensor, nn

from models.attention import Attention
from models.spec import BlockSpec
from models.staged_spec import Stage, StagedSpec
from models.vit import LAYER_NORM_EPS, Block

_EPS = LAYER_NORM_EPS["pre_norm"]


class ConvUnit(nn.Module):
    """A 3x3 convolution, batch norm and ReLU; with the batch norm folded away, a convolution with bias and ReLU."""

    def __init__(self, channels_in: int, channels: int, stride: int, batch_norm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=not batch_norm)
        self.norm = nn.BatchNorm2d(channels) if batch_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Activations of `channels` maps."""
        return torch.relu(self.norm(self.conv(x)))


class ConvStem(nn.Module):
    """Images to patches by four convolutions: 3x3 of stride 2, two 3x3 with a residual around them, one to patches."""

    def __init__(self, spec: StagedSpec, channels: int, batch_norm: bool) -> None:
        super().__init__()
        self.units = nn.ModuleList(
            ConvUnit(channels if index else spec.in_channels, channels, 1 if index else 2, batch_norm)
            for index in range(3)
        )
        kernel_px = spec.patch_px // 2
        self.proj = nn.Conv2d(channels, spec.stages[0].dim, kernel_px, kernel_px)

    def forward(self, images: Tensor) -> Tensor:
        """Patches, B C G G."""
        first = self.units[0](images)
        patches: Tensor = self.proj(first + self.units[2](self.units[1](first)))
        return patches


class Reduction(nn.Module):
    """Residual spatial reduction to half the resolution and, mostly, more channels.

    Normed patches pass a 3x3 convolution of stride 2 and get positions of their own, normed class tokens a linear
    layer. The skip path averages 2x2 patches as they came, leaves class tokens, and fills new channels with zeros.
    """

    def __init__(self, dim: int, dim_out: int, grid_out: int, class_tokens: int) -> None:
        super().__init__()
        self._class_tokens, self._new_channels = class_tokens, dim_out - dim
        self.norm = nn.LayerNorm(dim, eps=_EPS)
        self.conv = nn.Conv2d(dim, dim_out, 3, stride=2, padding=1)
        self.linear = nn.Linear(dim, dim_out)
        self.pos_embed = nn.Parameter(torch.empty(1, grid_out**2, dim_out))

    def forward(self, stream_BNC: Tensor) -> Tensor:
        """The stream of the next stage."""
        normed_BNC, own = self.norm(stream_BNC), self._class_tokens
        patches = _sequence(self.conv(_maps(normed_BNC[:, own:]))) + self.pos_embed
        reduced = torch.cat([self.linear(normed_BNC[:, :own]), patches], dim=1)
        pooled = _sequence(F.avg_pool2d(_maps(stream_BNC[:, own:]), 2))
        kept = torch.cat([stream_BNC[:, :own], pooled], dim=1)
        return reduced + F.pad(kept, (0, self._new_channels))


class StagedTransformer(nn.Module):
    """Images to logits, read off the class token, through stages of falling resolution.

    In evaluation mode the answer is one tensor of logits: the mean of both heads where there is a distillation token.
    In training mode it is a pair where the network has more to learn from: logits of class and distillation token, or
    with `patch_head` (training only; not for two tokens) of class token B Y and of every last patch B N Y.

    `attn_dropout` acts on attention weights, stochastic depth rises linearly from 0 to `drop_path` over all blocks of
    the spec, those taken out counted. `batch_norm` False is the network whose batch norms are folded, see `deployed`.
    Weights are drawn from torch's global generator: linear layers, class tokens and positions truncated normal .02,
    biases zero, convolutions as torch draws them. Unlike the original, which exempts its class tokens from weight
    decay and not its positions, both are parameters with a name that training settings may exempt together.
    """

    def __init__(
        self,
        spec: StagedSpec,
        attn_dropout: float = 0.0,
        drop_path: float = 0.1,
        patch_head: bool = False,
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        if patch_head and spec.class_tokens > 1:
            raise ValueError("a patch head and a distillation token exclude each other; choose class_tokens=1")
        self.spec = spec
        first, last = spec.stages[0].dim, spec.stages[-1].dim
        self.stem = _embedding(spec, batch_norm)
        self.cls_token = nn.Parameter(torch.empty(1, spec.class_tokens, first))
        self.pos_embed = nn.Parameter(torch.empty(1, spec.tokens[0], first))
        rates = torch.linspace(0, drop_path, sum(len(stage.blocks) for stage in spec.stages)).tolist()
        self.stages = nn.ModuleList()
        for stage, tokens in zip(spec.stages, spec.tokens, strict=True):
            own, rates = rates[: len(stage.blocks)], rates[len(stage.blocks) :]
            self.stages.append(_stage(stage, tokens, own, attn_dropout))
        self.reductions = nn.ModuleList(
            Reduction(before.dim, after.dim, grid, spec.class_tokens)
            for before, after, grid in zip(spec.stages, spec.stages[1:], spec.grids[1:], strict=False)
        )
        self.norm = nn.LayerNorm(last, eps=_EPS)
        self.head = nn.Linear(last, spec.classes)
        self.head_dist = nn.Linear(last, spec.classes) if spec.class_tokens > 1 else None
        self.patch_head = nn.Linear(last, spec.classes) if patch_head else None
        self._initialise()

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if name.endswith(("pos_embed", "cls_token")):
                trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Logits B Y, or in training mode the pair that the class describes.

        Outside training only class tokens pass the last LayerNorm: the others would not be used.
        """
        stream_BNC, own = self._stream(images), self.spec.class_tokens
        if self.training and self.patch_head is not None:
            tokens_BNC = self.norm(stream_BNC)
            return self.head(tokens_BNC[:, 0]), self.patch_head(tokens_BNC[:, own:])
        tokens_BTC = self.norm(stream_BNC[:, :own])
        logits: Tensor = self.head(tokens_BTC[:, 0])
        if self.head_dist is None:
            return logits
        distilled: Tensor = self.head_dist(tokens_BTC[:, 1])
        return (logits, distilled) if self.training else (logits + distilled) / 2

    def _stream(self, images: Tensor) -> Tensor:
        patches_BNC = _sequence(self.stem(images))
        class_tokens = self.cls_token.expand(patches_BNC.shape[0], -1, -1)
        stream_BNC = torch.cat([class_tokens, patches_BNC], dim=1) + self.pos_embed
        for index, stage in enumerate(self.stages):
            stream_BNC = stage(self.reductions[index - 1](stream_BNC) if index else stream_BNC)
        return stream_BNC


def deployed(network: StagedTransformer) -> StagedTransformer:
    """The same function in evaluation mode without what only training needs: batch norms folded, no patch head."""
    plain = StagedTransformer(network.spec, batch_norm=False)
    weights = {name: value for name, value in network.state_dict().items() if not name.startswith("patch_head.")}
    for name, module in network.named_modules():
        if isinstance(module, ConvUnit) and isinstance(module.norm, nn.BatchNorm2d):
            weights = {key: value for key, value in weights.items() if not key.startswith(f"{name}.")}
            weights |= _folded(f"{name}.conv", module.conv, module.norm)
    plain.load_state_dict(weights)
    return plain.to(network.cls_token).eval()


def _folded(name: str, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> dict[str, Tensor]:
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None  # track_running_stats is on
    assert variance is not None
    scale = norm.weight * torch.rsqrt(variance + norm.eps)
    return {
        f"{name}.weight": (conv.weight * scale.view(-1, 1, 1, 1)).detach(),
        f"{name}.bias": (norm.bias - mean * scale).detach(),
    }


def _embedding(spec: StagedSpec, batch_norm: bool) -> nn.Module:
    if spec.stem_channels is None:
        return nn.Conv2d(spec.in_channels, spec.stages[0].dim, spec.patch_px, spec.patch_px)
    return ConvStem(spec, spec.stem_channels, batch_norm)


def _stage(stage: Stage, tokens: int, rates: list[float], attn_dropout: float) -> nn.Sequential:
    def attention(block: BlockSpec) -> Attention:
        return Attention(stage.dim, block.kinds, block.head_dim, tokens, qkv_bias=True, attn_dropout=attn_dropout)

    slots = zip(stage.blocks, stage.exists, rates, strict=True)
    return nn.Sequential(*(Block(stage.dim, block, attention(block), rate) for block, exists, rate in slots if exists))


def _maps(patches_BNC: Tensor) -> Tensor:
    """B C G G, from patches in rows of a square grid."""
    images, patches, channels = patches_BNC.shape
    grid = round(patches**0.5)
    return patches_BNC.transpose(1, 2).reshape(images, channels, grid, grid)


def _sequence(maps: Tensor) -> Tensor:
    """B N C, row by row."""
    return maps.flatten(2).transpose(1, 2)
