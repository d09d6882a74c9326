from __future__ import annotations

import pickle
from collections import Counter
from itertools import combinations, pairwise
from math import dist, log, prod

import pytest
import torch

from cost_models.features import model_key
from cost_models.sweep import CASES, FITTED_SHARES, LIMITS, RUNS, Case, Limits, Sizes, Sweep, draw_cases, number_of
from mpc.reading import shape_reading
from mpc.scheme import Scheme
from mpc.trace import Trace

TINY = Limits(20_000, 2_000_000)
SCHEMES = (Scheme(), Scheme("tuned", transport="direct"))
SIZES = Sizes(batch=2, tokens=5, dim=8, heads=3, head_dim=4, mlp_width=16)

# By the sizes above: B 2, N 5, C 8, H 3, D 4, M 16.
BY_HAND = {
    "qkv": ("qkv 36x8 36 2x5x8", 2 * 5 * 36, 80 * 36),
    "fc2": ("fc2 8x16 8 2x5x16", 160, 160 * 8),
    "head": ("head 10x8 10 2x8", 2 * 10, 16 * 10),
    "patches": ("patches 8x3x4x4 8 2x3x8x8", 2 * 3 * 64, 8 * 48 * 2 * 4),
    "scores": ("scores 2x3x5x4 2x3x5x4", 240, 2 * 3 * 5 * 5 * 4),
    "values": ("values 2x3x5x5 2x3x5x4", 150 + 120, 2 * 3 * 5 * 5 * 4),
    "residual": ("residual 2x5x8 2x5x8", 160, 0),
    "position": ("position 1x5x8 2x5x8", 80, 0),
    "layer_norm": ("layer_norm 8 8 2x5x8", 80, 0),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_labels_elements_and_products_by_hand(name: str) -> None:
    case = Case(name, SIZES)
    assert (case.label, case.elements, case.macs) == BY_HAND[name]


@pytest.mark.parametrize("name", CASES)
def test_products_of_a_case_are_those_of_its_reading(name: str) -> None:
    case = Case(name, SIZES)
    assert Sweep([case]).input_shape == (max(map(prod, case.module().shapes)),)
    assert _read([case]).macs == RUNS * case.macs


def _read(cases: list[Case], scheme: Scheme = SCHEMES[0]) -> Trace:
    sweep = Sweep(cases).eval()
    return shape_reading(sweep, sweep.input_shape, scheme.weights)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_every_case_runs_several_times_at_a_site_of_its_own(scheme: Scheme) -> None:
    cases = draw_cases(3, 1, TINY)
    assert sorted(case.name for case in cases) == sorted(CASES)
    trace = _read(cases, scheme)
    assert [number_of(o.site) for o in trace.operations] == sorted(number_of(o.site) for o in trace.operations)
    for number, case in enumerate(cases):
        alone = _read([case], scheme)
        assert alone.operations[0].site.startswith("cases.0")
        here = [o for o in trace.operations if number_of(o.site) == number]
        ops = [o.op for o in here]
        assert ops == ops[: len(ops) // RUNS] * RUNS
        assert set(Counter(ops).values()) == {RUNS}  # one name is one operation, of which the last run counts
        assert Trace(tuple(here)).traffic(scheme) == alone.traffic(scheme)


@pytest.mark.parametrize("name", CASES)
def test_a_sweep_runs_what_its_case_says(name: str) -> None:
    case = Case(name, SIZES)
    sweep = Sweep([case]).eval()
    x = torch.randn(sweep.input_shape, generator=torch.Generator().manual_seed(0))
    y, module = sweep(x), sweep.cases[0]
    expected = module(*(x[: prod(shape)].reshape(shape) for shape in module.shapes))
    assert y.shape == expected.shape and bool((y == expected).all())


def test_a_sweep_runs_in_the_order_asked_for_and_has_the_same_weights_every_time() -> None:
    cases = draw_cases(4, 1, TINY)[:5]
    sweep, again = Sweep(cases), Sweep(cases)
    assert all(bool((a == b).all()) for a, b in zip(sweep.parameters(), again.parameters(), strict=True))
    sweep.order = [3, 0, 4, 1, 2]
    read = shape_reading(sweep.eval(), sweep.input_shape)
    assert list(dict.fromkeys(number_of(o.site) for o in read.operations)) == sweep.order


def test_a_sweep_can_be_sent_to_another_process() -> None:
    sweep = Sweep(draw_cases(5, 1, TINY)).eval()
    sweep.order.reverse()
    there = pickle.loads(pickle.dumps(sweep))
    assert (there.order, there.shapes, there.input_shape) == (sweep.order, sweep.shapes, sweep.input_shape)
    assert shape_reading(there, there.input_shape) == shape_reading(sweep, sweep.input_shape)


def test_drawing_leaves_the_caller_s_random_numbers_alone() -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    Sweep(draw_cases(6, 1, TINY))
    assert bool((torch.rand(3) == expected).all())


@pytest.mark.parametrize("limits", [TINY, LIMITS["crypten"]])
def test_cases_lie_within_the_limits_and_none_is_drawn_again(limits: Limits) -> None:
    cases = draw_cases(1, 3, limits)
    assert Counter(case.name for case in cases) == dict.fromkeys(CASES, 3)
    assert max(case.elements for case in cases) <= limits.elements
    assert max(case.macs for case in cases) <= limits.macs
    assert len({case.label for case in cases}) == len(cases)
    assert cases == draw_cases(1, 3, limits)
    fresh = draw_cases(1, 3, limits, avoid=cases)  # the same random numbers
    assert not {case.label for case in cases} & {case.label for case in fresh}
    assert draw_cases(2, 3, limits) != cases


def test_cases_of_as_many_elements_are_unlike_each_other_where_that_is_asked() -> None:
    limits = Limits(50_000, 10_000_000)
    plain, unlike = (
        {name: [case for case in draw_cases(1, 12, limits, alike=alike) if case.name == name] for name in CASES}
        for alike in (1, 12)
    )

    def least(cases: list[Case]) -> float:
        return min(dist(one.place, other.place) for one, other in combinations(cases, 2))

    assert sum(least(unlike[name]) > least(plain[name]) for name in CASES) > 0.8 * len(CASES)
    assert all(len(drawn) == 12 for drawn in unlike.values())


@pytest.mark.parametrize("alike", [1, 12])
def test_sizes_are_spread_over_their_logarithm(alike: int) -> None:
    cases = draw_cases(1, 6, Limits(50_000, 10_000_000), alike=alike)
    for name in ("scores", "gelu", "fc1"):
        elements = sorted(case.elements for case in cases if case.name == name)
        steps = [log(b / a) for a, b in pairwise(elements)]
        assert max(steps) < 3 * log(elements[-1] / elements[0]) / len(steps)


def test_every_operation_that_is_fitted_by_itself_has_shapes_enough() -> None:
    for scheme in SCHEMES:
        trace = _read(draw_cases(1, 5, TINY), scheme)
        shapes = {(model_key(o), number_of(o.site)) for o in trace.operations}
        assert min(Counter(key for key, _ in shapes).values()) >= 5


def test_limits_are_known_for_every_protocol_set() -> None:
    assert {scheme.name for scheme in SCHEMES} == LIMITS.keys()


def test_limits_that_leave_too_few_cases_are_refused() -> None:
    with pytest.raises(ValueError, match=r"only 0 of 2 cases of qkv are within Limits\(elements=100.*allow larger"):
        draw_cases(1, 2, Limits(100, 1000))


def test_shares_say_how_many_cases_of_a_name_are_drawn_but_never_fewer_than_a_fit_needs() -> None:
    counted = [Counter(case.name for case in draw_cases(1, each, TINY, shares=FITTED_SHARES)) for each in (2, 6)]
    assert counted[0] == {name: 4 if name in ("patches", "scores", "values") else 2 for name in CASES}
    assert counted[1] == {name: max(4, round(6 * FITTED_SHARES.get(name, 1.0))) for name in CASES}
    assert counted[1]["scores"] == 12
    assert counted[1]["residual"] == 4
