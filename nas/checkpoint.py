"""Checkpoints that are whole or absent: a folder for each, renamed into place when all of it is on the disk.

In `checkpoint-EPOCHS` or, within an epoch, `checkpoint-EPOCHS-BATCHES`: `weights.safetensors`, `optimizer.safetensors`,
`ema.safetensors` where there is an average, and `progress.json`. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn

from nas.distributed import join

_PREFIX = "checkpoint-"
_SCHEMA = 2
_EMA = "ema.safetensors"


@dataclass(frozen=True, slots=True)
class Progress:
    """What a run has done: finished epochs, batches of the one under way and their sums of every term of the loss.

    Updates, the record of every finished epoch, which run it is, and the state of the loss scale (fp16).
    """

    epochs_done: int
    updates: int
    records: tuple[dict[str, Any], ...]
    run: dict[str, Any]
    batches_done: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tensors:
    """What a checkpoint keeps the tensors of."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: nn.Module | None = None


def save_checkpoint(folder: Path, tensors: Tensors, progress: Progress) -> None:
    """Write `tensors` and `progress` below `folder`, replacing the checkpoint before; on the disk on return."""
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f"{_PREFIX}draft"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    save_model(tensors.model, str(draft / "weights.safetensors"))
    save_file(_optimizer_tensors(tensors), draft / "optimizer.safetensors")
    if tensors.ema is not None:
        save_model(tensors.ema, str(draft / _EMA))
    (draft / "progress.json").write_text(json.dumps({"schema": _SCHEMA, **asdict(progress)}, allow_nan=False))
    for path in (*draft.iterdir(), draft):
        _to_disk(path)
    older = _finished(folder)
    within = f"-{progress.batches_done:07d}" if progress.batches_done else ""
    final = folder / f"{_PREFIX}{progress.epochs_done:05d}{within}"
    if final in older:  # the same place again, hence the same content
        shutil.rmtree(draft)
        return
    draft.rename(final)
    _to_disk(folder)
    for stale in older:
        shutil.rmtree(stale)


def load_checkpoint(folder: Path, tensors: Tensors, run: dict[str, Any]) -> Progress | None:
    """Restore the newest checkpoint below `folder` into `tensors`; None where there is none.

    Raises ValueError where it belongs to a run other than `run`: continuing would mix two experiments.
    """
    newest = newest_checkpoint(folder)
    if newest is None:
        return None
    state = json.loads((newest / "progress.json").read_text())
    if state.pop("schema", None) != _SCHEMA:
        raise ValueError(f"{newest} was written by another version of this program; use an empty folder")
    wanted = json.loads(json.dumps(run))
    changed = sorted(key for key in wanted.keys() | state["run"].keys() if wanted.get(key) != state["run"].get(key))
    if changed:
        raise ValueError(
            f"{folder} holds a run with another {', '.join(changed)}; use an empty folder or the same settings"
        )
    load_model(tensors.model, str(newest / "weights.safetensors"))
    _load_optimizer(tensors, load_file(newest / "optimizer.safetensors"))
    if tensors.ema is not None:
        load_model(tensors.ema, str(newest / _EMA))
    return Progress(**{**state, "records": tuple(state["records"])})


def newest_checkpoint(folder: Path) -> Path | None:
    """The folder of the newest checkpoint of the run in `folder`; None where there is none."""
    return max(_finished(folder), key=_place, default=None)


def load_ema(folder: Path, model: nn.Module) -> bool:
    """Load the averaged weights of the newest checkpoint of the run in `folder`; False where none are kept."""
    newest = newest_checkpoint(folder)
    if newest is None or not (newest / _EMA).exists():
        return False
    load_model(model, str(newest / _EMA))
    return True


def save_weights(model: nn.Module, file: Path, metadata: dict[str, str] | None = None) -> None:
    """Write the weights of `model` to `file` (safetensors), whole or not at all.

    Of several processes the first writes, and all return when it has.
    """
    ranks = join()
    if ranks.first:
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_name(file.name + ".draft")
        save_model(model, str(draft), metadata)
        _to_disk(draft)
        draft.replace(file)
        _to_disk(file.parent)
    ranks.wait()


def _finished(folder: Path) -> list[Path]:
    return [path for path in folder.glob(f"{_PREFIX}*") if path.name[len(_PREFIX) :].replace("-", "").isdigit()]


def _place(checkpoint: Path) -> tuple[int, ...]:
    return tuple(int(number) for number in checkpoint.name[len(_PREFIX) :].split("-"))


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _parameters(tensors: Tensors) -> list[tuple[str, nn.Parameter]]:
    """The optimiser's parameters in its own order, with their names in the model."""
    names = {id(parameter): name for name, parameter in tensors.model.named_parameters()}
    return [(names[id(p)], p) for group in tensors.optimizer.param_groups for p in group["params"]]


def _optimizer_tensors(tensors: Tensors) -> dict[str, Tensor]:
    """Every tensor of the optimiser's state as `PARAMETER:KEY`; its rates are a function of the update."""
    return {
        f"{name}:{key}": value.detach().contiguous()
        for name, parameter in _parameters(tensors)
        for key, value in tensors.optimizer.state.get(parameter, {}).items()
        if value is not None
    }


def _load_optimizer(tensors: Tensors, stored: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    indices = {name: (index, parameter) for index, (name, parameter) in enumerate(_parameters(tensors))}
    for label, value in stored.items():
        name, _, key = label.rpartition(":")
        index, parameter = indices[name]
        if value.shape == parameter.shape:  # in the memory order of the weights, as an optimiser makes it
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        state.setdefault(index, {})[key] = value
    groups = tensors.optimizer.state_dict()["param_groups"]
    tensors.optimizer.load_state_dict({"state": state, "param_groups": groups})
