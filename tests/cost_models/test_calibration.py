from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bench.link_runs import UNSEEN_LINKS
from bench.machine import this_machine
from cost_models.calibration import (
    CALIBRATION_LINKS,
    EVALUATIONS,
    AttentionWorkload,
    Effort,
    NetworkWorkload,
    Workload,
    default_path,
    draw_networks,
    evaluation_plan,
    load_default,
    load_record,
    plan,
    save_default,
)
from cost_models.features import UNITS, trace_counts
from cost_models.linear import POOLED, CostModel, MachineWarning, Spread
from cost_models.sweep import CASES, LIMITS
from models.kinds import KINDS
from models.spec import ViTSpec
from mpc.network import PROFILES, network
from mpc.ranges import NOTHING_DECLARED, Ranges
from mpc.reading import shape_reading
from mpc.scheme import Scheme

SCHEME = Scheme()
TUNED = Scheme("tuned", transport="direct")
EFFORT = Effort(cases=1, layers=2, networks=3, passes=4, links=2, link_repeats=5)


def model(scheme: Scheme = SCHEME, threads: int = 1) -> CostModel:
    spread = Spread(0.1, 0.1, 0.0, (-2.0, -1.0, 1.0, 2.0))
    return CostModel({POOLED: {"rounds": 1e-3}}, scheme, this_machine().to_json(), spread, threads=threads)


@pytest.fixture
def configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for calibrations."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("protocols", ["crypten", "tuned"])
def test_the_test_of_a_model_holds_nothing_that_it_was_fitted_to(protocols: str) -> None:
    fitted = plan(protocols, EFFORT)
    test = evaluation_plan(fitted, protocols, EFFORT)
    assert sorted(case.name for case in test.cases) == sorted(CASES)
    assert {case.name for case in fitted.cases} == set(CASES)
    for cases in (fitted.cases, test.cases):
        assert max(case.elements for case in cases) <= LIMITS[protocols].elements
    assert not {case.label for case in fitted.cases} & {case.label for case in test.cases}
    nameless = [{dataclasses.replace(w.spec, name="") for w in each.networks} for each in (fitted, test)]
    assert [len(specs) for specs in nameless] == [3, 3] and not nameless[0] & nameless[1]
    assert (fitted.passes, len(test.layers), test.passes, test.links, test.link_repeats) == (4, 2, 4, 2, 5)
    assert (fitted, test) == (plan(protocols, EFFORT), evaluation_plan(fitted, protocols, EFFORT))


def test_links_of_the_test_are_known_to_nobody() -> None:
    unseen = [network(name) for name in UNSEEN_LINKS]
    known = [network(name) for name in (*CALIBRATION_LINKS, *PROFILES)]
    assert not {(link.one_way_delay_s, link.bytes_per_s) for link in unseen} & {
        (link.one_way_delay_s, link.bytes_per_s) for link in known
    }
    assert len(set(UNSEEN_LINKS)) == len(UNSEEN_LINKS)


@pytest.mark.parametrize("level", EVALUATIONS)
def test_an_evaluation_has_the_layers_and_links_that_it_promises(level: str) -> None:
    wanted = EVALUATIONS[level]
    test = evaluation_plan(plan("crypten", EFFORT), "crypten", dataclasses.replace(wanted, cases=1))
    assert (len(test.layers), len(test.networks), test.links) == (wanted.layers, wanted.networks, wanted.links)


def test_the_full_evaluation_has_layers_of_every_kind_and_of_several_at_once() -> None:
    layers = evaluation_plan(plan("crypten", EFFORT), "crypten", dataclasses.replace(EFFORT, layers=99)).layers
    assert {kind for layer in layers for kind in layer.kinds} == set(KINDS)
    assert any(len(set(layer.kinds)) > 1 for layer in layers) and any(layer.batch > 1 for layer in layers)
    assert len(set(layers)) == len(layers)


@pytest.mark.parametrize("protocols", ["crypten", "tuned"])
def test_networks_are_drawn_the_same_for_a_seed_and_other_ones_for_another(protocols: str) -> None:
    drawn = draw_networks(1, 40, protocols)
    assert drawn == draw_networks(1, 40, protocols) and drawn[:3] == draw_networks(1, 3, protocols)
    shapes = {dataclasses.replace(w.spec, name="") for w in drawn}
    others = {dataclasses.replace(w.spec, name="") for w in draw_networks(2, 40, protocols)}
    assert len(shapes) == len(others) == 40 and not shapes & others
    assert len({w.spec.name for w in drawn}) == 40
    assert {w.batch for w in drawn} == {1, 2, 4}
    # What the searches choose differs: kinds by head, number and width of heads, width of the MLP, depth.
    blocks = [block for w in drawn for block in w.spec.blocks]
    assert len({w.spec.dim for w in drawn}) > 2 and len({len(w.spec.blocks) for w in drawn}) > 2
    assert len({len(block.kinds) for block in blocks}) > 3 and len({block.head_dim for block in blocks}) > 3
    assert any(len(set(block.kinds)) > 1 for block in blocks) and {block.activation for block in blocks} == {
        "gelu",
        "relu",
    }


@pytest.mark.parametrize("protocols", ["crypten", "tuned"])
def test_networks_to_fit_have_every_size_that_those_to_test_have(protocols: str) -> None:
    fitted, tested = plan(protocols).networks, draw_networks(3, 60, protocols)
    sizes: tuple[Callable[[NetworkWorkload], object], ...] = (
        lambda w: w.spec.dim,
        lambda w: w.spec.image_px,
        lambda w: len(w.spec.blocks),
        lambda w: w.batch,
        lambda w: w.spec.blocks[0].activation,
    )
    for size in sizes:
        assert {*map(size, fitted)} == {*map(size, tested)}
    assert fitted == plan(protocols).networks and len({w.what for w in (*fitted, *tested)}) == len(fitted) + 60


@pytest.mark.parametrize("scheme", [SCHEME, TUNED], ids=lambda scheme: scheme.name)
def test_drawn_networks_can_be_run(scheme: Scheme) -> None:
    for workload in draw_networks(1, 2, scheme.name):
        trace = shape_reading(workload.module, workload.input_shape, scheme.weights)
        assert trace.operations[-1].output == (workload.batch, workload.spec.classes)
        assert max(trace.traffic(scheme).online.rounds) > 0
        assert workload.head_traces(scheme) == ()


def test_workloads_name_themselves_in_records() -> None:
    layer = AttentionWorkload(("softmax", "scaling", "softmax", "scaling"), 17, 64, batch=2)
    assert (layer.what, layer.shape) == ("attention softmax+scaling", "batch 2, 17 tokens, 64 wide, 4 heads")
    assert layer.input_shape == (2, 17, 64)
    (drawn,) = draw_networks(3, 1, "crypten")
    spec: ViTSpec = drawn.spec
    heads = "+".join(str(len(block.kinds)) for block in spec.blocks)
    assert drawn.what == "network random-3-0"
    assert drawn.shape == f"batch {drawn.batch}, {spec.tokens} tokens, {spec.dim} wide, {heads} heads"


@pytest.mark.parametrize("workload", [AttentionWorkload(("softmax",) * 2, 5, 8), draw_networks(1, 1, "crypten")[0]])
def test_workloads_have_the_same_weights_every_time(workload: Workload) -> None:
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    again = dataclasses.replace(workload)  # type: ignore[type-var]
    assert isinstance(again, AttentionWorkload | NetworkWorkload) and again.module is not workload.module
    pairs = list(zip(workload.module.parameters(), again.module.parameters(), strict=True))
    assert pairs and all(bool((a == b).all()) for a, b in pairs)
    assert bool((torch.rand(2) == expected).all())  # and nobody else's random numbers are used up


def test_scores_of_a_layer_have_about_unit_variance() -> None:
    layer = AttentionWorkload(("softmax",) * 2, 64, 64)
    x = torch.randn(layer.input_shape, generator=torch.Generator().manual_seed(1))
    q, k, _ = layer.module.qkv(x).reshape(1, 64, 3, 2, 32).permute(2, 0, 3, 1, 4)  # type: ignore[operator]
    scores = q @ k.transpose(-2, -1) * 32**-0.5
    assert 0.8 < float(scores.detach().std()) < 1.2


def counted(layer: AttentionWorkload, name: str, scheme: Scheme, ranges: Ranges) -> list[float]:
    """A feature of every head of a layer alone."""
    place = list(UNITS).index(name)
    return [float(trace_counts(head, scheme)[place]) for head in layer.head_traces(scheme, ranges)]


def test_every_head_alone_pays_the_rounds_of_the_layer() -> None:
    layer = AttentionWorkload(("relu_softmax",) * 3, 17, 48)
    whole = trace_counts(shape_reading(layer.module, layer.input_shape), SCHEME)
    rounds = float(whole[list(UNITS).index("rounds")])
    assert counted(layer, "rounds", SCHEME, NOTHING_DECLARED) == [rounds] * 3


def test_heads_alone_are_counted_with_the_ranges_of_their_layer() -> None:
    layer = AttentionWorkload(("relu_softmax",) * 2, 9, 16)
    narrow = Ranges((("kind.relu_softmax", "relu", -2.0, 2.0),))
    alone = AttentionWorkload(("relu_softmax",), 9, 16)
    expected = trace_counts(shape_reading(alone.module, alone.input_shape, ranges=narrow), TUNED)
    found = counted(layer, "binary_bytes", TUNED, narrow)
    assert found == [expected[list(UNITS).index("binary_bytes")]] * 2
    assert found < counted(layer, "binary_bytes", TUNED, NOTHING_DECLARED)


def test_a_calibration_is_kept_for_its_scheme_and_threads(configuration: Path) -> None:
    assert load_default() is load_default(TUNED) is None
    record = {**model().to_json(), "evaluation": {}}
    path = save_default(record, SCHEME)
    assert path == default_path(SCHEME) and path.is_relative_to(configuration)
    assert json.loads(path.read_text()) == record
    assert load_default() == load_default(SCHEME) == model()
    assert load_default(TUNED) is load_default(SCHEME, threads=2) is None
    assert save_default(model(threads=2).to_json(), SCHEME) == default_path(SCHEME, threads=2) != path
    assert load_default(SCHEME, threads=2) == model(threads=2)
    assert load_default(SCHEME) == model()


def test_a_default_of_another_scheme_is_refused(configuration: Path) -> None:
    with pytest.raises(ValueError, match=r"for crypten .* cannot be the default for tuned"):
        save_default(model().to_json(), TUNED)
    assert not list(configuration.iterdir())


def test_a_calibration_of_another_machine_is_loaded_with_a_warning(configuration: Path) -> None:
    elsewhere = {**model().to_json(), "machine": {"label": "Another Processor"}}
    with pytest.warns(MachineWarning, match="fitted on Another Processor"):
        save_default(elsewhere, SCHEME)
    with pytest.warns(MachineWarning, match="calibrate here"):
        assert load_default() is not None


def test_where_older_calibrations_are_is_where_they_are_still_found() -> None:
    assert default_path(SCHEME).name == "calibration-crypten-2-documented-tfp-gloo-private-16.json"
    assert default_path(SCHEME, 4).name == "calibration-crypten-2-documented-tfp-gloo-private-16-threads-4.json"
    others = [dataclasses.replace(TUNED, truncation="dealer"), dataclasses.replace(TUNED, range_check=True)]
    assert len({default_path(scheme) for scheme in (SCHEME, TUNED, *others)}) == 4


def test_without_a_configuration_folder_calibrations_are_in_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert default_path(SCHEME).parent == Path.home() / ".config" / "mpc-pareto"


@pytest.mark.usefixtures("configuration")
def test_a_calibration_from_before_the_latest_options_still_counts() -> None:
    record = model().to_json()
    path = save_default(record, SCHEME)
    for option in ("truncation", "range_check"):
        del record["scheme"][option]
    path.write_text(json.dumps(record))
    loaded = load_default(SCHEME)
    assert loaded is not None and loaded.scheme == SCHEME


@pytest.mark.usefixtures("configuration")
def test_a_calibration_of_another_version_is_refused_in_one_line() -> None:
    path = save_default(model().to_json(), SCHEME)
    of_schema_1 = {"schema": 1, "record": "calibration", "coefficients": {"rounds": 1e-3}, "residuals": [0.9, 1, 1.2]}
    for record, message in (
        (of_schema_1, r"not a calibration of schema 4: schema 1.* calibrate again"),
        ({**model().to_json(), "scheme": {**SCHEME.to_json(), "colour": "blue"}}, r"another version .*colour"),
        (
            {k: v for k, v in model().to_json().items() if k != "in_networks"},
            r"another version .*'in_networks'.*calibrate again",
        ),
    ):
        path.write_text(json.dumps(record))
        with pytest.raises(ValueError, match=message) as refused:
            load_default(SCHEME)
        assert "\n" not in str(refused.value)


@pytest.mark.usefixtures("configuration")
def test_the_whole_record_is_at_hand_whatever_its_schema() -> None:
    assert load_record(SCHEME) is None
    path = save_default({**model().to_json(), "frozen_at": "then"}, SCHEME)
    assert load_record(SCHEME) == {**model().to_json(), "frozen_at": "then"}
    path.write_text(json.dumps({"schema": 1, "machine": {}}))
    assert load_record(SCHEME) == {"schema": 1, "machine": {}}


@pytest.mark.usefixtures("configuration")
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read"),
        ("[]", "holds no"),
        ("{}", "holds no"),
        ('{"machine": {}}', "holds no"),
        ('{"schema": 4, "machine": "this one"}', "holds no"),
    ],
)
def test_a_file_that_is_no_calibration_is_named_before_anything_is_measured(text: str, said: str) -> None:
    path = save_default(model().to_json(), SCHEME)
    path.write_text(text)
    with pytest.raises(ValueError, match=f"{path} {said}.* remove it, and calibrate again"):
        load_record(SCHEME)
