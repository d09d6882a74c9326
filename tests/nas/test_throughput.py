from __future__ import annotations

import pytest

from nas.throughput import Course, Throughputs, compare


def test_both_loops_are_timed_in_every_segment() -> None:
    course = Course("digits", "mpcvit:vit_4_4_32_demo", batch=16, batches=2, segments=3, warm_up=1)
    found = compare(course)
    assert (len(found.ours), len(found.plain)) == (3, 3)
    assert min(found.ours + found.plain) > 0


def test_the_ratio_is_that_of_medians() -> None:
    assert Throughputs((1.0, 6.0, 3.0), (2.0, 100.0, 1.0), "cpu").ratio == 1.5


def test_a_segment_fits_into_an_epoch() -> None:
    with pytest.raises(ValueError, match="a segment needs 3600"):
        compare(Course("digits", "mpcvit:vit_4_4_32_demo", batch=300))
