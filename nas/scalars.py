"""Records of training as TensorBoard scalars, for whoever wants to watch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nas.training import OnEpoch


def tensorboard_writer(folder: Path) -> OnEpoch:
    """An `on_epoch` that writes every number of a record below `folder` for TensorBoard."""
    from torch.utils.tensorboard.writer import SummaryWriter

    writer = SummaryWriter(str(folder))

    def write(record: dict[str, Any]) -> None:
        for name, value in record.items():
            if isinstance(value, int | float) and name not in ("epoch", "seed", "schema"):
                writer.add_scalar(name, value, record["epoch"])
        writer.flush()

    return write
