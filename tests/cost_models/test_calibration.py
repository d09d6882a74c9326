from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cost_models.calibration import (
    AttentionWorkload,
    NetworkWorkload,
    Workload,
    default_path,
    load_default,
    observe,
    plan,
    save_default,
    to_record,
)
from cost_models.evaluation import evaluate
from cost_models.features import features
from cost_models.linear import CostModel, fit
from models.kinds import KINDS
from mpc.ranges import NOTHING_DECLARED, Ranges
from mpc.reading import shape_reading
from mpc.scheme import Scheme
from mpc.trace import Trace

SCHEME = Scheme()
SECONDS_A_ROUND, SECONDS_A_BYTE = 2.4e-3, 15e-9


@pytest.fixture(scope="module")
def traces() -> dict[Workload, Trace]:
    workloads = (*plan().fit, *plan().held_out)
    return {w: shape_reading(w.module, w.input_shape) for w in workloads}


def typical_s(trace: Trace) -> float:
    counted = features(trace, SCHEME)
    return counted.rounds * SECONDS_A_ROUND + counted.sent_bytes * SECONDS_A_BYTE


def test_running_the_plan_takes_about_a_minute(traces: dict[Workload, Trace]) -> None:
    assert plan().passes >= 3
    assert 20 < sum(typical_s(traces[workload]) for workload in plan().schedule()) < 70


def test_every_pass_runs_every_workload_in_an_order_of_its_own() -> None:
    workloads, order = {*plan().fit, *plan().held_out}, list(plan().schedule())
    passes = [order[i : i + len(workloads)] for i in range(0, len(order), len(workloads))]
    assert len(passes) == plan().passes
    assert all(set(one) == workloads for one in passes)
    assert passes[0] != passes[1]
    assert order == list(plan().schedule())


def test_held_out_workloads_have_shapes_that_the_fit_lacks() -> None:
    fitted = {(w.kinds, w.tokens, w.dim, w.batch) for w in plan().fit if isinstance(w, AttentionWorkload)}
    layers = [w for w in plan().held_out if isinstance(w, AttentionWorkload)]
    assert not fitted & {(w.kinds, w.tokens, w.dim, w.batch) for w in layers}
    seen_tokens = {w.tokens for w in plan().fit if isinstance(w, AttentionWorkload)}
    assert len({w.tokens for w in layers} - seen_tokens) >= 3
    networks = [w for w in plan().held_out if isinstance(w, NetworkWorkload)]
    assert len(networks) >= 3
    assert not {w.spec for w in networks} & {w.spec for w in plan().fit if isinstance(w, NetworkWorkload)}


def test_every_kind_is_measured_somewhere() -> None:
    measured = {k for w in (*plan().fit, *plan().held_out) if isinstance(w, AttentionWorkload) for k in w.kinds}
    assert measured >= set(KINDS)


def test_workloads_have_the_same_weights_every_time() -> None:
    for workload in (plan().fit[0], plan().fit[-1]):
        again = type(workload)(**{name: getattr(workload, name) for name in workload.__dataclass_fields__})
        pairs = zip(workload.module.parameters(), again.module.parameters(), strict=True)
        assert all(bool((a == b).all()) for a, b in pairs)


def test_heads_alone_together_pay_more_rounds_than_the_layer() -> None:
    layer = AttentionWorkload(("relu_softmax",) * 3, 17, 48)
    heads = layer.head_traces(SCHEME)
    rounds = features(shape_reading(layer.module, layer.input_shape), SCHEME).rounds
    assert [features(head, SCHEME).rounds for head in heads] == [rounds] * 3


def test_plan_to_record_and_back(
    traces: dict[Workload, Trace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    fitted, held_out = (
        [observe(w, traces[w], SCHEME, [typical_s(traces[w])] * 3) for w in part]
        for part in (plan().fit, plan().held_out)
    )
    model = fit(fitted)
    evaluation = evaluate(model, held_out, fitted)
    assert evaluation.median_error < 0.01
    record = to_record(model, evaluate(model, fitted, fitted), evaluation)
    assert list(record)[:2] == ["schema", "record"]
    assert (len(record["fit"]), len(record["held_out"])) == (len(plan().fit), len(plan().held_out))
    assert {"what", "shape", "network", "measured_s", "predicted_s"} <= set(record["held_out"][0])
    summed = evaluation.baselines["sum over heads"]
    assert summed is not None and summed.median_error > 1

    assert load_default(SCHEME) is None
    assert save_default(record, SCHEME) == default_path(SCHEME)
    assert load_default() == model
    assert json.loads(default_path(SCHEME).read_text()) == record


def test_a_default_of_another_scheme_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    trace = shape_reading(plan().fit[1].module, plan().fit[1].input_shape)
    two = [observe(plan().fit[1], trace, SCHEME, [0.1]), observe(plan().fit[1], trace, SCHEME, [0.2])]
    record = fit(two).to_json()
    other = Scheme(parties=3)
    assert isinstance(CostModel.from_json(record), CostModel)
    with pytest.raises(ValueError, match="cannot be the default"):
        save_default(record, other)
    assert default_path(other) != default_path(SCHEME)
    assert load_default(other) is None


def test_where_older_calibrations_are_is_where_they_are_still_found() -> None:
    assert default_path(Scheme()).name == "calibration-crypten-2-documented-tfp-gloo-private-16.json"
    tuned = Scheme("tuned", transport="direct")
    others = [replace(tuned, truncation="dealer"), replace(tuned, range_check=True)]
    assert len({default_path(scheme) for scheme in (Scheme(), tuned, *others)}) == 4


def test_a_calibration_from_before_the_latest_options_still_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    trace = shape_reading(plan().fit[1].module, plan().fit[1].input_shape)
    record = fit([observe(plan().fit[1], trace, SCHEME, [s]) for s in (0.1, 0.2)]).to_json()
    path = save_default(record, SCHEME)
    for option in ("truncation", "range_check"):
        del record["scheme"][option]
    path.write_text(json.dumps(record))
    model = load_default(SCHEME)
    assert model is not None and model.scheme == SCHEME
    record["scheme"]["colour"] = "blue"
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"another version .*colour.* run mpc-pareto calibrate again"):
        load_default(SCHEME)


def test_heads_alone_are_counted_with_the_ranges_of_their_layer() -> None:
    tuned = Scheme("tuned", transport="direct")
    layer = AttentionWorkload(("relu_softmax",) * 2, 9, 16)
    narrow = Ranges((("kind.relu_softmax", "relu", -2.0, 2.0),))

    def heads_bytes(ranges: Ranges) -> list[int]:
        return [features(head, tuned).binary_bytes for head in layer.head_traces(tuned, ranges)]

    alone = AttentionWorkload(("relu_softmax",), 9, 16)
    expected = features(shape_reading(alone.module, alone.input_shape, ranges=narrow), tuned).binary_bytes
    assert heads_bytes(narrow) == [expected] * 2
    assert expected < heads_bytes(NOTHING_DECLARED)[0]
