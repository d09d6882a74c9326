from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.spec import ViTSpec
from models.vit import VisionTransformer
from nas.checkpoint import load_ema, newest_checkpoint
from nas.data import Augmentation, Dataset
from nas.losses import CrossEntropy
from nas.settings import Mixing, TrainSettings
from nas.training import train

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("training_process.py")
SETTINGS = TrainSettings(
    epochs=3, batch=4, lr=1e-2, augmentation=Augmentation(1, 5, 0.1), ema_decay=0.9, checkpoint_every_s=0.0
)  # 24 images: 6 batches an epoch


class _Killed(BaseException):
    """Stands for a signal: nothing catches it."""


class _Dying:
    """Cross-entropy that ends the run at its call number `at`."""

    def __init__(self, at: int) -> None:
        self.calls, self._at = 0, at

    def __call__(self, model: nn.Module, images: Tensor, targets_BY: Tensor) -> dict[str, Tensor]:
        if self.calls == self._at:
            raise _Killed
        self.calls += 1
        return CrossEntropy()(model, images, targets_BY)


def _network(spec: ViTSpec) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(spec)


def _files(folder: Path) -> dict[str, bytes]:
    """Everything that a run left, by its path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


VARIANTS: dict[str, Callable[[TrainSettings], TrainSettings]] = {
    "plain": lambda settings: settings,
    "mixed, accumulated": lambda settings: replace(settings, mixing=Mixing(), accumulate=2, clip_norm=1.0),
    "sgd, bf16": lambda settings: replace(settings, optimizer="sgd", amp="bf16", schedule="linear"),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("at", [2, 6, 10, 17])  # within epochs, at the start of one, in the last batch of all
def test_a_run_killed_within_an_epoch_leaves_the_same_files_bit_for_bit(
    tiny_spec: ViTSpec, tiny_data: Dataset, tmp_path: Path, variant: str, at: int
) -> None:
    settings = VARIANTS[variant](SETTINGS)
    records = train(_network(tiny_spec), tiny_data, CrossEntropy(), settings, 7, tmp_path / "whole")
    with pytest.raises(_Killed):
        train(_network(tiny_spec), tiny_data, _Dying(at), settings, 7, tmp_path / "killed")
    torch.manual_seed(99)  # the state of the process that resumes does not matter
    rest = _Dying(-1)
    assert train(VisionTransformer(tiny_spec), tiny_data, rest, settings, 7, tmp_path / "killed") == records
    assert rest.calls == 18 - at // settings.accumulate * settings.accumulate  # nothing but the last update is redone
    assert _files(tmp_path / "killed") == _files(tmp_path / "whole")


def test_a_checkpoint_holds_weights_optimiser_average_and_progress_and_nothing_pickled(
    tiny_spec: ViTSpec, tiny_data: Dataset, tmp_path: Path
) -> None:
    network = _network(tiny_spec)
    records = train(network, tiny_data, CrossEntropy(), SETTINGS, 0, tmp_path)
    assert sorted(_files(tmp_path)) == [
        "best.safetensors",
        "best_ema.safetensors",
        *(f"checkpoint-00003/{part}" for part in ("ema.safetensors", "optimizer.safetensors", "progress.json")),
        "checkpoint-00003/weights.safetensors",
        "epochs.jsonl",
    ]
    average = VisionTransformer(tiny_spec)
    assert load_ema(tmp_path, average)
    assert not torch.equal(average.head.weight, network.head.weight)
    assert all(0 <= record["ema_accuracy"] <= 1 for record in records)


def test_the_best_weights_are_those_of_the_first_best_validation(
    tiny_spec: ViTSpec, tiny_data: Dataset, tmp_path: Path
) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_model

    from nas.training import accuracy

    records = train(_network(tiny_spec), tiny_data, CrossEntropy(), replace(SETTINGS, epochs=8), 0, tmp_path)
    best = max(records, key=lambda record: record["accuracy"])  # the first of equals
    with safe_open(tmp_path / "best.safetensors", "pt") as file:
        assert json.loads(file.metadata()["state"]) == {"epoch": best["epoch"], "accuracy": best["accuracy"]}
    network = VisionTransformer(tiny_spec)
    load_model(network, str(tmp_path / "best.safetensors"))
    assert accuracy(network, tiny_data.val_images, tiny_data.val_labels) == best["accuracy"]


def test_sigterm_saves_within_the_epoch_and_ends_with_143(
    tiny_spec: ViTSpec, tiny_data: Dataset, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, checkpoint_every_s=None)

    class Terminated(_Dying):
        def __call__(self, model: nn.Module, images: Tensor, targets_BY: Tensor) -> dict[str, Tensor]:
            if self.calls == 8:
                signal.raise_signal(signal.SIGTERM)
            return super().__call__(model, images, targets_BY)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        train(_network(tiny_spec), tiny_data, Terminated(-1), settings, 7, tmp_path / "ended")
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before
    newest = newest_checkpoint(tmp_path / "ended")
    assert newest is not None
    assert newest.name == "checkpoint-00001-0000003"  # the ninth update is whole
    records = train(_network(tiny_spec), tiny_data, CrossEntropy(), settings, 7, tmp_path / "ended")
    assert records == train(_network(tiny_spec), tiny_data, CrossEntropy(), settings, 7, tmp_path / "whole")
    assert _files(tmp_path / "ended") == _files(tmp_path / "whole")


def test_an_older_versions_checkpoint_is_refused(tiny_spec: ViTSpec, tiny_data: Dataset, tmp_path: Path) -> None:
    train(_network(tiny_spec), tiny_data, CrossEntropy(), SETTINGS, 0, tmp_path)
    file = tmp_path / "checkpoint-00003" / "progress.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "schema": 1}))
    with pytest.raises(ValueError, match="another version"):
        train(_network(tiny_spec), tiny_data, CrossEntropy(), SETTINGS, 0, tmp_path)


def _start(folder: Path, extra: dict[str, Any]) -> subprocess.Popen[str]:
    command = [sys.executable, str(PROGRAM), str(folder), "48", json.dumps(extra)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _until(process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
    while not ready():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.001)


@pytest.mark.slow
def test_runs_killed_by_sigkill_again_and_again_end_in_the_same_files(tmp_path: Path) -> None:
    extra = {"ema_decay": 0.99, "mixing": True, "epochs": 3}  # 25 updates an epoch, a checkpoint after each
    whole = _start(tmp_path / "whole", extra)
    assert whole.wait() == 0, whole.communicate()[1]
    draw = random.Random(0)
    killed = tmp_path / "killed"
    for _ in range(3):
        process, before = _start(killed, extra), newest_checkpoint(killed)
        _until(process, lambda before=before: newest_checkpoint(killed) != before)  # type: ignore[misc]
        time.sleep(draw.random() * 0.2)  # anywhere: in an update, or while a checkpoint is written
        process.kill()
        assert process.wait() == -signal.SIGKILL
        process.communicate()
    last = _start(killed, extra)
    assert last.wait() == 0, last.communicate()[1]
    last.communicate()
    whole.communicate()
    assert _files(killed) == _files(tmp_path / "whole")


@pytest.mark.slow
def test_a_process_ended_by_sigterm_exits_with_143_and_continues(tmp_path: Path) -> None:
    extra = {"epochs": 3}
    process = _start(tmp_path / "ended", extra)
    _until(process, lambda: newest_checkpoint(tmp_path / "ended") is not None)
    process.terminate()
    assert process.wait() == 143, process.communicate()[1]
    process.communicate()
    for folder in ("ended", "whole"):
        again = _start(tmp_path / folder, extra)
        assert again.wait() == 0, again.communicate()[1]
        again.communicate()
    assert _files(tmp_path / "ended") == _files(tmp_path / "whole")
