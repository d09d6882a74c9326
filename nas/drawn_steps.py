"""What RandAugment, AutoAugment and colour jitter do to each image of a batch, drawn as timm and torchvision do.

Probabilities, magnitudes and choices are those of their own objects, so that a word means the same in both forms.
"""

# B images

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, get_args

import torch
from torch import Tensor

from nas.augmentation import Policy
from nas.image_ops import BICUBIC, BILINEAR, NEAREST, Blend, Table

TABLES: tuple[Table, ...] = get_args(Table)
BLENDS: tuple[Blend, ...] = get_args(Blend)
MOVES = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
_CODES = {op: code for code, op in enumerate((*TABLES, *BLENDS, *MOVES))}
_NOTHING = -1
_STRONGEST = 10.0  # timm's magnitude at which an operation is as strong as it gets


@dataclass(frozen=True, slots=True)
class Step:
    """For each image an operation's code, or none, its argument, and how it interpolates: (B,) each, on the CPU."""

    code: Tensor
    argument: Tensor
    interpolation: Tensor

    def among(self, ops: Sequence[str]) -> Tensor:
        """Positions of the images that have one of these operations."""
        return torch.isin(self.code, torch.tensor([_CODES[op] for op in ops])).nonzero().flatten()

    def take(self, positions: Tensor) -> Step:
        """The step of these images."""
        return Step(self.code[positions], self.argument[positions], self.interpolation[positions])


def uniform_step(op: str, argument: float, count: int, interpolation: int = BICUBIC) -> Step:
    """The same operation with the same argument for `count` images."""
    return Step(
        torch.full((count,), _CODES[op]), torch.full((count,), float(argument)), torch.full((count,), interpolation)
    )


def drawn_steps(policy: Policy, count: int, image_px: int) -> list[Step]:
    """The steps of a policy between flip and normalising, drawn for `count` images from torch's global generator."""
    if policy.rand_augment:
        return _rand_augment(policy.rand_augment, policy.interpolation, count, image_px)
    if policy.auto_augment:
        return _auto_augment(policy.auto_augment, count, image_px)
    return _jitter(policy.jitter, count) if policy.jitter else []


def _share(level: Tensor) -> Tensor:
    return level / _STRONGEST


# timm's operations: ours, and the argument that a level in 0..10 and a random sign (+1 or -1) give, where `px` is the
# side of the image.
_Argument = Callable[[Tensor, Tensor, int], Tensor]
_TIMM_OPS: dict[str, tuple[str, _Argument]] = {
    "AutoContrast": ("AutoContrast", lambda level, sign, px: level),
    "Equalize": ("Equalize", lambda level, sign, px: level),
    "Invert": ("Invert", lambda level, sign, px: level),
    "Rotate": ("Rotate", lambda level, sign, px: sign * 30 * _share(level)),
    "Posterize": ("Posterize", lambda level, sign, px: (4 * _share(level)).floor()),
    "PosterizeIncreasing": ("Posterize", lambda level, sign, px: 4 - (4 * _share(level)).floor()),
    "PosterizeOriginal": ("Posterize", lambda level, sign, px: 4 + (4 * _share(level)).floor()),
    "Solarize": ("Solarize", lambda level, sign, px: (256 * _share(level)).floor().clamp_max(256)),
    "SolarizeIncreasing": ("Solarize", lambda level, sign, px: 256 - (256 * _share(level)).floor().clamp_max(256)),
    "SolarizeAdd": ("SolarizeAdd", lambda level, sign, px: (110 * _share(level)).floor().clamp_max(128)),
    "ShearX": ("ShearX", lambda level, sign, px: sign * 0.3 * _share(level)),
    "ShearY": ("ShearY", lambda level, sign, px: sign * 0.3 * _share(level)),
    "TranslateXRel": ("TranslateX", lambda level, sign, px: sign * 0.45 * _share(level) * px),
    "TranslateYRel": ("TranslateY", lambda level, sign, px: sign * 0.45 * _share(level) * px),
}
for _op in BLENDS:
    _TIMM_OPS[_op] = (_op, lambda level, sign, px: 1.8 * _share(level) + 0.1)
    _TIMM_OPS[f"{_op}Increasing"] = (_op, lambda level, sign, px: (1 + sign * 0.9 * _share(level)).clamp_min(0.1))


@lru_cache
def _timm(word: str) -> Any:
    """timm's own RandAugment of a word; ValueError where batches have no form for what it does."""
    from timm.data.auto_augment import rand_augment_transform

    try:
        made = rand_augment_transform(word, {})
    except (AssertionError, ValueError) as error:
        raise ValueError(f"{word!r} is no word of timm's RandAugment ({error}); one is rand-m9-mstd0.5-inc1") from error
    unknown = sorted({op.name for op in made.ops} - set(_TIMM_OPS))
    if unknown or made.choice_weights is not None:
        why = f"it has {', '.join(unknown)}" if unknown else "it weighs its operations"
        raise ValueError(f"{word!r} has no form for batches: {why}; take a word such as rand-m9-mstd0.5-inc1")
    return made


def _rand_augment(word: str, interpolation: str, count: int, image_px: int) -> list[Step]:
    made = _timm(word)
    return [_rand_layer(made.ops, interpolation, count, image_px) for _ in range(made.num_layers)]


def _rand_layer(ops: Sequence[Any], interpolation: str, count: int, image_px: int) -> Step:
    """One operation of the word for each image, as timm's AugmentOp draws it."""
    which = torch.randint(len(ops), (count,))
    skip, sign, cubic = torch.rand(3, count)
    magnitude, spread = float(ops[0].magnitude), float(ops[0].magnitude_std)
    noise = torch.rand(count) - 1 if math.isinf(spread) else torch.randn(count)
    level = magnitude + noise * (magnitude if math.isinf(spread) else spread)
    level = level.clamp(0, float(ops[0].magnitude_max or _STRONGEST))
    code, argument = torch.empty(count, dtype=torch.int64), torch.empty(count)
    for index, op in enumerate(ops):
        chosen = which == index
        name, argument_of = _TIMM_OPS[op.name]
        code[chosen] = _CODES[name]
        argument[chosen] = argument_of(level[chosen], torch.where(sign[chosen] > 0.5, -1.0, 1.0), image_px)
    code[skip > ops[0].prob] = _NOTHING
    ways = {"bilinear": 0.0, "bicubic": 1.0, "random": 0.5}[interpolation]
    return Step(code, argument, torch.where(cubic < ways, BICUBIC, BILINEAR))


@lru_cache
def _torchvision(name: str, image_px: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes, probabilities, arguments and whether they are signed, (policies, 2) each, of a torchvision AutoAugment."""
    from torchvision.transforms import AutoAugment, AutoAugmentPolicy

    made = AutoAugment(AutoAugmentPolicy(name))
    space = made._augmentation_space(10, (image_px, image_px))
    rows = []
    for op, probability, level in (step for pair in made.policies for step in pair):
        magnitudes, signed = space[op]
        argument = 0.0 if level is None else float(magnitudes[level])
        argument = math.trunc(argument) if op.startswith(("Translate", "Posterize")) else argument
        rows.append((_CODES[op], probability, argument, signed))
    table = torch.tensor(rows, dtype=torch.float64).view(-1, 2, 4)
    return table[..., 0].long(), table[..., 1].float(), table[..., 2].float(), table[..., 3].bool()


def _auto_augment(name: str, count: int, image_px: int) -> list[Step]:
    """torchvision's AutoAugment: one pair of operations for each image; its moves take the nearest pixel."""
    codes, probabilities, arguments, signed = _torchvision(name, image_px)
    which, drawn = torch.randint(len(codes), (count,)), torch.rand(2, count)
    signs = torch.randint(2, (2, count)) * 2 - 1
    steps = []
    for place in range(2):
        code, argument = codes[which, place].clone(), arguments[which, place]
        argument = torch.where(signed[which, place], argument * signs[place], argument)
        argument = torch.where(torch.isin(code, _BLEND_CODES), 1 + argument, argument)
        argument = torch.where(torch.isin(code, _TRANSLATION_CODES), -argument, argument)
        code[drawn[place] > probabilities[which, place]] = _NOTHING
        steps.append(Step(code, argument, torch.full((count,), NEAREST)))
    return steps


_BLEND_CODES = torch.tensor([_CODES[op] for op in BLENDS])
_TRANSLATION_CODES = torch.tensor([_CODES["TranslateX"], _CODES["TranslateY"]])  # torchvision's go the other way


def _jitter(strength: float, count: int) -> list[Step]:
    """torchvision's ColorJitter of brightness, contrast and saturation, in a random order for each image."""
    order = torch.rand(count, 3).argsort(1)
    factors = 1 + (torch.rand(count, 3) * 2 - 1) * strength
    codes = torch.tensor([_CODES[op] for op in ("Brightness", "Contrast", "Color")])
    nearest = torch.full((count,), NEAREST)
    return [Step(codes[at], factors.gather(1, at[:, None]).flatten(), nearest) for at in order.unbind(1)]
