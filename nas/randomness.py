"""Randomness that depends on where a run is, never on how it got there.

Every batch is drawn and trained on from generators seeded with its own position, so no generator state is ever saved:
a run that was killed goes on from any batch as if nothing had happened.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class Position:
    """One batch of a run: the same on all its processes."""

    seed: int
    epoch: int
    batch: int

    def generator(self) -> torch.Generator:
        """A CPU generator for draws that all processes must make alike, such as the architecture of a supernet."""
        return torch.Generator().manual_seed(_state(self.seed, self.epoch, self.batch))


def seed_generators(*position: int) -> None:
    """Seed the global generators of Python, numpy and torch (CPU and current GPU) from a position of numbers >= 0."""
    state = _state(*position)
    random.seed(state)
    np.random.seed(state)
    torch.default_generator.manual_seed(state)  # torch.manual_seed formats a stack trace where no GPU is in use
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed(state)


@contextmanager
def kept_generators() -> Iterator[None]:
    """Leaves the global generators, inside, to whoever runs there; restores them after."""
    python, numbers, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    gpu = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)
        torch.set_rng_state(cpu)
        if gpu is not None:
            torch.cuda.set_rng_state(gpu)


def _state(*position: int) -> int:
    return int(np.random.SeedSequence(position).generate_state(1)[0])
