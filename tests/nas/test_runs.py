"""A search and a retraining as a run: what they leave for whoever watches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.records import read
from models.spec import BlockSpec, ViTSpec
from mpc.scheme import Scheme
from nas.runs import SearchRequest, retrain_front, search_on_link
from tests.nas.test_tracking import curves

SPEC = ViTSpec(32, 8, 16, 10, (BlockSpec(("softmax",) * 2, 8, 16),), name="tiny")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside tensorboard
def test_every_training_of_a_run_is_drawn_once_an_epoch(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(SPEC.to_json()))
    kinds = ("relu_softmax", "scaling")
    request = SearchRequest(f"spec:{tmp_path / 'spec.json'}", "digits", "l1", kinds, (0.5,), epochs=2)
    run = tmp_path / "run"
    for _ in range(2):  # the second changes nothing
        heard: list[int] = []
        found = search_on_link(run, request, Scheme(), lambda record: heard.append(record["epoch"]))  # noqa: B023
    assert heard == []
    found.to_json()
    retrain_front(run, "digits", True, None, 1, 0, lambda done, total, what: None)
    for name in ("search", "train/teacher", "train/0.5"):
        accuracies = [row["accuracy"] for row in read(run / name / "epochs.jsonl")]
        drawn = curves(run / name)["accuracy"]
        assert [step for step, _ in drawn] == list(range(len(accuracies)))
        assert [value for _, value in drawn] == pytest.approx(accuracies)
