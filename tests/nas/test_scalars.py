from __future__ import annotations

from pathlib import Path

import pytest


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside tensorboard
def test_every_number_of_a_record_becomes_a_scalar(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from nas.scalars import tensorboard_writer

    write = tensorboard_writer(tmp_path)
    write({"record": "train_epoch", "seed": 0, "epoch": 0, "loss": 2.0, "accuracy": None})
    write({"record": "train_epoch", "seed": 0, "epoch": 1, "loss": 1.0, "accuracy": 0.5})
    events = EventAccumulator(str(tmp_path)).Reload()
    assert sorted(events.Tags()["scalars"]) == ["accuracy", "loss"]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(0, 2.0), (1, 1.0)]
