from __future__ import annotations

import dataclasses

import pytest

from cost_models.evaluation import evaluate
from cost_models.linear import CostModel, Observation
from mpc.network import network
from mpc.scheme import Scheme
from mpc.trace import Operand, Operation, Trace

SCHEME = Scheme()
# 9 rounds a comparison: 9 ms, whatever its size.
MODEL = CostModel({"rounds": 1e-3}, SCHEME, {"label": "test"}, (0.5, 1.0, 1.5))


def comparisons(count: int, elements: int = 10) -> Trace:
    return Trace((Operation("relu", (Operand((elements,), "secret"),), (elements,)),) * count)


def observed(count: int, seconds: float, elements: int = 10) -> Observation:
    return Observation("relu", f"{count}", comparisons(count, elements), SCHEME, (seconds,))


POINTS = (observed(1, 0.010), observed(2, 0.018), observed(4, 0.024, elements=20))


def test_errors_ranks_and_coverage_by_hand() -> None:
    found = evaluate(MODEL, POINTS, POINTS)
    assert [p.relative_error for p in found.points] == pytest.approx([0.1, 0.0, 0.5])
    assert found.median_error == pytest.approx(0.1)
    assert found.p90_error == pytest.approx(0.1 + 0.8 * 0.4)
    assert (found.scores.spearman, found.scores.kendall) == (pytest.approx(1.0), pytest.approx(1.0))
    assert found.coverage == 1.0
    narrow = dataclasses.replace(MODEL, residuals=(0.9, 1.0, 1.05))
    assert evaluate(narrow, POINTS, POINTS).coverage == pytest.approx(1 / 3)


def test_the_fastest_run_is_compared_with_undisturbed_seconds_and_the_median_with_p50() -> None:
    busy = dataclasses.replace(MODEL, residuals=(0.5, 2.0, 3.0))
    disturbed = dataclasses.replace(POINTS[0], online_s=(0.036, 0.010, 0.018))
    found = evaluate(busy, [disturbed], POINTS)
    assert found.undisturbed.median_error == pytest.approx(0.1)  # 9 ms predicted, 10 ms the fastest
    assert found.median_error == pytest.approx(0.0)  # 18 ms both
    assert found.coverage == pytest.approx(2 / 3)  # 36 ms lies beyond 27 ms
    assert found.to_json()["points"][0]["samples_s"] == [0.036, 0.010, 0.018]


def test_baselines_of_one_feature_are_fitted_on_the_fit_points() -> None:
    fitted_on = (observed(1, 0.1), observed(3, 0.3))
    baselines = evaluate(MODEL, POINTS, fitted_on).baselines
    rounds, sent = baselines["rounds only"], baselines["bytes only"]
    assert rounds is not None and sent is not None
    # 0.1 s a comparison, against 0.010, 0.018 and 0.024 s; bytes say 0.1 s for 10 elements compared.
    assert rounds.median_error == pytest.approx((0.2 - 0.018) / 0.018)
    assert sent.p90_error > rounds.p90_error
    macs = baselines["macs only"]
    assert macs is not None and macs.median_error == 1.0 and macs.spearman is None


def test_rounds_times_rtt_speaks_only_of_real_links() -> None:
    assert evaluate(MODEL, POINTS, POINTS).baselines["rounds x RTT"] is None
    far = dataclasses.replace(POINTS[0], network=network("cheetah-wan"), online_s=(9 * 0.08,))
    baseline = evaluate(MODEL, [far, POINTS[1]], POINTS).baselines["rounds x RTT"]
    assert baseline is not None
    assert (baseline.points, baseline.median_error) == (1, pytest.approx(0.5))  # gloo waits for 2 RTT a round


def test_sum_over_heads_pays_the_rounds_of_every_head() -> None:
    assert evaluate(MODEL, POINTS, POINTS).baselines["sum over heads"] is None
    whole = dataclasses.replace(POINTS[0], online_s=(0.009,), heads=(comparisons(1, 5), comparisons(1, 5)))
    found = evaluate(MODEL, [whole, POINTS[1]], POINTS)
    summed = found.baselines["sum over heads"]
    assert summed is not None
    assert (summed.points, summed.median_error) == (1, pytest.approx(1.0))
    assert found.points[0].relative_error == pytest.approx(0.0)


def test_nothing_to_evaluate_is_refused() -> None:
    with pytest.raises(ValueError, match="no observations"):
        evaluate(MODEL, [], POINTS)
