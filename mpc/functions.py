"""Non-linear functions on shares: CrypTen's own (`released`), and ours where CrypTen has none or a wrong one.

Each of ours states its domain and cost. `_events` functions give the closed form of the function above them; they are
written out from the protocol, never by running it, and tests hold both to the wire.

Shapes: n elements; rows B and row length L for functions along the last dimension.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from mpc import primitives as p
from mpc.crypten_import import import_crypten

Shares = Any  # crypten.mpc.MPCTensor; untyped upstream
Events = p.Events

EXP_SQUARINGS = 6
# Below, 1 + u + u^2 / 2 at u = x / 64 leaves (-0.85, 0.85) and its 64th power is not near 0.
EXP_DOMAIN = (-117.0, 3.0)

# Positive arguments are brought into [1, 4) by comparing with powers of 4 from 4^-6 to 4^7.
_EXPONENTS = range(-6, 8)
THRESHOLDS = len(_EXPONENTS)
POSITIVE_DOMAIN = (4.0**-7, 4.0**8)

# 1 / x on [1, 4] as A - B x: 1 - x (A - B x) equioscillates at 1 / T2(5/3) = 0.2195 (Chebyshev),
# three Newton steps: 5e-6.
_RECIPROCAL_START = (0.9756098, 0.1951220)
_RECIPROCAL_STEPS = 3
# x^(-1/2) on [1, 4] as A - B x, minimax relative error 0.086 (linear programming), two Newton steps: 2e-4.
_ROOT_START = (1.0663863, 0.1523409)
_ROOT_STEPS = 2

GELU_CUT = 3.5
# x erf(x / sqrt 2) / 2 on |x| <= 3.5 as a polynomial in w = (x / 3.5)^2, minimax error 2.2e-4 (linear programming).
_GELU_COEFFICIENTS = (2.2e-4, 4.8623, -9.5285, 15.189, -15.6124, 9.0928, -2.2545)

# Layer norm takes 16 x variance: 4 more fraction bits, and eps = 1e-5 no longer rounds to nothing.
_VARIANCE_GAIN = 16
VARIANCE_DOMAIN = (1e-3, 2500.0)  # where layer_norm is within 1e-2: below, squares round away; above, the root does


def exp(x: Shares) -> Shares:
    """e^x as ((1 + (1 + x / 64)^2) / 2)^64 on EXP_DOMAIN: 7 rounds, 56 n bytes.

    Second order at the start and two squarings fewer than CrypTen's, whose eight double the rounding error each time.
    """
    shifted = x.div(2**EXP_SQUARINGS) + 1
    result = (shifted.square() + 1).div(2)
    for _ in range(EXP_SQUARINGS):
        result = result.square()
    return result


def exp_events(n: int, parties: int) -> Events:
    """Traffic of `exp`."""
    start = p.truncation(n, parties) + p.square(n, parties) + p.truncation(n, parties)
    return start + p.square(n, parties) * EXP_SQUARINGS


def reciprocal_positive(x: Shares) -> Shares:
    """1 / x on POSITIVE_DOMAIN: 16 rounds, 3128 n bytes (CrypTen's: 28 rounds, 304 n bytes, to 3 % on [1e-3, 50])."""
    bits = _below_powers_of_four(x)
    scale = _bucket_values(bits, [4.0**-j for j in _bucket_exponents()])
    unit = x * scale
    result = _times(unit, -_RECIPROCAL_START[1]) + _RECIPROCAL_START[0]
    for _ in range(_RECIPROCAL_STEPS):
        result = result * 2 - result.square() * unit
    return result * scale


def reciprocal_positive_events(n: int, parties: int) -> Events:
    """Traffic of `reciprocal_positive`."""
    step = p.square(n, parties) + p.product(n, n, n, parties)
    start = p.normalised_exponent(n, parties, THRESHOLDS) + p.truncation(n, parties)
    return start + step * _RECIPROCAL_STEPS + p.product(n, n, n, parties)


def reciprocal(x: Shares) -> Shares:
    """1 / x for |x| in POSITIVE_DOMAIN: 26 rounds."""
    sign = 1 - x._ltz() * 2
    return reciprocal_positive(x * sign) * sign


def reciprocal_events(n: int, parties: int) -> Events:
    """Traffic of `reciprocal`."""
    multiply = p.product(n, n, n, parties, truncates=False)
    return p.less_than_zero(n, parties) + multiply + reciprocal_positive_events(n, parties) + multiply


def inverse_square_root(x: Shares) -> Shares:
    """x^(-1/2) on POSITIVE_DOMAIN: 16 rounds (CrypTen's: 17 rounds, on [0.1, 100])."""
    bits = _below_powers_of_four(x)
    unit = x * _bucket_values(bits, [4.0**-j for j in _bucket_exponents()])
    result = _times(unit, -_ROOT_START[1]) + _ROOT_START[0]
    for _ in range(_ROOT_STEPS):
        result = result * (1.5 - (unit * result.square()).div(2))
    return result * _bucket_values(bits, [2.0**-j for j in _bucket_exponents()])


def inverse_square_root_events(n: int, parties: int) -> Events:
    """Traffic of `inverse_square_root`."""
    multiply, cut = p.product(n, n, n, parties), p.truncation(n, parties)
    step = p.square(n, parties) + multiply + cut + multiply
    return p.normalised_exponent(n, parties, THRESHOLDS) + cut + step * _ROOT_STEPS + multiply


def gelu(x: Shares) -> Shares:
    """GELU, a polynomial inside +-3.5, 0 below and x above; error <= 1e-3: 13 rounds, 528 n bytes.

    CrypTen has no GELU and its erf diverges beyond |x| = 1.5.
    """
    crypten = import_crypten()
    below = crypten.stack([x + GELU_CUT, x - GELU_CUT])._ltz()
    low, not_high = below[0], below[1]
    w1 = _times(x, 1 / GELU_CUT).square()
    w2 = w1.square()
    pair = crypten.stack([w1, w2])
    third = pair * w2
    fifth = pair * third[1]
    powers = [x, w1, w2, third[0], third[1], fifth[0], fifth[1]]
    inside = _linear_combination(powers, [0.5, *_GELU_COEFFICIENTS[1:]]) + _GELU_COEFFICIENTS[0]
    chosen = crypten.stack([inside, x]) * crypten.stack([not_high - low, 1 - not_high])
    return chosen[0] + chosen[1]


def gelu_events(n: int, parties: int) -> Events:
    """Traffic of `gelu`."""
    powers = p.truncation(n, parties) + p.square(n, parties) * 2 + p.product(2 * n, n, 2 * n, parties) * 2
    choose = p.product(2 * n, 2 * n, 2 * n, parties, truncates=False)
    return p.less_than_zero(2 * n, parties) + powers + p.truncation(n, parties) + choose


def gelu_released(x: Shares) -> Shares:
    """x (1 + erf(x / sqrt 2)) / 2 with CrypTen's erf: what a direct use of CrypTen gives, wrong beyond |x| = 1.5."""
    return (x * ((x * (1 / math.sqrt(2))).erf() + 1)).div(2)


def gelu_released_events(n: int, parties: int) -> Events:
    """Traffic of `gelu_released`."""
    cut = p.truncation(n, parties)
    return cut + p.error_function(n, parties) + p.product(n, n, n, parties) + cut


def softmax(x: Shares) -> Shares:
    """Softmax over the last dimension with CrypTen's maximum; our exp and reciprocal."""
    numerator = exp(x - x.max(-1, keepdim=True)[0])
    return numerator * reciprocal_positive(numerator.sum(-1, keepdim=True))


def softmax_events(rows: int, length: int, parties: int, fraction_bits: int = p.FRACTION_BITS) -> Events:
    """Traffic of `softmax`."""
    n = rows * length
    largest = p.maximum(length, rows, parties, fraction_bits)
    return largest + exp_events(n, parties) + reciprocal_positive_events(rows, parties) + p.product(n, rows, n, parties)


def softmax_released_events(rows: int, length: int, parties: int, fraction_bits: int = p.FRACTION_BITS) -> Events:
    """Traffic of CrypTen's own softmax over `length` entries in each of `rows`."""
    n = rows * length
    largest = p.maximum(length, rows, parties, fraction_bits)
    divide = p.reciprocal_positive(rows, parties) + p.product(n, rows, n, parties)
    return largest + p.exponential(n, parties) + divide


def row_normalize(x: Shares, eps: float) -> Shares:
    """x / (sum x + eps) over the last dimension for x >= 0.

    Computed as (x / mean) / L, so that the reciprocal keeps its digits.
    """
    length = x.size(-1)
    mean = (x.sum(-1, keepdim=True) + eps).div(length)
    return (x * reciprocal_positive(mean)).div(length)


def row_normalize_events(rows: int, length: int, parties: int) -> Events:
    """Traffic of `row_normalize`."""
    n = rows * length
    divide = p.product(n, rows, n, parties) + p.truncation(n, parties)
    return p.truncation(rows, parties) + reciprocal_positive_events(rows, parties) + divide


def row_normalize_released(x: Shares, eps: float) -> Shares:
    """x times CrypTen's reciprocal of the (positive) row sum; right to 3 % for sums in [1e-3, 50]."""
    return x * released_reciprocal_positive(x.sum(-1, keepdim=True) + eps)


def row_normalize_released_events(rows: int, length: int, parties: int) -> Events:
    """Traffic of `row_normalize_released`."""
    n = rows * length
    return p.reciprocal_positive(rows, parties) + p.product(n, rows, n, parties)


def released_reciprocal_positive(x: Shares) -> Shares:
    """CrypTen's reciprocal without the comparison for the sign."""
    import_crypten()
    from crypten.config import cfg

    with cfg.temp_override({"functions.reciprocal_all_pos": True}):
        return x.reciprocal()


def layer_norm(x: Shares, length: int, eps: float) -> Shares:
    """(x - mean) / sqrt(variance + eps) over the last dimension, variance in VARIANCE_DOMAIN: 18 rounds."""
    centred = x - x.sum(-1, keepdim=True).div(length)
    variance = (centred.square().sum(-1, keepdim=True) * _VARIANCE_GAIN).div(length)
    root = inverse_square_root(variance + _VARIANCE_GAIN * eps)
    return centred * (root * math.isqrt(_VARIANCE_GAIN))


def layer_norm_events(rows: int, length: int, parties: int) -> Events:
    """Traffic of `layer_norm` without weight and bias."""
    n, cut = rows * length, p.truncation(rows, parties)
    return cut + p.square(n, parties) + cut + inverse_square_root_events(rows, parties) + p.product(n, rows, n, parties)


def layer_norm_released(x: Shares, length: int, eps: float) -> Shares:
    """The same by CrypTen's inverse square root; right for variances in about [0.1, 100]."""
    centred = x - x.sum(-1, keepdim=True).div(length)
    variance = centred.square().sum(-1, keepdim=True).div(length)
    return centred * (variance + eps).inv_sqrt()


def layer_norm_released_events(rows: int, length: int, parties: int) -> Events:
    """Traffic of `layer_norm_released` without weight and bias."""
    n, cut = rows * length, p.truncation(rows, parties)
    return cut + p.square(n, parties) + cut + p.inverse_square_root(rows, parties) + p.product(n, rows, n, parties)


def _below_powers_of_four(x: Shares) -> Shares:
    """Secret bits [x < 4^j], one leading row for each threshold."""
    edges = torch.tensor([4.0**j for j in _EXPONENTS]).view(-1, *[1] * x.dim())
    return (import_crypten().stack([x] * THRESHOLDS) - edges)._ltz()


def _bucket_exponents() -> range:
    """Exponent of the lower edge of each bucket between thresholds, the lowest bucket reaching down to 4^-7."""
    return range(_EXPONENTS.start - 1, _EXPONENTS.stop)


def _bucket_values(bits: Shares, values: Sequence[float]) -> Shares:
    """The public value of the bucket that the secret bits select: local, since it is linear in the bits."""
    from crypten.mpc import MPCTensor

    zero = MPCTensor.from_shares(bits.share[0])
    scale = zero.encoder.scale
    encoded = [round(value * scale) for value in values]
    steps = torch.tensor([a - b for a, b in pairwise(encoded)])
    share = (bits.share * steps.view(-1, *[1] * zero.dim())).sum(0)
    if zero._tensor.rank == 0:
        share = share + encoded[-1]
    return MPCTensor.from_shares(share)


def _times(x: Shares, factor: float) -> Shares:
    """x times a public number, encoded to the nearest fixed-point value (CrypTen's own rounds towards zero)."""
    return _linear_combination([x], [factor])


def _linear_combination(terms: Sequence[Shares], factors: Sequence[float]) -> Shares:
    """The sum of terms times public factors, truncated once."""
    scale = terms[0].encoder.scale
    result = terms[0].clone()
    result.share = sum(term.share * round(factor * scale) for term, factor in zip(terms, factors, strict=True))
    return result.div(scale)
