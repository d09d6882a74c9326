"""Checkpoints that are whole or absent: a folder for each finished epoch, renamed into place."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import nn

_PREFIX = "checkpoint-"


@dataclass(frozen=True, slots=True)
class Progress:
    """What a run has done: finished epochs, optimiser updates, the record of every epoch, and which run it is."""

    epochs_done: int
    updates: int
    records: tuple[dict[str, Any], ...]
    run: dict[str, Any]


def save_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Write weights (safetensors), optimiser state and progress below `folder`, replacing the checkpoint before."""
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f"{_PREFIX}draft"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    save_model(model, str(draft / "weights.safetensors"))
    torch.save(optimizer.state_dict(), draft / "optimizer.pt")
    state = {
        "schema": 1,
        "epochs_done": progress.epochs_done,
        "updates": progress.updates,
        "records": list(progress.records),
        "run": progress.run,
    }
    (draft / "progress.json").write_text(json.dumps(state))
    older = _finished(folder)
    final = folder / f"{_PREFIX}{progress.epochs_done:05d}"
    draft.rename(final)
    for stale in older:
        shutil.rmtree(stale)


def load_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, run: dict[str, Any]
) -> Progress | None:
    """Restore the newest checkpoint below `folder` into `model` and `optimizer`; None where there is none.

    Raises ValueError where it belongs to a run other than `run`: continuing would mix two experiments.
    """
    finished = _finished(folder)
    if not finished:
        return None
    newest = finished[-1]
    state = json.loads((newest / "progress.json").read_text())
    if state.get("schema") != 1:
        raise ValueError(f"{newest / 'progress.json'} has schema {state.get('schema')}, this version reads 1")
    wanted = json.loads(json.dumps(run))
    changed = sorted(key for key in wanted.keys() | state["run"].keys() if wanted.get(key) != state["run"].get(key))
    if changed:
        raise ValueError(
            f"{folder} holds a run with another {', '.join(changed)}; use an empty folder or the same settings"
        )
    load_model(model, str(newest / "weights.safetensors"))
    optimizer.load_state_dict(torch.load(newest / "optimizer.pt", weights_only=True))
    return Progress(state["epochs_done"], state["updates"], tuple(state["records"]), state["run"])


def save_weights(model: nn.Module, file: Path) -> None:
    """Write the weights of `model` to `file` (safetensors), whole or not at all."""
    draft = file.with_name(file.name + ".draft")
    save_model(model, str(draft))
    draft.replace(file)


def _finished(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(f"{_PREFIX}*") if path.name[len(_PREFIX) :].isdigit())
