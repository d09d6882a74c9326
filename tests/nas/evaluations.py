"""Evaluations that tests hand to workers, importable there without the test's own imports."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


def drawn(candidate: int, scale: float = 1.0) -> dict[str, Any]:
    """What the generators give this candidate, and the threads that it has."""
    numbers = [random.random(), float(np.random.rand()), float(torch.rand(()))]
    return {"candidate": candidate, "numbers": [scale * n for n in numbers], "threads": torch.get_num_threads()}


def weighed(candidate: int, weights: Mapping[str, Tensor]) -> float:
    """The candidate times the weight `w`."""
    return float(weights["w"].sum()) * candidate


def spoilt(candidate: int, weights: Mapping[str, Tensor]) -> float:
    """Candidate 1 writes into the weights."""
    if candidate == 1:
        weights["w"].add_(1)
    return weighed(candidate, weights)


def odd_fails(candidate: int) -> int:
    """The candidate, or ValueError for an odd one."""
    if candidate % 2:
        raise ValueError(f"{candidate} is odd")
    return candidate


def noted(candidate: int, folder: str, wait_s: float = 0.0) -> int:
    """The candidate; each evaluation leaves its process in FOLDER/CANDIDATE."""
    with (Path(folder) / str(candidate)).open("a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(wait_s)
    return candidate


def dies(candidate: int, folder: str, times: int) -> int:
    """The candidate, but candidate 1 is killed in its first evaluations."""
    noted(candidate, folder)
    if candidate == 1 and len((Path(folder) / "1").read_text().split()) <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return candidate


def not_finite(candidate: int) -> float:
    """What no record can hold."""
    return float("nan")
