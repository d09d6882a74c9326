"""One small module for each row of the table of secure operations; parties import them by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpc.operators import row_normalize

PUBLIC = torch.linspace(-1.0, 1.0, 7)


def written(x: Tensor) -> Tensor:
    """Twice x, in place."""
    return x.mul_(2.0)


# Every function takes a tensor whose last dimension is 7.
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "add": lambda x: x + x + PUBLIC + 0.5,
    "subtract": lambda x: x - 0.25 * x - PUBLIC,
    "subtract_from": lambda x: 1 - x,
    "negate": lambda x: -x,
    "sum": lambda x: x.sum(-1),
    "mean": lambda x: x.mean((0, -1), keepdim=True),
    "multiply": lambda x: x * x.sum(-1, keepdim=True),
    "multiply_float": lambda x: x * 0.3,
    "multiply_int": lambda x: x * 3,
    "multiply_public": lambda x: x * PUBLIC,
    "multiply_public_integers": lambda x: x * torch.arange(7),
    "divide_by_public": lambda x: x / 7,
    "divide_by_float": lambda x: x / 2.5,
    "divide_by_secret": lambda x: x / (x + 4),
    "square": lambda x: torch.square(x),
    "cube": lambda x: x**3,
    "matmul": lambda x: x @ x.transpose(-1, -2),
    "matmul_public": lambda x: x @ torch.outer(PUBLIC, PUBLIC),
    "public_matmul": lambda x: torch.outer(PUBLIC, PUBLIC) @ x.transpose(-1, -2),
    "relu": F.relu,
    "abs": torch.abs,
    "maximum": lambda x: x.amax(-1),
    "maximum_keepdim": lambda x: x.amax(0, keepdim=True),
    "maximum_of_one": lambda x: x[..., :1].amax(-1),
    "exp": lambda x: torch.exp(x - 2),
    "reciprocal": lambda x: torch.reciprocal(x.abs() + 1),
    "plain_reciprocal": torch.reciprocal,
    "plain_root": torch.rsqrt,
    "inverse_square_root": lambda x: torch.rsqrt(x.abs() + 0.5),
    "square_root": lambda x: torch.sqrt(x.abs() + 0.5),
    "gelu": F.gelu,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "clamp": lambda x: x.clamp(-0.5, 1.0),
    "leaky_relu": F.leaky_relu,
    "hardswish": F.hardswish,
    "softmax": lambda x: x.softmax(-1),
    "softmax_inner": lambda x: x.softmax(0),
    "layer_norm": lambda x: F.layer_norm(x, (7,)),
    "layer_norm_with_bias_alone": lambda x: F.layer_norm(x, (7,), None, PUBLIC),
    "scalars": lambda x: torch.relu(x.mean()) * x.mean() + x.sum() * 0.1 - x.square().mean(),
    "row_normalize": lambda x: row_normalize(x.abs(), 2.0**-16),
    "structure": lambda x: torch.cat([x.flip(-1).unsqueeze(0).expand(2, *x.shape), torch.stack([x, x])], 0)[:, :, ::2],
    "public_joined": lambda x: torch.cat([x, torch.ones(x.shape)], -1),
    "clamp_below": lambda x: x.clamp(min=0.3),
    "clamp_above": lambda x: x.clamp(max=0.3),
    "padded": lambda x: F.pad(x, (1, 2), value=1.5),
    "joined_integers": lambda x: torch.cat([x, torch.arange(7).expand(x.shape), (x.new_ones(x.shape) > 0)], -1),
    "masked_by_type": lambda x: x * (PUBLIC > 0).type_as(x),
    "weighted_sum": lambda x: torch.add(x, x, alpha=0.5) - torch.sub(PUBLIC, x, alpha=0.25),
    "zeroth_power": lambda x: x**0 + x,
    "copy_written": lambda x: written(x.double()) + x + written(x.clone()),
    "in_place": lambda x: (x + 1).mul_(0.5).relu_(),
}


class Apply(nn.Module):
    """A function of the table above as a module."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        """The function, on x."""
        return FUNCTIONS[self.name](x)


class Convolution(nn.Module):
    """Convolution, pooling and a classifier, with private weights: x has 7 columns."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 2)
        self.out = nn.Linear(4 * 3, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images (B, 3, 4, 7)."""
        pooled = F.avg_pool2d(F.relu6(self.conv(x)), (3, 2))
        logits: Tensor = self.out(pooled.flatten(1))
        return logits


class Encoder(nn.Module):
    """torch's own transformer encoder layer: multi-head attention with its packed projections."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """One layer on x (B, N, 8)."""
        encoded: Tensor = self.layer(x)
        return encoded


class Misbehaving(nn.Module):
    """Does with a secret what only a public value allows."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.inner = Offender(how)

    def forward(self, x: Tensor) -> Tensor:
        """Calls the offender, so that an error can name it."""
        result: Tensor = self.inner(x)
        return result


class Offender(nn.Module):
    """One offence each."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        """Commits it."""
        if self.how == "branch":
            return x if x.sum() else -x
        if self.how == "item":
            return x * x.mean().item()
        if self.how == "numpy":
            return torch.from_numpy(x.numpy())
        if self.how == "write":
            zeros = torch.zeros(x.shape)
            zeros[..., 0] = x[..., 0]
            return zeros
        if self.how == "shared_view":
            y = x + 1
            row = y[0]
            row.mul_(2.0)
            return y
        orthogonal: Tensor = torch.linalg.qr(x)[0]
        return orthogonal


class FailsAtParty(nn.Module):
    """Raises at one party only; the others are left waiting."""

    def __init__(self, party: int) -> None:
        super().__init__()
        self.party = party

    def forward(self, x: Tensor) -> Tensor:
        """A product that the failing party never opens."""
        import os

        if os.environ.get("RANK") == str(self.party):
            raise ArithmeticError("this party gives up")
        return x * x.sum()


REFUSED: dict[str, Callable[[Tensor], Tensor]] = {
    "infinite_mask": lambda x: x + torch.full((7,), float("-inf")),
    "vanishing_factor": lambda x: x * 1e-6,
    "integers": lambda x: x.long(),
}


class Refused(nn.Module):
    """One of REFUSED as a module."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        """The function, on x."""
        return REFUSED[self.name](x)


class WritesIntoInput(nn.Module):
    """Changes its input in place; every repeat must see the same input."""

    def forward(self, x: Tensor) -> Tensor:
        """x - 0.5."""
        return x.sub_(0.5)


class TiedWeights(nn.Module):
    """Two layers with one weight between them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(7, 7), nn.Linear(7, 7)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        """Both layers."""
        return self.b(self.a(x))


class LooseTensor(nn.Module):
    """Holds a tensor that is neither parameter nor buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = [torch.randn(7)]

    def forward(self, x: Tensor) -> Tensor:
        """x + the loose tensor."""
        return x + self.table[0]


class Shapeless(nn.Module):
    """Returns a tuple, which no reading accepts."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Two tensors."""
        return x, x
