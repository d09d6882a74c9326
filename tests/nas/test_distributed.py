from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from bench.records import read
from nas.distributed import Ranks, join
from nas.randomness import Position

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("training_process.py")
EXACT = {"epochs": 2, "attn_dropout": 0.0, "drop_path": 0.0, "clip_norm": 1.0, "checkpoint_every_s": None}


def _run(folder: Path, processes: int, batch: int, extra: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """`training_process.py` as a program or under torchrun."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(torchrun if processes > 1 else []), str(PROGRAM), str(folder), str(batch)]
    return subprocess.run([*command, json.dumps(extra)], cwd=ROOT, capture_output=True, text=True, check=False)


def _train(folder: Path, processes: int, batch: int, extra: dict[str, Any]) -> dict[str, Any]:
    """What the program printed."""
    done = _run(folder, processes, batch, extra)
    assert done.returncode == 0, done.stderr
    printed: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return printed


def _checkpoint(folder: Path) -> Path:
    (found,) = folder.glob("checkpoint-*")
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "tolerance"),
    [
        ({"optimizer": "sgd", "lr": 0.1, "accumulate": 2, "ema_decay": 0.9}, 1e-5),
        # AdamW divides by the root of gradients that are all but zero, which enlarges rounding: hence 64 bits.
        ({"double": True, "ema_decay": 0.9}, 1e-9),
    ],
)
def test_two_processes_train_what_one_does_with_the_doubled_batch(
    tmp_path: Path, change: dict[str, Any], tolerance: float
) -> None:
    one = _train(tmp_path / "one", 1, 80, EXACT | change)
    two = _train(tmp_path / "two", 2, 40, EXACT | change)
    assert (one["processes"], two["processes"]) == (1, 2)
    assert two["accuracy"] == one["accuracy"]  # 360 test images, each counted once
    for name in ("weights", "optimizer", *(["ema"] if "ema_decay" in change else [])):
        alone, shared = (load_file(_checkpoint(tmp_path / run) / f"{name}.safetensors") for run in ("one", "two"))
        assert alone.keys() == shared.keys()
        for key, value in alone.items():
            torch.testing.assert_close(shared[key], value, atol=tolerance, rtol=tolerance)
    rows = [read(tmp_path / run / "epochs.jsonl") for run in ("one", "two")]
    assert rows[0]
    for alone_row, shared_row in zip(*rows, strict=True):
        numbers = {key: value for key, value in alone_row.items() if isinstance(value, float)}
        assert {"loss", "accuracy", "learning_rate"} <= numbers.keys()
        assert {key: shared_row[key] for key in numbers} == pytest.approx(numbers, rel=1e-4)


@pytest.mark.slow
def test_two_processes_of_which_one_is_terminated_save_together_and_continue(tmp_path: Path) -> None:
    ended = _run(tmp_path / "ended", 2, 40, EXACT | {"terminated_at": 20})  # 15 batches an epoch
    assert ended.returncode != 0
    assert _checkpoint(tmp_path / "ended").name == "checkpoint-00001-0000005"
    for folder in ("ended", "whole"):
        _train(tmp_path / folder, 2, 40, EXACT)
    for name in ("weights.safetensors", "optimizer.safetensors"):
        first, second = (load_file(_checkpoint(tmp_path / run) / name) for run in ("ended", "whole"))
        for key, value in first.items():
            torch.testing.assert_close(second[key], value)


def test_a_plain_program_is_a_run_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    ranks = join()
    assert (ranks, ranks.first) == (Ranks(0, 1), True)
    module = nn.Linear(1, 1)
    assert ranks.parallel(module) is module
    assert ranks.agreed(3) == 3
    assert ranks.total(torch.tensor([2, 5])).tolist() == [2, 5]


def test_draws_of_one_position_are_alike_and_of_others_differ() -> None:
    def draw(*position: int) -> list[int]:
        return torch.randint(1000, (8,), generator=Position(*position).generator()).tolist()

    assert draw(0, 1, 2) == draw(0, 1, 2)
    assert len({tuple(draw(seed, epoch, batch)) for seed in (0, 1) for epoch in (0, 1) for batch in (0, 1)}) == 8
