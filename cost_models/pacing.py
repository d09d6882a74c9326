"""Operations as a machine of one pace would have run them: seconds in sweeps, evened out by their neighbours in time.

A shared machine is slow in spells, of seconds, in which everything takes up to 1.4 times as long (`docs/measured.md`).
What ran just before and after an operation met the same spell. So how much longer than usual those took is the pace of
that moment, and dividing by it leaves what the operation itself takes; the operation has no part in its own pace.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from cost_models.features import Vector

_NEIGHBOURS = 4  # cases before, and as many after
_ROUNDS = 3  # what is usual is known better once paces are


def at_even_pace(seconds: Vector, cases: Sequence[int], orders: Sequence[Sequence[int]]) -> Vector:
    """`seconds` (operations x sweeps) as they would have been at the pace that is usual over all sweeps.

    `cases` says which case each operation belongs to, `orders` in which order the cases of each sweep ran. A case that
    has no neighbours stays as it was. Raises ValueError where sizes differ.
    """
    if seconds.shape != (len(cases), len(orders)):
        raise ValueError(f"seconds of {len(cases)} operations in {len(orders)} sweeps expected, got {seconds.shape}")
    logs, ran = np.log(seconds), np.asarray(orders)
    numbers = np.asarray(cases)
    members = [np.flatnonzero(numbers == case) for case in range(ran.shape[1])]
    even = logs
    for _ in range(_ROUNDS):
        usual = np.median(even, axis=1, keepdims=True)
        slower = np.array([np.mean((logs - usual)[rows], axis=0) for rows in members])  # of every case in every sweep
        even = logs - _pace_around(slower, ran)[numbers]
    return cast(Vector, np.exp(even))


def _pace_around(slower: Vector, orders: NDArray[np.int64]) -> Vector:
    """The median of `slower` (cases x sweeps) over the neighbours in time of each case, without itself."""
    paces = np.zeros_like(slower)
    if len(slower) < 2:
        return paces
    for sweep, order in enumerate(orders):
        in_time = slower[order, sweep]
        padded = np.pad(in_time, _NEIGHBOURS, constant_values=np.nan)
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * _NEIGHBOURS + 1).copy()
        windows[:, _NEIGHBOURS] = np.nan
        paces[order, sweep] = np.nanmedian(windows, axis=1)
    return paces
