"""A small training as a program: the tests kill it, resume it, and start it under torchrun.

Arguments: folder, batch of one process, extra settings as JSON. Prints what it found as one line of JSON. With
`terminated_at` among the settings, the last process, and no other, gets SIGTERM in that batch; with `double`, weights
and gradients have 64 bits.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from models.spec import BlockSpec, ViTSpec
from models.vit import VisionTransformer
from nas.data import load
from nas.distributed import join
from nas.evaluation import shared_accuracy
from nas.losses import CrossEntropy
from nas.settings import Mixing, TrainSettings
from nas.training import train


class _Loss(CrossEntropy):
    """Cross-entropy, with SIGTERM for this process in batch number `terminated_at` of its run."""

    def __init__(self, terminated_at: int | None) -> None:
        self._left = terminated_at

    def __call__(self, model: nn.Module, images: Tensor, targets_BY: Tensor) -> dict[str, Tensor]:
        """The terms of cross-entropy."""
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                signal.raise_signal(signal.SIGTERM)
        return super().__call__(model, images, targets_BY)


class _Double(VisionTransformer):
    """The network in 64 bits."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return super().forward(images.double())


def main() -> None:
    """Trains, saving as often as it can."""
    folder, batch, extra = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
    torch.set_num_threads(1)
    ranks = join()
    dataset = load("digits", 8)
    torch.manual_seed(0)
    double = extra.pop("double", False)
    network = (_Double if double else VisionTransformer)(
        ViTSpec(8, 4, 8, 10, (BlockSpec(("relu_softmax", "scaling"), 4, 8),)),
        attn_dropout=extra.pop("attn_dropout", 0.1),
        drop_path=extra.pop("drop_path", 0.1),
    )
    network = network.double() if double else network
    mixing = Mixing() if extra.pop("mixing", False) else None
    terminated_at = extra.pop("terminated_at", None)
    loss = _Loss(terminated_at if ranks.rank == ranks.world - 1 else None)
    given = {"epochs": 2, "batch": batch, "lr": 1e-2, "checkpoint_every_s": 0.0, "mixing": mixing, **extra}
    train(network, dataset, loss, TrainSettings(**given), 0, folder)
    accuracy = shared_accuracy(network, dataset, dataset.test, ranks)
    if ranks.first:
        print(json.dumps({"processes": ranks.world, "accuracy": accuracy}))


if __name__ == "__main__":
    main()
