"""Closed forms: the exact messages and dealer correlations of each CrypTen 0.4.1 primitive, for 2 and 3 parties.

Every function returns the events of one call on `n` (or `rows` x `length`) 64-bit elements, in the order in which
CrypTen sends them. Derived from the protocols' structure and held to measurement by tests/mpc/test_traffic.py.
"""

from __future__ import annotations

from math import log

from mpc.traffic import WORD_BYTES, Correlation, Event, Message

Events = list[Event]

_ADDER_LEVELS = 6  # log2 of the 64-bit word: levels of the carry tree
FRACTION_BITS = 16


def opening(*elements: int) -> Events:
    """Tensors of these sizes are opened to all parties in one call: 1 round, 8 bytes an element."""
    return [Message("all_reduce", tuple(WORD_BYTES * n for n in elements))]


def truncation(n: int, parties: int) -> Events:
    """Division by a public integer: local at two parties; at three the wraps are counted by party 0 (1 round there)."""
    if parties == 2:
        return []
    return [Correlation("wraps", WORD_BYTES * n), Message("gather", (WORD_BYTES * n,))]


def product(x: int, y: int, out: int, parties: int, truncates: bool = True) -> Events:
    """Beaver product of `x` and `y` elements with `out` results: 1 round, 8 (x + y) bytes."""
    events: Events = [Correlation("product", WORD_BYTES * out), *opening(x, y)]
    return events + truncation(out, parties) if truncates else events


def square(n: int, parties: int) -> Events:
    """Square: 1 round, 8 n bytes."""
    return [Correlation("square", WORD_BYTES * n), *opening(n), *truncation(n, parties)]


def conjunction(n: int) -> Events:
    """Bitwise AND of 64-bit words: 1 round, 16 n bytes."""
    return [Correlation("and", WORD_BYTES * n), *opening(n, n)]


def arithmetic_to_binary(n: int, parties: int) -> Events:
    """Shares added as bits, one carry tree for each further party: 7 rounds, 208 n bytes at two parties."""
    adder = conjunction(n) + conjunction(2 * n) * _ADDER_LEVELS
    return adder * (parties - 1)


def bit_to_arithmetic(n: int) -> Events:
    """One bit of each of n words to arithmetic shares: 1 round, 8 n bytes."""
    return [Correlation("bit", WORD_BYTES * n), *opening(n)]


def less_than_zero(n: int, parties: int) -> Events:
    """Sign bit: 8 rounds, 216 n bytes at two parties."""
    return arithmetic_to_binary(n, parties) + bit_to_arithmetic(n)


def equal_zero(n: int, parties: int) -> Events:
    """Equality with zero: 7 rounds, 104 n bytes at two parties; two comparisons at three."""
    if parties == 2:
        return conjunction(n) * _ADDER_LEVELS + bit_to_arithmetic(n)
    return less_than_zero(2 * n, parties)


def sign_product(n: int, parties: int) -> Events:
    """A comparison of n elements with zero and a product with its bit (relu, abs): 9 rounds, 232 n bytes at two."""
    return less_than_zero(n, parties) + product(n, n, n, parties, truncates=False)


def choice(n: int, parties: int) -> Events:
    """`where` on a secret bit: 2 rounds, 32 n bytes."""
    return product(n, n, n, parties, truncates=False) * 2


def exponential(n: int, parties: int, iterations: int = 8) -> Events:
    """(1 + x / 2^k)^(2^k) by k squarings: k rounds, 8 k n bytes."""
    return truncation(n, parties) + square(n, parties) * iterations


def reciprocal_positive(n: int, parties: int, newton_steps: int = 10, starts_at_constant: bool = False) -> Events:
    """CrypTen's 1 / x for x > 0: exp start and Newton steps, 28 rounds and 304 n bytes as released."""
    start = [] if starts_at_constant else exponential(n, parties)
    step = square(n, parties) + product(n, n, n, parties)
    if starts_at_constant:  # a public start makes the first step's square public too
        return truncation(n, parties) + step * (newton_steps - 1)
    return start + step * newton_steps


def reciprocal_signed(n: int, parties: int) -> Events:
    """CrypTen's 1 / x for either sign: 38 rounds, 552 n bytes at two parties."""
    multiply = product(n, n, n, parties, truncates=False)
    return less_than_zero(n, parties) + multiply + reciprocal_positive(n, parties) + multiply


def inverse_square_root(n: int, parties: int, newton_steps: int = 3) -> Events:
    """CrypTen's x^(-1/2): exp start and Newton steps, 17 rounds and 184 n bytes as released."""
    cut = truncation(n, parties)
    start = cut + exponential(n, parties) + cut + cut  # halved argument, exp, times 2.2, minus x / 1024
    multiply = product(n, n, n, parties)
    return start + (square(n, parties) + multiply * 2 + cut) * newton_steps


def power(exponent: int, n: int, parties: int) -> Events:
    """CrypTen's integer power by repeated squaring.

    Its odd powers from 5 up are wrong; the traffic is what it sends.
    """
    if exponent == 1:
        return []
    if exponent == 2:
        return square(n, parties)
    if exponent % 2 == 0:
        return square(n, parties) + power(exponent // 2, n, parties)
    return square(n, parties) + product(n, n, n, parties) + power((exponent - 1) // 2, n, parties)


def error_function(n: int, parties: int, terms: int = 8) -> Events:
    """CrypTen's erf, an 8-term Taylor series: 34 rounds, 376 n bytes."""
    events: Events = []
    for term in range(1, terms + 1):
        events += power(2 * term + 1, n, parties) + truncation(n, parties)
    return events + truncation(n, parties)


def sigmoid(n: int, parties: int) -> Events:
    """CrypTen's sigmoid: sign, exp of -|x|, three Newton steps from 0.75, selection: 23 rounds, 376 n bytes."""
    multiply = product(n, n, n, parties, truncates=False)
    newton = reciprocal_positive(n, parties, newton_steps=3, starts_at_constant=True)
    return less_than_zero(n, parties) + multiply + exponential(n, parties) + newton + choice(n, parties)


def random_choice(length: int, rows: int, parties: int, fraction_bits: int = FRACTION_BITS) -> Events:
    """CrypTen's random tie-break among `length` candidates in each of `rows`: 10 rounds at two parties."""
    draw = bit_to_arithmetic(fraction_bits * rows) + product(rows, rows, rows, parties, truncates=False)
    return draw + less_than_zero(length * rows, parties)


def maximum_pairwise(length: int, rows: int, parties: int, fraction_bits: int = FRACTION_BITS) -> Events:
    """Maximum by comparing all pairs, for the few candidates that remain after halving."""
    pairs = max(length, 2) - 1
    if pairs >= 128:
        raise ValueError(f"maximum over {length} remaining candidates has no closed form here; at most 128")
    n = length * rows
    events = less_than_zero(pairs * n, parties)
    while pairs > 1:
        half = pairs // 2
        events += product(half * n, half * n, half * n, parties, truncates=False)
        pairs = half + pairs % 2
    draw = random_choice(length, rows, parties, fraction_bits)
    return events + draw + product(n, n, n, parties, truncates=False)


def maximum(length: int, rows: int, parties: int, fraction_bits: int = FRACTION_BITS) -> Events:
    """CrypTen's log_reduction maximum of each row: int(ln length) halvings, then all pairs, then an argmax.

    `max` along a dimension always computes the argmax that comes with it; ties are broken by numbers of `fraction_bits`
    random bits.
    """
    events: Events = []
    remaining = length
    for _ in range(int(log(length))):
        half = remaining // 2
        events += less_than_zero(half * rows, parties) + choice(half * rows, parties)
        remaining = half + remaining % 2
    events += maximum_pairwise(remaining, rows, parties, fraction_bits)
    return events + equal_zero(length * rows, parties) + random_choice(length, rows, parties, fraction_bits)


def normalised_exponent(n: int, parties: int, thresholds: int) -> Events:
    """Ours: one batched comparison against public powers of 4, and one product that brings x into [1, 4)."""
    return less_than_zero(thresholds * n, parties) + product(n, n, n, parties)
