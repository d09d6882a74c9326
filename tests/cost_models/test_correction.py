"""Similar operations correct each other; what was disturbed, or lies far away, does not."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from cost_models.correction import Correction, correction_of, place_of
from cost_models.observations import OperationSamples
from mpc.scheme import Scheme
from mpc.trace import Operand, Operation

SCHEME = Scheme()
LAW_S = 1e-6  # an element


def operation(elements: int, op: str = "relu") -> Operation:
    return Operation(op, (Operand((elements,), "secret"),), (elements,))


def sample(elements: int, times: float, op: str = "relu") -> OperationSamples:
    return OperationSamples(f"{op} {elements}", operation(elements, op), (times * LAW_S * elements,) * 5)


def learnt(*samples: OperationSamples) -> Correction:
    return correction_of(samples, [LAW_S * each.operation.elements for each in samples], SCHEME)


def factor(correction: Correction, elements: int, op: str = "relu") -> float:
    return correction.factor(operation(elements, op), LAW_S * elements, SCHEME)


SLOWER = learnt(*(sample(elements, 1.1) for elements in (900, 950, 1000, 1050)))


def test_what_similar_operations_took_longer_is_added_and_fades_with_distance() -> None:
    assert factor(SLOWER, 980) == pytest.approx(1.1, rel=0.01)
    near, far = (math.log(factor(SLOWER, elements)) for elements in (2000, 4000))
    assert 0 < far < near < math.log(factor(SLOWER, 1000))
    assert factor(SLOWER, 10**6) == pytest.approx(1.0)


def test_other_kinds_take_the_common_part() -> None:
    assert math.log(factor(SLOWER, 980, "square")) == pytest.approx(math.log(factor(SLOWER, 980)) / 2)


def test_without_operations_nothing_is_corrected() -> None:
    for nothing in (Correction(), learnt(), correction_of([sample(10, 1.0)], [0.0], SCHEME)):
        assert factor(nothing, 10) == 1.0
    assert SLOWER.factor(operation(10), 0.0, SCHEME) == 1.0


def test_what_was_disturbed_counts_for_little() -> None:
    usual = [sample(elements, 1.0) for elements in range(800, 1200, 40)]
    assert factor(learnt(*usual, sample(1000, 4.0)), 1000) == pytest.approx(1.0, abs=0.01)


def test_what_scatters_counts_for_less() -> None:
    steady = sample(1000, 1.1)
    seconds = tuple(1.1 * LAW_S * 1000 * times for times in (0.6, 0.8, 1.0, 1.2, 1.5))
    scattered = dataclasses.replace(steady, online_s=seconds)
    assert 1.0 < factor(learnt(scattered), 1000) < factor(learnt(steady), 1000) < 1.1


def test_a_slower_machine_has_the_same_correction_of_slower_operations() -> None:
    slow = SLOWER.at_pace(2.0)
    assert slow.factor(operation(980), 2 * LAW_S * 980, SCHEME) == pytest.approx(factor(SLOWER, 980))


def test_a_correction_is_kept_as_plain_values() -> None:
    assert Correction.from_json(json.loads(json.dumps(SLOWER.to_json()))) == SLOWER
    assert Correction.from_json(Correction().to_json()) == Correction()


def test_a_correction_has_a_place_and_a_weight_of_each_operation() -> None:
    with pytest.raises(ValueError, match="got 2 kinds, 1 places and 0 weights"):
        Correction(("relu", "relu"), (place_of(operation(1), 1.0, SCHEME),), ())


@pytest.mark.parametrize("wrong", [{"weights": [math.nan]}, {"places": [[1.0, math.inf, 1.0]]}])
def test_numbers_that_are_none_are_refused(wrong: dict[str, list[object]]) -> None:
    record = learnt(sample(10, 1.1)).to_json()
    with pytest.raises(ValueError, match="must be finite numbers; calibrate again"):
        Correction.from_json(record | wrong)
