"""How many images a network gets right, on one process or shared out over several."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from nas.data import Dataset, Part
from nas.distributed import Ranks
from nas.loading import evaluation_batches
from nas.settings import Precision

_BATCH = 256


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images whose largest logit is their label, in evaluation mode; the model's mode is restored."""
    parts = (slice(start, start + _BATCH) for start in range(0, len(labels), _BATCH))
    right, seen = _counts(model, ((images[part], labels[part]) for part in parts), "none").tolist()
    return float(right / seen)


def shared_accuracy(model: nn.Module, dataset: Dataset, part: Part, ranks: Ranks, amp: Precision = "none") -> float:
    """The accuracy on `part`, each process judging its share: every image counts once, whatever their number."""
    device = next(model.parameters()).device
    batches = evaluation_batches(part, dataset, _BATCH, device, ranks.rank, ranks.world)
    right, seen = ranks.total(_counts(model, batches, amp)).tolist()
    return float(right / seen)


def precision(amp: Precision, device: torch.device) -> AbstractContextManager[None]:
    """The context of forward passes in this precision; ValueError with advice where the device has none such."""
    if amp == "none":
        return nullcontext()
    if amp == "fp16" and device.type != "cuda":
        raise ValueError(f"amp fp16 needs a GPU and this run is on {device.type}; use amp bf16 or none")
    if amp == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError(f"{torch.cuda.get_device_name(device)} has no bf16; use amp fp16 or none")
    return torch.autocast(device.type, torch.bfloat16 if amp == "bf16" else torch.float16)


@torch.no_grad()
def _counts(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], amp: Precision) -> Tensor:
    """How many were right and how many there were, on the model's device: the host waits for no batch."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    right, seen = torch.zeros((), dtype=torch.int64, device=device), 0
    for images, labels in batches:
        with precision(amp, device):
            logits = model(images.to(device))
        right += (logits.argmax(-1) == labels.to(device)).sum()
        seen += len(labels)
    model.train(was_training)
    return torch.stack([right, torch.tensor(seen, device=device)])
