"""Every non-linear function alone on real parties, under either scheme."""

from __future__ import annotations

import pytest

from bench.operations import OPERATIONS, measure_operations
from mpc.parties import Parties
from mpc.scheme import Scheme


@pytest.mark.parties
def test_every_operation_runs_under_the_tuned_scheme_inside_its_calibrated_ranges(tuned_parties: Parties) -> None:
    rows = measure_operations(tuned_parties, 256, repeats=1)
    assert [row["op"] for row in rows] == list(OPERATIONS)
    for row in rows:
        assert row["max_abs_error"] < 3e-3 and not row["health"]["outside"], row["op"]
        assert (row["scheme"]["name"], row["network"], row["mode"]) == ("tuned", "loopback", "measured")


def test_elements_fill_whole_rows_before_anything_runs() -> None:
    parties = Parties(Scheme())  # not started
    with pytest.raises(ValueError, match="elements must be a multiple of 64, got 100; take 64"):
        measure_operations(parties, 100)
