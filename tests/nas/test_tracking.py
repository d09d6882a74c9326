"""Trackers: rows and curves say the same, and say it once, whatever was killed in between."""

from __future__ import annotations

import importlib
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench.records import append, read
from nas.tracking import Tracker
from nas.training_bar import TrainingBar

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside tensorboard

MANIFEST = {"verb": "train", "commit": "abc", "seeds": [0], "arguments": {"epochs": 3}}


def epoch(number: int, loss: float = 1.0) -> dict[str, Any]:
    return {"record": "train_epoch", "seed": 0, "epoch": number, "loss": loss, "accuracy": None, "p": [0.5]}


def report(updates: int, loss: float = 1.0) -> dict[str, Any]:
    place = {"epoch": updates // 10, "epochs": 3, "batch": updates % 10, "batches": 10, "updates": updates}
    return {**place, "learning_rate": 0.1, "loss": loss, "images_per_s": 1234.0, "remaining_s": 65.0}


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every point of every curve of all event files, in the order of the files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_every_number_becomes_a_row_and_a_point(tmp_path: Path) -> None:
    with Tracker(tmp_path, every_s=0) as tracker:
        tracker.on_update(report(5, loss=3.0))
        tracker.on_epoch(epoch(0, loss=2.0))
        tracker.on_epoch(epoch(1, loss=1.0))
    assert [row["loss"] for row in read(tmp_path / "epochs.jsonl", "train_epoch")] == [2.0, 1.0]
    assert [row["loss"] for row in read(tmp_path / "updates.jsonl", "update")] == [3.0]
    assert curves(tmp_path) == {
        "loss": [(0, 2.0), (1, 1.0)],
        "update/loss": [(5, 3.0)],
        "update/learning_rate": [(5, pytest.approx(0.1))],
        "update/images_per_s": [(5, 1234.0)],
    }


def test_rows_of_the_loop_are_not_written_again(tmp_path: Path) -> None:
    append(tmp_path / "epochs.jsonl", epoch(0))
    with Tracker(tmp_path) as tracker:
        tracker.on_epoch(epoch(0))
    assert len(read(tmp_path / "epochs.jsonl")) == 1


def test_work_that_a_kill_has_undone_is_replaced_by_what_was_done_again(tmp_path: Path) -> None:
    killed = Tracker(tmp_path, every_s=0)
    for updates in (5, 15, 16, 17):
        killed.on_update(report(updates, loss=9.0))
        if updates == 5:
            killed.on_epoch(epoch(0))
    append(tmp_path / "epochs.jsonl", epoch(1, loss=0.5))  # the loop's own row; its tracker never heard of it
    with Tracker(tmp_path, every_s=0) as resumed:
        resumed.on_update(report(16, loss=8.0))
        resumed.on_epoch(epoch(2))
    assert [(row["updates"], row["loss"]) for row in read(tmp_path / "updates.jsonl")] == [(5, 9.0), (15, 9.0), (16, 8)]
    drawn = curves(tmp_path)
    assert drawn["update/loss"] == [(5, 9.0), (15, 9.0), (16, 8.0)]
    assert drawn["loss"] == [(0, 1.0), (1, 0.5), (2, 1.0)]


def test_a_finished_training_is_drawn_whole_however_it_ended(tmp_path: Path) -> None:
    append(tmp_path / "epochs.jsonl", epoch(0))
    for _ in range(2):
        Tracker(tmp_path).close()
    assert curves(tmp_path)["loss"] == [(0, 1.0)]
    Tracker(tmp_path / "never-trained").close()
    assert not (tmp_path / "never-trained").exists()


def test_reports_are_kept_seldom_and_passed_on_always(tmp_path: Path) -> None:
    heard: list[int] = []
    with Tracker(tmp_path, every_s=3600, on_update=lambda row: heard.append(row["updates"])) as tracker:
        for updates in (1, 2, 3):
            tracker.on_update(report(updates))
    assert heard == [1, 2, 3]
    assert [row["updates"] for row in read(tmp_path / "updates.jsonl")] == [1]


def test_an_overflow_is_null_and_no_point(tmp_path: Path) -> None:
    with Tracker(tmp_path, every_s=0) as tracker:
        tracker.on_update({**report(1), "gradient_norm": float("inf")})
    assert read(tmp_path / "updates.jsonl")[0]["gradient_norm"] is None
    assert "update/gradient_norm" not in curves(tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # MLflow's own, of what it will change
def test_mlflow_hears_every_point_once_in_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow: Any = importlib.import_module("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "server").as_uri())
    folder = tmp_path / "run" / "train"
    killed = Tracker(folder, manifest=MANIFEST, every_s=0)
    killed.on_update(report(5))
    killed.on_epoch(epoch(0))
    append(folder / "epochs.jsonl", epoch(1))
    with Tracker(folder, manifest=MANIFEST, every_s=0) as resumed:
        resumed.on_update(report(15))
        resumed.on_epoch(epoch(2))
    client = mlflow.tracking.MlflowClient()
    experiment = client.get_experiment_by_name("mpc-pareto").experiment_id
    (run,) = client.search_runs([experiment])
    steps = {name: [point.step for point in client.get_metric_history(run.info.run_id, name)] for name in ("loss",)}
    assert steps == {"loss": [0, 1, 2]}
    assert [point.step for point in client.get_metric_history(run.info.run_id, "update/loss")] == [5, 15]
    assert (run.info.status, run.info.run_name, run.data.params) == ("FINISHED", "run/train", {"epochs": "3"})
    assert run.data.tags["commit"] == "abc"


def test_a_missing_mlflow_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    tracker = Tracker(tmp_path, mlflow_uri="http://localhost:1")
    with pytest.raises(ValueError, match=r"install it: pip install 'mpc-pareto\[mlflow\]', or unset"):
        tracker.on_epoch(epoch(0))


def test_the_bar_shows_speed_and_the_time_left() -> None:
    screen = StringIO()
    with TrainingBar(Console(file=screen, force_terminal=True, width=140), "retraining") as bar:
        bar.on_update(report(12, loss=0.25))
        bar.on_epoch({**epoch(1), "accuracy": 0.5})
    shown = screen.getvalue()
    assert "epoch 2 of 3, loss 0.250, 1,234 images/s, 0:01:05 left" in shown
    assert "epoch 2: accuracy 0.5000" in shown


def test_the_bar_is_silent_where_no_terminal_is() -> None:
    screen = StringIO()
    with TrainingBar(Console(file=screen)) as bar:
        bar.on_update(report(12))
        bar.on_epoch({**epoch(1), "accuracy": 0.5})
    assert screen.getvalue().strip() == ""
