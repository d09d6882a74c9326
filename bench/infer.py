"""Secure inference on real images: accuracy, agreement with the plain reading, latency and fixed-point health."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench.attention import spread, traffic_json
from bench.health import health_of
from bench.machine import this_machine
from bench.secure_run import SecureRun, run_module
from mpc.parties import Parties
from mpc.ranges import NOTHING_DECLARED, Ranges
from mpc.scheme import Roles, Scheme

CALIBRATION_IMAGES = 64  # of the training split, on which ranges are declared


@dataclass(frozen=True, slots=True)
class Inference:
    """Logits under both readings for the same images, and the runs that gave them, batch by batch.

    `health` is what is known about the arithmetic of all runs (`bench.health.health_of`).
    """

    runs: tuple[SecureRun, ...]
    secure_logits: Tensor
    plain_logits: Tensor
    labels: Tensor | None
    health: dict[str, Any]

    @property
    def agreement(self) -> float:
        """Share of images whose top-1 class is the same under both readings."""
        return float((self.secure_logits.argmax(1) == self.plain_logits.argmax(1)).double().mean())

    @property
    def secure_accuracy(self) -> float | None:
        """Top-1 accuracy under secure computation; None without labels."""
        return None if self.labels is None else float((self.secure_logits.argmax(1) == self.labels).double().mean())

    @property
    def plain_accuracy(self) -> float | None:
        """Top-1 accuracy of the plain reading on the same images; None without labels."""
        return None if self.labels is None else float((self.plain_logits.argmax(1) == self.labels).double().mean())

    @property
    def max_logit_difference(self) -> float:
        """Largest difference of a logit between the readings."""
        return float((self.secure_logits - self.plain_logits).abs().max())

    @property
    def min_plain_margin(self) -> float:
        """Smallest gap between the two largest plain logits: a difference below half of it cannot change the class."""
        top = self.plain_logits.topk(2, dim=1).values
        return float((top[:, 0] - top[:, 1]).min())


def infer(
    parties: Parties,
    module: nn.Module,
    images: Tensor,
    labels: Tensor | None = None,
    scheme: Scheme | None = None,
    roles: Roles | None = None,
    batch: int = 16,
    progress: Callable[[int, int], None] = lambda done, total: None,
    ranges: Ranges = NOTHING_DECLARED,
    shadow: bool = True,
) -> Inference:
    """Run every image through both readings, `batch` at a time. Raises what `run_module` raises.

    The plain reading runs in this process, which holds images and weights anyway: with `shadow` it also observes
    whether every function stays inside its domain, for the tuned scheme its declared range. Without, only the scheme's
    own range check says so, as it must be where no party may hold the plain values.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    scheme = scheme or parties.scheme
    with torch.no_grad():
        plain = module(images.clone())
    runs = []
    for start in range(0, len(images), batch):
        progress(start, len(images))
        runs.append(run_module(parties, module, images[start : start + batch], scheme, roles, ranges=ranges))
    progress(len(images), len(images))
    secure = torch.cat([run.output for run in runs])
    return Inference(tuple(runs), secure, plain, labels, health_of(module, images, runs, shadow))


def inference_record(inference: Inference, name: str) -> dict[str, Any]:
    """The record of an inference: figures, raw seconds by batch, and the health of the fixed-point arithmetic."""
    first = inference.runs[0]
    images = len(inference.plain_logits)
    online_s = [s for run in inference.runs for s in run.online_s]
    return {
        "record": "inference",
        "name": name,
        "images": images,
        "batch": first.output.shape[0],
        "plain_accuracy": inference.plain_accuracy,
        "secure_accuracy": inference.secure_accuracy,
        "agreement": inference.agreement,
        "max_logit_difference": inference.max_logit_difference,
        "min_plain_margin": inference.min_plain_margin,
        "seconds": {
            "online": spread(online_s),
            "dealer": spread([s for run in inference.runs for s in run.dealer_s]),
            "total": spread([s for run in inference.runs for s in run.total_s]),
            "setup_s": first.setup_s,
        },
        "seconds_per_image": sum(online_s) / images,
        "network": "loopback",
        "mode": "measured",
        **traffic_json(first),
        "scheme": first.scheme.to_json(),
        "roles": first.roles.to_json(),
        "health": health_json(inference),
        "peak_bytes": max(run.peak_bytes for run in inference.runs),
        "machine": this_machine(),
    }


def health_json(inference: Inference) -> dict[str, Any]:
    """`health` of the inference, with `functions_outside_their_domain`, an older name of `outside`, beside it."""
    return {**inference.health, "functions_outside_their_domain": inference.health["outside"]}
