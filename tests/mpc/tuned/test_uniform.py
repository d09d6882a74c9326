"""Whatever a protocol shows a party is uniform, and does not depend on the inputs.

Inputs, shares and the viewing party's own key are held fixed; the other party's key is fresh in every run. What the
viewer then receives, what both open, and the corrections that a dealer sends to party 0 are all it sees beyond what it
knew: each must be a uniform word in which every bit counts, padding included, and no two may depend on each other (a
mask used twice would show there). Keys come from a fixed family, so a verdict is the same in every run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from queue import Queue
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom, chi2, norm

from mpc.ledger import Ledger
from mpc.scheme import Scheme
from mpc.traffic import Correlation
from mpc.tuned import comparison, functions, pieces, products, selection
from mpc.tuned.approximations import GELU, Pieces, exp_chain
from mpc.tuned.checking import check_range, check_range_events
from mpc.tuned.engine import Engine, Events, division_events, truncation_events
from mpc.tuned.sources import DealerSource, SecondPartySource
from tests.mpc.tuned.two_engines import KEYS, SCHEME, Wire, encoded, shared

Seen = NDArray[np.uint64]  # (runs, words)
Run = Callable[..., Any]

RUNS = 160
# Of a false alarm in one view, over all its words and bits.
FALSE_ALARM = 1e-5
BY_DEALER = replace(SCHEME, truncation="dealer")
CHECKED = replace(SCHEME, range_check=True)
STEP = Pieces((-1.0, 0.5), (0.0, 1.0, 2.0), (0.0, 1.0, 0.5))


@dataclass(frozen=True)
class Protocol:
    """A protocol as `run(engine, *shares)`, what it is stocked with, and two sets of inputs that must look alike."""

    run: Run
    events: Events
    inputs: tuple[Any, ...]
    others: tuple[Any, ...]
    scheme: Scheme = SCHEME


@dataclass(frozen=True)
class View:
    """What one party sees in all runs. `opened` is what it can make of `received`."""

    received: Seen
    opened: Seen
    corrections: Seen


class WatchedEngine(Engine):
    """Keeps what both parties opened."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.opened: list[Any] = []

    def exchange(self, parts: Any, phase: Any = "online") -> list[Any]:
        """As the engine does."""
        opened = super().exchange(parts, phase)
        self.opened += opened
        return opened


def key_of(family: str, run: int) -> bytes:
    return hashlib.sha256(f"{family} {run}".encode()).digest()[:16]


def flat(arrays: list[Any]) -> Seen:
    return np.concatenate([np.zeros(0, np.uint64), *(array.reshape(-1).view(np.uint64) for array in arrays)])


def view_of(protocol: Protocol, inputs: tuple[Any, ...], viewer: int, family: str, runs: int = RUNS) -> View:
    """What `viewer` sees in `runs` runs that differ in the other party's key alone."""
    to_zero, to_one = Queue[Any](), Queue[Any]()
    wires = Wire(to_one, to_zero), Wire(to_zero, to_one)
    shares = [shared(values, seed) for seed, values in enumerate(inputs)]
    stocked = [event for event in protocol.events if isinstance(event, Correlation)]
    seen: list[tuple[Seen, Seen, Seen]] = []

    def once(number: int, run: int) -> None:
        keys = [KEYS[viewer] if party == viewer else key_of(family, run) for party in range(2)]
        corrections: list[Any] = []
        source = SecondPartySource(keys[1]) if number else DealerSource(keys[0], keys[1], corrections.append)
        engine = WatchedEngine(number, wires[number], protocol.scheme, Ledger(number, 2, "direct"), source)
        before = len(wires[number].seen)
        engine.stock(stocked)
        protocol.run(engine, *(pair[number] for pair in shares))
        assert not engine.left
        if number == viewer:
            messages = [message for message in wires[number].seen[before:] if message.dtype == np.int64]  # no meetings
            seen.append((flat(messages), flat(engine.opened), flat(corrections)))

    def party(number: int) -> None:
        for run in range(runs):
            once(number, run)

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(party, number) for number in range(2)]:
            done.result()
    return View(*(np.stack(column) for column in zip(*seen, strict=True)))


def bit_problems(words: Seen) -> list[str]:
    """Words with a bit that is not 0 as often as 1."""
    ones = np.unpackbits(words.view(np.uint8), axis=1).sum(0, dtype=np.int64)
    least = np.minimum(ones, len(words) - ones)
    chance = 2 * binom.cdf(least, len(words), 0.5)
    return [f"bits of word {i // 64}" for i in np.flatnonzero(chance < FALSE_ALARM / max(1, ones.size))]


def byte_counts(words: Seen) -> NDArray[np.int64]:
    """How often each word took each byte: (words, 256)."""
    count = words.shape[1]
    by_word = words.view(np.uint8).reshape(len(words), count, 8).astype(np.int64)
    return np.bincount((by_word + 256 * np.arange(count)[:, None]).ravel(), minlength=256 * count).reshape(count, 256)


def byte_problems(words: Seen) -> list[str]:
    """Words whose bytes are not uniform, by chi-square."""
    expected = 8 * len(words) / 256
    chance = chi2.sf(((byte_counts(words) - expected) ** 2).sum(1) / expected, 255)
    return [f"bytes of word {i}" for i in np.flatnonzero(chance < FALSE_ALARM / max(1, chance.size))]


def pair_problems(words: Seen, others: Seen) -> list[str]:
    """Pairs of words that depend on each other: bits that agree too often, or a sum or difference that stays."""
    found = []
    tests = max(1, words.shape[1] * (others.shape[1] + 32))
    widest = norm.isf(FALSE_ALARM / tests / 2) * np.sqrt(64 * len(words)) / 2
    for i in range(words.shape[1]):
        word, after = words[:, i, None], others[:, i + 1 :]
        turned = np.stack([(word[:, 0] << np.uint64(k)) | (word[:, 0] >> np.uint64(64 - k)) for k in range(1, 33)], 1)
        for name, against in (("another", after), ("itself", turned)):
            agreeing = np.bitwise_count(word ^ against).sum(0, dtype=np.int64) - 32 * len(words)
            limit = widest if name == "another" else 1.5 * widest  # a word and itself, turned by 32: 32 bits only
            found += [f"word {i} with {name}"] * int((np.abs(agreeing) > limit).sum())
        for join in (np.add, np.subtract):
            stays = (join(word[1:], after[1:]) == join(word[:-1], after[:-1])).any(0)
            found += [f"word {i} with another"] * int(stays.sum())
    return found


def problems(view: View) -> list[str]:
    """All that is not uniform or not independent in a view."""
    everything = np.concatenate([view.opened, view.corrections], axis=1)
    return [
        *bit_problems(view.received),
        *byte_problems(view.received),
        *bit_problems(everything),
        *byte_problems(everything),
        *pair_problems(view.opened, everything),
    ]


def unlike(one: Seen, two: Seen) -> list[str]:
    """Words whose bytes differ in distribution between two sets of runs, by chi-square."""
    a, b = byte_counts(one), byte_counts(two)
    chance = chi2.sf(((a - b) ** 2 / np.maximum(a + b, 1)).sum(1), 255)
    return [f"word {i}" for i in np.flatnonzero(chance < FALSE_ALARM / max(1, chance.size))]


def with_fixed(engine: Engine, w: Any, x: Any) -> Any:
    """Setup of weights, then two inferences: the mask of the weights stays, that of the input does not."""
    products.fix_weights(engine, w)
    results = []
    for _ in range(2):
        engine.stock(products.product_with_fixed_events("matmul", x.shape, w.shape)[1:2])
        results.append(products.product_with_fixed(engine, "matmul", x, w.shape))
    return results


def with_fixed_norm(engine: Engine, w: Any, x: Any) -> Any:
    products.fix_weights(engine, w)
    events = functions.layer_norm_events(engine.scheme, *x.shape, 0.05, 20.0, True)
    engine.stock([event for event in events if isinstance(event, Correlation)])
    return functions.layer_norm(engine, x, 1e-5, 0.05, 20.0, True)


SMALL = encoded([-2.5, 0.0, 3.25])
OTHER = encoded([7.0, -7.5, 2.0**-16])
POSITIVE, OTHER_POSITIVE = encoded([0.5, 1.0, 3.9]), encoded([2.0, 2.0, 2.0])
ROWS, OTHER_ROWS = encoded([[0.5, -1.0, 2.0, 1.75, 0.0]]), encoded([[-3.0, 3.0, -3.0, 3.0, 0.25]])
MATRIX = encoded([[1.0, -2.0], [0.0, 4.0]])

PROTOCOLS = {
    "negative_part": Protocol(
        lambda e, x: selection.negative_part(e, x, 5), selection.negative_part_events(3, 5), (SMALL,), (OTHER,)
    ),
    "ring_signs": Protocol(
        lambda e, x: selection.ring_signs(e, x, 8), selection.signs_events(3, 8), (SMALL,), (0 * SMALL,)
    ),
    "maximum": Protocol(
        lambda e, x: selection.maximum(e, x, 4, 4),
        selection.maximum_events(1, 7, 4, 4),
        (np.arange(7)[None] << 16,),
        (np.zeros((1, 7)),),
    ),
    "pieces": Protocol(
        lambda e, x: pieces.piecewise(e, x, STEP, -8.0, 8.0),
        pieces.piecewise_events(SCHEME, 3, STEP, -8.0, 8.0),
        (SMALL,),
        (OTHER,),
    ),
    "reciprocal": Protocol(
        lambda e, x: pieces.reciprocal_positive(e, x, 0.5, 4.0),
        pieces.reciprocal_positive_events(SCHEME, 3, 0.5, 4.0),
        (POSITIVE,),
        (OTHER_POSITIVE,),
    ),
    "inverse_root": Protocol(
        lambda e, x: pieces.inverse_square_root(e, x, 0.5, 4.0),
        pieces.inverse_square_root_events(SCHEME, 3, 0.5, 4.0),
        (POSITIVE,),
        (OTHER_POSITIVE,),
    ),
    "bent": Protocol(
        lambda e, x: functions.bent(e, x, GELU, 8.0), functions.bent_events(SCHEME, 3, GELU, 8.0), (SMALL,), (OTHER,)
    ),
    "product": Protocol(
        lambda e, x, y: products.product(e, "multiply", x, y),
        products.product_events("multiply", (3,), (3,)),
        (SMALL, SMALL),
        (OTHER, 0 * OTHER),
    ),
    "square": Protocol(products.square, products.square_events((3,)), (SMALL,), (OTHER,)),
    "fixed_product": Protocol(with_fixed, [], (MATRIX, MATRIX), (MATRIX.T.copy(), 0 * MATRIX)),
    "layer_norm": Protocol(
        with_fixed_norm, [], (encoded([1.0] * 5), ROWS), (encoded([0.5, 2.0, 1.0, -1.0, 3.0]), OTHER_ROWS)
    ),
    "exp": Protocol(
        lambda e, x: functions.exp(e, x, exp_chain(-8.0)),
        functions.exp_events(SCHEME, (3,), exp_chain(-8.0)),
        (-POSITIVE,),
        (-OTHER_POSITIVE,),
    ),
    "softmax": Protocol(
        lambda e, x: functions.softmax(e, x, 8.0), functions.softmax_events(SCHEME, 1, 5, 8.0), (ROWS,), (OTHER_ROWS,)
    ),
    "truncation": Protocol(
        lambda e, x: e.truncate(x), truncation_events(BY_DEALER, (3,)), (SMALL,), (OTHER << 30,), BY_DEALER
    ),
    "division": Protocol(
        lambda e, x: e.divide(x, 65), division_events(BY_DEALER, (3,), 65), (SMALL,), (OTHER,), BY_DEALER
    ),
    "range_check": Protocol(
        lambda e, x: check_range(e, x, -4.0, 4.0), check_range_events(CHECKED, 3), (SMALL,), (OTHER,), CHECKED
    ),
}


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("viewer", [0, 1])
def test_what_a_party_sees_is_uniform_and_independent_of_the_inputs(name: str, viewer: int) -> None:
    protocol = PROTOCOLS[name]
    one = view_of(protocol, protocol.inputs, viewer, "one")
    assert not problems(one)
    two = view_of(protocol, protocol.others, viewer, "two")
    assert not unlike(one.opened, two.opened)
    assert not unlike(one.received, two.received)


def _bare(engine: Engine, x: Any) -> None:
    engine.open(x)


def _mask_used_twice(engine: Engine, x: Any) -> None:
    a, _ = engine.take("square", x.shape)
    engine.open(x - a)
    engine.open(2 * x - a)


def _mask_used_with_its_negative(engine: Engine, x: Any) -> None:
    a, _ = engine.take("square", x.shape)
    engine.open(x - a, x + a)


def _mask_without_a_top_bit(engine: Engine, x: Any) -> None:
    a, _ = engine.take("square", x.shape)
    engine.open((a.view(np.uint64) >> np.uint64(1)).view(np.int64) - (x if engine.first else 0 * x))


def _padding_without_a_mask(engine: Engine, x: Any) -> None:
    a, _ = engine.take("square", x.shape)
    engine.open_bits(a.view(np.uint64) & np.uint64(2**x.size - 1))


def _one_bit_for_two_lanes(engine: Engine, x: Any) -> None:
    a, _ = engine.take("square", x.shape)
    lanes = a.view(np.uint64) & np.uint64(2**32 - 1)
    engine.open_bits(lanes | lanes << np.uint64(32))


@pytest.mark.parametrize("viewer", [0, 1])
@pytest.mark.parametrize(
    ("broken", "finding"),
    [
        (_bare, "bits"),
        (_mask_used_twice, "another"),
        (_mask_used_with_its_negative, "another"),
        (_mask_without_a_top_bit, "bits"),
        (_padding_without_a_mask, "bits"),
        (_one_bit_for_two_lanes, "itself"),
    ],
)
def test_what_is_not_masked_right_is_found(broken: Run, finding: str, viewer: int) -> None:
    events = [] if broken is _bare else products.square_events((3,))
    found = problems(view_of(Protocol(broken, events, (SMALL,), (OTHER,)), (SMALL,), viewer, "one"))
    assert any(finding in problem for problem in found)


def test_conjunctions_without_masks_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    protocol = PROTOCOLS["negative_part"]
    monkeypatch.setattr(comparison, "to_open", lambda equal, less, masks: np.concatenate([equal[:-1], less[1:]]))
    assert problems(view_of(protocol, protocol.inputs, 0, "one"))


def test_one_mask_for_two_openings_of_a_comparison_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks of `equal` for `less` as well: each word is uniform by itself."""
    protocol = PROTOCOLS["negative_part"]
    right = comparison.to_open

    def reusing(equal: Any, less: Any, masks: Any) -> Any:
        return right(equal, less, replace(masks, less=masks.equal))

    monkeypatch.setattr(comparison, "to_open", reusing)
    assert any("another" in problem for problem in problems(view_of(protocol, protocol.inputs, 1, "one")))


def test_a_correction_that_is_a_value_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables sent as they are: one bit in sixteen is set."""
    monkeypatch.setattr(DealerSource, "_share_words", lambda self, shape, compute: self._sent(compute(), shape))
    protocol = PROTOCOLS["ring_signs"]
    assert any("bits" in problem for problem in problems(view_of(protocol, protocol.inputs, 0, "one")))


def test_openings_that_tell_inputs_apart_are_found() -> None:
    def noisy(engine: Engine, x: Any) -> None:
        """A mask that is too short for what it hides."""
        a, _ = engine.take("square", x.shape)
        engine.open(x + (a >> 40))

    protocol = Protocol(noisy, products.square_events((3,)), (SMALL,), (OTHER,))
    views = [view_of(protocol, inputs, 0, name) for name, inputs in (("one", (SMALL,)), ("two", (OTHER << 30,)))]
    assert unlike(views[0].opened, views[1].opened)


def test_one_mask_for_two_weights_is_found() -> None:
    """What makes one mask of fixed weights safe for every input is that it never covers other weights."""

    def run(engine: Engine, w: Any, v: Any) -> None:
        products.fix_weights(engine, w)
        engine.exchange([(v - engine.source.fixed[0].mask.share, "ring")], phase="setup")

    protocol = Protocol(run, [], (MATRIX, MATRIX.T.copy()), (MATRIX, MATRIX))
    assert any("another" in problem for problem in problems(view_of(protocol, protocol.inputs, 0, "one")))
