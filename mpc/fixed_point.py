"""Numbers as shares hold them: integers at a public scale, checked before they are encoded."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mpc.scheme import Scheme


def largest_magnitude(scheme: Scheme) -> float:
    """Values from here on do not survive a product: twice the fraction bits and the value must fit the ring."""
    return float(2.0 ** ((scheme.ring_bits - 2) // 2 - scheme.precision_bits))


def encode(values: Tensor, scheme: Scheme, what: str) -> Tensor:
    """Fixed-point integers nearest to `values`.

    Raises ValueError for NaN, infinity or magnitudes that do not survive a product. Unlike CrypTen's encoder, which
    turns all of these into -2^47 without a word and rounds towards zero.
    """
    if not torch.isfinite(values).all():
        raise ValueError(f"{what} holds NaN or infinity; shares can hold neither")
    bound = largest_magnitude(scheme)
    largest = float(values.abs().max()) if values.numel() else 0.0
    if largest >= bound:
        raise ValueError(
            f"{what} reaches {largest:.4g}; "
            f"with {scheme.precision_bits} fraction bits values must stay below {bound:.6g}"
        )
    return torch.round(values.double() * 2.0**scheme.precision_bits).long()


def encode_factor(values: Tensor, scheme: Scheme, what: str) -> Tensor:
    """`encode`, for a factor: ValueError also where all that is not 0 would round to 0."""
    encoded = encode(values, scheme, what)
    if bool(values.any()) and not bool(encoded.any()):
        largest = float(values.abs().max())
        raise ValueError(
            f"{what} of {largest:.3g} rounds to 0 with {scheme.precision_bits} fraction bits; divide instead"
        )
    return encoded


def expected_wraps(largest: float, truncations: int, precision_bits: int = 16) -> float:
    """Expected number of elements that local truncation at two parties ruins.

    Each truncated element is ruined with probability |v| 2^(2f - 64), and is then off by 2^(64 - 2f).
    """
    return truncations * largest * math.ldexp(1.0, 2 * precision_bits - 64)
