from __future__ import annotations

import json
from dataclasses import replace
from statistics import stdev

import pytest

from models.spec import ViTSpec
from nas.candidate import Candidate, cross_table, heads_by_layer


@pytest.fixture
def candidate(tiny_spec: ViTSpec) -> Candidate:
    return Candidate(tiny_spec, 0.9, "mpcvit:latency@lan", 0, 0.5, {"lan": 1.0, "wan": 4.0}, {"lan": 1.1})


def test_a_candidate_survives_json(candidate: Candidate) -> None:
    assert Candidate.from_json(json.loads(json.dumps(candidate.to_json()))) == candidate


def test_another_record_is_refused(candidate: Candidate) -> None:
    with pytest.raises(ValueError, match="not a candidate"):
        Candidate.from_json({**candidate.to_json(), "record": "measurement"})


def test_an_accuracy_in_per_cent_is_refused(candidate: Candidate) -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\], got 93"):
        replace(candidate, accuracy=93)


def test_the_cross_table_groups_by_search_and_ratio_and_shows_the_spread(candidate: Candidate) -> None:
    second = replace(candidate, seed=1, accuracy=0.8, predicted_s={"lan": 2.0, "wan": 6.0}, measured_s={})
    other = replace(candidate, found_by="mpcvit:latency@wan")
    lan, wan = cross_table([candidate, other, second], ["lan", "wan"])
    assert (lan["found_by"], lan["seeds"], wan["found_by"]) == ("mpcvit:latency@lan", [0, 1], "mpcvit:latency@wan")
    assert lan["predicted_s"]["wan"] == {"mean": 5.0, "spread": pytest.approx(stdev([4.0, 6.0])), "n": 2}
    assert lan["accuracy"]["mean"] == pytest.approx(0.85)
    assert wan["predicted_s"]["lan"] == {"mean": 1.0, "spread": None, "n": 1}


def test_what_was_not_measured_is_none_and_never_zero(candidate: Candidate) -> None:
    (row,) = cross_table([candidate], ["lan", "wan"])
    assert row["measured_s"] == {
        "lan": {"mean": 1.1, "spread": None, "n": 1},
        "wan": {"mean": None, "spread": None, "n": 0},
    }


def test_heads_are_counted_by_layer(tiny_spec: ViTSpec) -> None:
    assert heads_by_layer(tiny_spec) == [{"relu_softmax": 1, "scaling": 1}] * 2
