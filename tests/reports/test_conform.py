"""What a record must hold and may hold; annotations here are strings, as where records are declared."""

from __future__ import annotations

from typing import NotRequired, TypedDict

import pytest

from reports.conform import conform


class Record(TypedDict):
    seconds: float
    drift: NotRequired[float | None]


@pytest.mark.parametrize(
    "record", [{"seconds": 1}, {"seconds": 1.5, "drift": None}, {"seconds": 1, "drift": 0.1, "x": 2}]
)
def test_a_key_that_is_not_required_may_be_there_and_others_are_let_through(record: dict[str, object]) -> None:
    conform(record, Record, "record")


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"drift": 0.1}, "record lacks seconds; "),
        ({"seconds": 1.0, "drift": "much"}, "record.drift is 'much', expected int or float; "),
        ({"seconds": True}, "record.seconds is True, expected int or float; "),
        ([], "record is [], expected dict; "),
    ],
)
def test_what_is_absent_or_of_another_type_is_named(record: object, said: str) -> None:
    with pytest.raises(ValueError, match=r"reports/records\.py") as refused:
        conform(record, Record, "record")
    assert str(refused.value).startswith(said)
