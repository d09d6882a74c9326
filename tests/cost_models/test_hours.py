"""How far the machine's pace lies from that of calibrations before."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from bench.machine import this_machine
from cost_models.hours import Earlier, Hour, spread_of, times_as_long, why_incomparable
from cost_models.linear import POOLED, CostModel, Spread
from cost_models.observations import OperationSamples
from mpc.scheme import Scheme
from mpc.trace import Operand, Operation

MACHINE, VERSIONS = this_machine().to_json(), {"torch": "2.15.0", "crypten": None}
SPREAD = Spread(0.1, 0.1, 0.0, (-2.0, -1.0, 1.0, 2.0))


def relu(elements: int) -> Operation:
    return Operation("relu", (Operand((elements,), "secret"),), (elements,))


def record(round_s: float = 1e-3, **changed: Any) -> dict[str, Any]:
    """A calibration that knows one kind of operation."""
    model = CostModel({POOLED: {"rounds": 1.0}, "relu": {"rounds": round_s}}, Scheme(), MACHINE, SPREAD)
    whole = {**model.to_json(), "frozen_at": "2026-11-21T10:00:00+00:00", "versions": VERSIONS, "others_share": 0.01}
    return {**whole, **changed}


def measured(earlier: dict[str, Any], *paces: float) -> list[OperationSamples]:
    """Operations that took that many times as long as `earlier` predicts."""
    model, operations = CostModel.from_json(earlier), [relu(10 * (number + 1)) for number in range(len(paces))]
    pairs = zip(operations, paces, strict=True)
    return [OperationSamples("relu", each, (model.operation_s(each) * pace,)) for each, pace in pairs]


def test_an_earlier_calibration_is_as_much_slower_as_its_predictions_are_longer() -> None:
    earlier = record()
    samples = measured(earlier, 0.8, 0.7, 2.0)  # the median: one disturbed operation is no pace
    (hour,) = Earlier.from_json(earlier).hours_before(samples)
    assert (hour.frozen_at, hour.pace) == (earlier["frozen_at"], pytest.approx(1 / 0.8))


def test_hours_that_the_earlier_one_knew_are_counted_from_now() -> None:
    known = [{"frozen_at": "2026-11-20T09:00:00+00:00", "pace": 0.9}, {"frozen_at": "then", "pace": 1.5}]
    earlier = record(earlier=known)
    hours = Earlier.from_json(earlier).hours_before(measured(earlier, 0.5))
    assert [hour.frozen_at for hour in hours] == [known[0]["frozen_at"], "then", earlier["frozen_at"]]
    assert [hour.pace for hour in hours] == pytest.approx([1.8, 3.0, 2.0])


def test_the_oldest_hours_are_forgotten() -> None:
    many = [Hour(str(number), 1.0).to_json() for number in range(40)]
    earlier = record(earlier=many)
    hours = Earlier.from_json(earlier).hours_before(measured(earlier, 1.0))
    assert [hour.frozen_at for hour in hours] == [*map(str, range(21, 40)), earlier["frozen_at"]]


def test_operations_that_the_earlier_one_was_not_fitted_to_say_nothing() -> None:
    earlier = record()
    square = OperationSamples("square", Operation("square", (Operand((4,), "secret"),), (4,)), (9.0,))
    (hour,) = Earlier.from_json(earlier).hours_before([square, *measured(earlier, 1.25), square])
    assert hour.pace == pytest.approx(0.8)
    assert Earlier.from_json(earlier).hours_before([square]) == []


@pytest.mark.parametrize(
    "changed",
    [
        {"operations": []},
        {"scheme": {"colour": "blue"}},
        {"earlier": [{"pace": 1.0}]},
        {"earlier": [{"frozen_at": "", "pace": "1"}]},
    ],
)
def test_a_damaged_record_is_refused_in_one_line(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"the calibration kept before is damaged .*: remove it"):
        Earlier.from_json(record(**changed))


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({}, None),
        ({"others_share": None}, None),
        ({"schema": 3}, "another version of this program"),
        ({"machine": {**MACHINE, "label": "another"}}, "on another machine"),
        ({"versions": {**VERSIONS, "torch": "2.16.0"}}, "other versions of packages"),
        ({"others_share": 0.3}, "while other programs ran"),
    ],
)
def test_only_a_calibration_of_the_same_machine_and_programs_is_compared(
    changed: dict[str, Any], why: str | None
) -> None:
    reason = why_incomparable(record(**changed), MACHINE, VERSIONS)
    assert reason is None if why is None else reason is not None and why in reason


def test_a_record_of_before_versions_were_noted_is_not_compared() -> None:
    earlier = record()
    del earlier["versions"]
    assert why_incomparable(earlier, MACHINE, VERSIONS) == "was made by other versions of packages"


def test_the_spread_is_how_far_off_this_hour_was_in_the_others() -> None:
    assert spread_of([]) == 0.0
    assert spread_of([Hour("a", 1.1)]) == pytest.approx(math.log(1.1))
    assert spread_of([Hour("a", 1.1), Hour("b", 1 / 1.1)]) == pytest.approx(math.log(1.1))
    assert spread_of([Hour("a", 1.0), Hour("b", 1.1)]) == pytest.approx(math.log(1.1) / math.sqrt(2))


@pytest.mark.parametrize("pace", [0.0, -1.0, math.inf, math.nan])
def test_a_pace_is_a_positive_number(pace: float) -> None:
    with pytest.raises(ValueError, match="a pace must be a number above 0"):
        Hour("then", pace)


@pytest.mark.parametrize("apart", [0.0, 0.05, 0.2])
def test_workloads_lie_apart_by_more_than_their_medians_scatter(apart: float) -> None:
    generator = np.random.default_rng(3)
    seconds = 10 ** generator.uniform(-4, 0, size=4000)
    now_s = seconds * 1.3 * np.exp(apart * generator.standard_normal(4000))
    pairs = [
        (
            (t * np.exp(0.06 * generator.normal(size=12))).tolist(),
            (n * np.exp(0.09 * generator.normal(size=18))).tolist(),
        )
        for t, n in zip(seconds, now_s, strict=True)
    ]
    times, found = times_as_long(pairs)
    assert times == pytest.approx(1.3, rel=0.02)
    assert found == pytest.approx(apart, rel=0.1, abs=0.012)


def test_what_was_not_measured_again_is_at_the_pace_of_then() -> None:
    assert times_as_long([]) == (1.0, 0.0)
    assert times_as_long([((1.0,), (2.0,))]) == (2.0, 0.0)
    times, apart = times_as_long([((1.0,), (2.0,)), ((1.0,), (4.0,)), ((1.0,), (8.0,))])
    assert (times, apart) == (pytest.approx(4.0), pytest.approx(math.log(2) / 0.6744897501960817))
