"""What else the machine did while something was measured: seconds that another program took are in every result."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

_BUSY = (0, 1, 2, 5, 6, 7)  # user, nice, system, irq, softirq, steal of /proc/stat; idle and iowait are not


class Disturbance:
    """The share of the machine's CPU time that went to others than this process and `process_ids`, since it was made.

    What these have started is theirs, once it has ended. Time that a hypervisor withheld is the others'. Linux only:
    elsewhere `share` is None.
    """

    def __init__(self, process_ids: Sequence[int]) -> None:
        self._own_ids = (os.getpid(), *process_ids)
        self._known = Path("/proc/stat").exists()
        self._before = self._read() if self._known else (0.0, 0.0, 0.0)

    def share(self) -> float | None:
        """From 0, nobody else did anything, to 1; None where that cannot be known."""
        if not self._known:
            return None
        wall_s, busy_s, own_s = (now - before for now, before in zip(self._read(), self._before, strict=True))
        # Ticks are coarse: over a few milliseconds, one of them could be more than all there was.
        return min(1.0, max(0.0, busy_s - own_s) / (wall_s * (os.cpu_count() or 1))) if wall_s > 0 else 0.0

    def _read(self) -> tuple[float, float, float]:
        ticks_per_s = os.sysconf("SC_CLK_TCK")
        fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
        busy = sum(fields[place] for place in _BUSY)
        own = sum(_ticks(process_id) for process_id in self._own_ids)
        return time.monotonic(), busy / ticks_per_s, own / ticks_per_s


def _ticks(process_id: int) -> int:
    """CPU time of a process, all its threads, and its children that it has waited for; 0 where it is gone."""
    try:
        after_name = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return sum(int(ticks) for ticks in after_name[11:15])
