"""Products and truncation of the tuned scheme, in the ring: exact, or within the units that truncation costs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mpc.scheme import Scheme
from mpc.traffic import Message
from mpc.tuned import products as p
from mpc.tuned.engine import division_events, truncation_events
from tests.mpc.tuned.two_engines import SCHEME, encoded, run_both, shared

RNG = np.random.default_rng(5)
BY_DEALER = Scheme("tuned", transport="direct", truncation="dealer")


def _ring(*shape: int) -> np.ndarray:
    return RNG.integers(-(2**63), 2**63 - 1, shape, dtype=np.int64, endpoint=True)


@pytest.mark.parametrize(
    ("name", "x", "y"),
    [
        ("multiply", (3, 5), (3, 5)),
        ("multiply", (2, 3, 5), (5,)),
        ("matmul", (4, 7), (7, 3)),
        ("matmul", (2, 4, 7), (7, 3)),
        ("matmul", (2, 3, 4, 7), (2, 3, 7, 5)),
    ],
)
def test_a_product_is_exact_in_the_ring(name: str, x: tuple[int, ...], y: tuple[int, ...]) -> None:
    left, right = _ring(*x), _ring(*y)
    outcome = run_both(
        lambda e, a, b: p.product(e, name, a, b), p.product_events(name, x, y), shared(left), shared(right, 1)
    )
    assert (outcome.opened == (left * right if name == "multiply" else np.matmul(left, right))).all()


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"),
    [((2, 2), (0, 0), (1, 1), 1), ((1, 1), (1, 1), (1, 1), 1), ((1, 2), (1, 0), (2, 1), 2)],
)
def test_a_convolution_is_exact_in_the_ring(
    stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int], groups: int
) -> None:
    x, kernel = _ring(2, 4, 8, 8), _ring(6, 4 // groups, 3, 3)
    options = (stride, padding, dilation, groups)
    outcome = run_both(
        lambda e, a, b: p.product(e, "convolution", a, b, options),
        p.product_events("convolution", x.shape, kernel.shape, options),
        shared(x),
        shared(kernel, 1),
    )
    expected = torch.nn.functional.conv2d(torch.from_numpy(x), torch.from_numpy(kernel), None, *options)
    assert (outcome.opened == expected.numpy()).all()


@pytest.mark.parametrize("weights_first", [False, True])
def test_fixed_weights_are_opened_once_and_inputs_each_time(weights_first: bool) -> None:
    weights, first, second = _ring(6, 6), _ring(6, 6), _ring(6, 6)
    shape = (6, 6)
    events = p.product_with_fixed_events("matmul", shape, shape, (), weights_first)
    setup, online = [e for e in events if isinstance(e, Message) and e.phase == "setup"], events[1:]

    def inferences(engine, w, a, b):  # noqa: ANN001, ANN202
        p.fix_weights(engine, w)  # what is dealt before could not know the weights
        results = []
        for x in (a, b):
            engine.stock([e for e in online if not isinstance(e, Message)])
            results.append(p.product_with_fixed(engine, "matmul", x, shape, (), weights_first))
        return np.stack(results)

    outcome = run_both(inferences, [], shared(weights), shared(first, 1), shared(second, 2), check=False)
    pairs = [(weights, x) if weights_first else (x, weights) for x in (first, second)]
    assert (outcome.opened == np.stack([a @ b for a, b in pairs])).all()
    seen = [entry.event for entry in outcome.logs[0].messages]
    assert seen == [*setup, *[e for e in online if isinstance(e, Message)] * 2]


@pytest.mark.parametrize("scheme", [SCHEME, BY_DEALER], ids=["local", "dealer"])
def test_truncation_is_off_by_at_most_one_unit(scheme: Scheme) -> None:
    values = RNG.integers(-(2**45), 2**45, 5000)
    outcome = run_both(
        lambda e, a: e.truncate(a), truncation_events(scheme, values.shape), shared(values), scheme=scheme
    )
    assert np.abs(outcome.opened - (values >> 16)).max() <= 1


def test_local_truncation_ruins_large_values_and_the_dealers_never_does() -> None:
    """A value of 2^61 wraps in one of eight pairs of shares; truncation by the dealer is still right to a unit."""
    values = np.full(4000, 2**61)
    local = run_both(lambda e, a: e.truncate(a), [], shared(values))
    ruined = np.mean(np.abs(local.opened - (values >> 16)) > 1)
    assert 0.1 < ruined < 0.15
    by_dealer = run_both(
        lambda e, a: e.truncate(a), truncation_events(BY_DEALER, values.shape), shared(values), scheme=BY_DEALER
    )
    assert np.abs(by_dealer.opened - (values >> 16)).max() <= 1


@pytest.mark.parametrize("scheme", [SCHEME, BY_DEALER], ids=["local", "dealer"])
def test_division_by_a_public_integer(scheme: Scheme) -> None:
    values = encoded(RNG.normal(size=500) * 100)
    outcome = run_both(lambda e, a: e.divide(a, 65), division_events(scheme, (500,), 65), shared(values), scheme=scheme)
    assert np.abs(outcome.opened - values / 65).max() <= 2 + np.abs(values / 65).max() * 2.0**-12


def test_squares() -> None:
    x = RNG.normal(size=(7, 9)) * 30
    outcome = run_both(lambda e, a: e.truncate(p.square(e, a)), p.square_events((7, 9)), shared(encoded(x)))
    assert np.abs(outcome.opened / 2**16 - x * x).max() < 2e-3
