from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from cost_models.evaluation import Evaluation, Point, Scores, drift, evaluate, repeatability, scored
from cost_models.linear import POOLED, CostModel, InNetwork, Spread
from cost_models.observations import Observation
from mpc.network import network
from mpc.scheme import Scheme
from mpc.trace import Operand, Operation, Trace

SCHEME = Scheme()
# 9 rounds a comparison: 9 ms, whatever its size; within a factor of 2 nine times in ten, within 1.2 every second time.
LN_2, LN_1_2 = 0.6931471805599453, 0.1823215567939546
SPREAD = Spread(1.0, 0.0, 0.0, (-LN_2, -LN_1_2, LN_1_2, LN_2))
MODEL = CostModel({POOLED: {"rounds": 1e-3}}, SCHEME, {"label": "test"}, SPREAD, link_spread=0.0)


def comparisons(count: int, elements: int = 10) -> Trace:
    return Trace((Operation("relu", (Operand((elements,), "secret"),), (elements,)),) * count)


def observed(count: int, seconds: float, elements: int = 10) -> Observation:
    return Observation("relu", f"{count}", comparisons(count, elements), SCHEME, (seconds,))


def baseline(evaluation: Evaluation, name: str) -> Scores:
    scores = evaluation.baselines[name]
    assert scores is not None
    return scores


# Predicted: 9, 18 and 36 ms.
POINTS = (observed(1, 0.010), observed(2, 0.018), observed(4, 0.024, elements=20))


def test_errors_and_ranks_by_hand() -> None:
    found = evaluate(MODEL, POINTS, POINTS)
    assert [point.relative_error for point in found.points] == pytest.approx([0.1, 0.0, 0.5])
    scores = found.scores
    assert (scores.points, scores.median_error, scores.worst_error) == pytest.approx((3, 0.1, 0.5))
    assert scores.p90_error == pytest.approx(0.1 + 0.8 * 0.4)
    assert (scores.spearman, scores.kendall) == pytest.approx((1.0, 1.0))
    # Ranks 1 2 3 against 2 1 3: 1 - 6 (1 + 1) / (3 x 8), and one pair of three the wrong way.
    swapped = evaluate(MODEL, [observed(1, 0.019), *POINTS[1:]], POINTS).scores
    assert (swapped.spearman, swapped.kendall) == pytest.approx((0.5, 1 / 3))


def test_within_10_counts_points() -> None:
    several = [observed(1, 0.009 * ratio) for ratio in (1.0, 0.95, 1.05, 1.2)]
    assert evaluate(MODEL, several, []).scores.within_10 == 0.75


def test_ranks_say_nothing_where_all_are_alike() -> None:
    scores = evaluate(MODEL, [observed(1, 0.010), observed(1, 0.012)], []).scores
    assert (scores.spearman, scores.kendall) == (None, None)
    assert evaluate(MODEL, POINTS[:1], []).scores.kendall is None


def test_coverage_counts_points_inside_their_intervals() -> None:
    # Intervals of 9 ms: 7.5 to 10.8 ms, and 4.5 to 18 ms.
    found = evaluate(MODEL, [observed(1, s) for s in (0.004, 0.005, 0.008, 0.010, 0.019)], [])
    point = found.points[0]
    assert (point.p05_s, point.p25_s, point.p75_s, point.p95_s) == pytest.approx((0.0045, 0.0075, 0.0108, 0.018))
    assert (found.coverage_90, found.coverage_50) == (3 / 5, 2 / 5)
    assert {key: found.to_json()["scores"][key] for key in ("coverage_90", "coverage_50")} == {
        "coverage_90": 3 / 5,
        "coverage_50": 2 / 5,
    }


def test_an_operation_alone_is_predicted_as_it_runs_alone() -> None:
    starting = dataclasses.replace(MODEL, in_networks={POOLED: InNetwork(1.0, 2.0)}, _costs={})
    alone = dataclasses.replace(POINTS[0], alone=True)
    assert [p.predicted_s for p in evaluate(starting, [POINTS[0], alone], []).points] == pytest.approx([1.018, 0.009])


def test_repeatability_by_hand() -> None:
    # Quartiles 2 and 4 of 1..5, median 3: the standard error of a normal median, of two of them.
    expected = math.sqrt(2) * 1.2533 * (2 / 1.349) / math.sqrt(5) / 3
    assert repeatability((5, 1, 4, 2, 3)) == pytest.approx(expected)
    assert repeatability((7.0,) * 4) == 0.0
    assert repeatability((1, 2, 3)) is repeatability(()) is None


def test_repeatability_is_how_far_medians_of_normal_samples_differ() -> None:
    runs = np.random.default_rng(0).normal(1.0, 0.05, size=(2000, 2, 15))
    differences = np.median(runs[:, 0], axis=1) - np.median(runs[:, 1], axis=1)
    said = [repeatability(samples_s) for samples_s in runs[:, 0].tolist()]
    assert np.mean(said) == pytest.approx(np.std(differences), rel=0.1)


def test_repeatability_of_a_group_leaves_out_what_ran_too_seldom() -> None:
    runs = [(0.010,), (0.010, 0.011) * 2, (0.010, 0.013) * 2]
    found = evaluate(MODEL, [dataclasses.replace(POINTS[0], online_s=samples_s) for samples_s in runs], [])
    first, second = (repeatability(samples_s) or 0.0 for samples_s in runs[1:])
    assert 0 < first < second
    assert [point.repeatability for point in found.points] == [None, first, second]
    scores = found.to_json()["scores"]
    assert scores["repeatability_median"] == pytest.approx((first + second) / 2)
    assert scores["repeatability_p90"] == pytest.approx(first + 0.9 * (second - first))
    assert evaluate(MODEL, POINTS, []).to_json()["scores"]["repeatability_median"] is None


def test_drift_is_between_thirds_of_the_passes_and_no_scatter() -> None:
    # Three passes at 1, three at 1.1, three at 1.2 times the seconds of each workload, whatever its size.
    paced = [[size * pace for pace in (1.0, 1.1, 1.2) for _ in range(3)] for size in (1e-4, 0.01, 1.0)]
    assert drift(paced) == pytest.approx(0.2)
    assert drift([samples_s[::-1] for samples_s in paced]) == pytest.approx(0.2)
    assert drift([[1.0, 1.2, 1.1] * 3] * 3) == pytest.approx(0.0)
    alone = [[1.0] * 9, [2.0] * 9, [1.0, 1.0, 1.0, 5.0, 5.0, 5.0, 1.0, 1.0, 1.0]]
    assert drift(alone) == pytest.approx(0.0)  # of one workload, not of the machine


def test_drift_of_a_group_wants_three_passes_that_all_had() -> None:
    assert drift([]) is drift([[1.0, 2.0]]) is drift([[1.0] * 3, [1.0] * 4]) is None
    runs = [dataclasses.replace(point, online_s=(0.010, 0.010, 0.013)) for point in POINTS]
    assert evaluate(MODEL, runs, []).to_json()["scores"]["drift"] == pytest.approx(0.3)
    assert evaluate(MODEL, POINTS, []).to_json()["scores"]["drift"] is None


def test_baselines_of_one_count_are_fitted_on_what_was_measured_before() -> None:
    found = evaluate(MODEL, POINTS, (observed(1, 0.1), observed(3, 0.3)))
    # 0.1 s a comparison of 10 elements: by rounds whatever its size, by bytes and by elements compared by its size.
    for name, seconds in {"rounds only": 0.4, "bytes only": 0.8, "ReLU count": 0.8}.items():
        assert [point.baselines[name] for point in found.points] == pytest.approx([0.1, 0.2, seconds])
    assert baseline(found, "rounds only").median_error == pytest.approx((0.2 - 0.018) / 0.018)
    assert baseline(found, "bytes only").worst_error == pytest.approx((0.8 - 0.024) / 0.024)


def test_a_baseline_says_nothing_where_nothing_was_counted_or_fitted() -> None:
    found = evaluate(MODEL, POINTS, POINTS)
    assert found.baselines["FLOPs"] is None and found.to_json()["baselines"]["FLOPs"] is None
    linear = Operation(
        "linear", (Operand((2, 3), "secret"), Operand((4, 3), "weight")), (2, 4), (("macs", 24),), site="head"
    )
    with_products = dataclasses.replace(POINTS[0], trace=Trace((linear,)), online_s=(0.048,))
    found = evaluate(MODEL, [*POINTS, with_products], [with_products])
    assert baseline(found, "FLOPs").points == 1 and found.points[3].baselines["FLOPs"] == pytest.approx(0.048)
    assert found.baselines["ReLU count"] is None
    far = dataclasses.replace(POINTS[0], network=network("cheetah-wan"))
    assert evaluate(MODEL, [far], POINTS).baselines["rounds only"] is None  # fitted on loopback alone


def test_rounds_times_rtt_speaks_only_of_real_links() -> None:
    assert evaluate(MODEL, POINTS, POINTS).baselines["rounds x RTT"] is None
    far = dataclasses.replace(POINTS[0], network=network("cheetah-wan"), online_s=(9 * 0.08,))
    scores = baseline(evaluate(MODEL, [far, POINTS[1]], POINTS), "rounds x RTT")
    assert (scores.points, scores.median_error) == (1, pytest.approx(0.5))  # gloo waits for 2 RTT a round


def test_sum_over_heads_pays_the_rounds_of_every_head() -> None:
    assert evaluate(MODEL, POINTS, POINTS).baselines["sum over heads"] is None
    whole = dataclasses.replace(POINTS[0], online_s=(0.009,), heads=(comparisons(1, 5), comparisons(1, 5)))
    found = evaluate(MODEL, [whole, POINTS[1]], POINTS)
    summed = baseline(found, "sum over heads")
    assert (summed.points, summed.median_error) == (1, pytest.approx(1.0))
    assert found.points[0].relative_error == pytest.approx(0.0)


def test_points_say_what_was_measured() -> None:
    run = dataclasses.replace(POINTS[0], online_s=(0.036, 0.010, 0.018), mode="emulated-link")
    (point,) = evaluate(MODEL, [run], []).to_json()["points"]
    assert point["samples_s"] == [0.036, 0.010, 0.018] and point["measured_s"] == 0.018
    assert (point["what"], point["shape"], point["network"], point["mode"]) == (
        "relu",
        "1",
        "loopback",
        "emulated-link",
    )


def test_points_predicted_otherwise_are_scored_alike() -> None:
    found = evaluate(MODEL, POINTS, POINTS)
    assert scored(found.points) == found
    halved: list[Point] = [
        dataclasses.replace(point, predicted_s=point.measured_s / 2, p95_s=0.0, baselines={}) for point in found.points
    ]
    again = scored(halved)
    assert (again.scores.median_error, again.coverage_90, again.baselines) == (0.5, 0.0, {})


def test_nothing_to_evaluate_is_refused() -> None:
    with pytest.raises(ValueError, match="no observations"):
        evaluate(MODEL, [], POINTS)
