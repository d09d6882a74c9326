"""The machine that a figure was measured on."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mpc.awake import can_keep_awake


@dataclass(frozen=True, slots=True)
class Machine:
    """What decides how fast this process computes. `label` tells machines apart without naming a host.

    `kept_awake` says whether cores are kept from sleeping while parties run (`mpc.awake`).
    """

    cpu: str
    cores: int
    memory_gib: int
    torch_threads: int
    gpu: str | None
    os: str
    python: str
    kept_awake: bool

    @property
    def label(self) -> str:
        """One line for tables and figures; equal for equal hardware."""
        accelerator = f", {self.gpu}" if self.gpu else ""
        return f"{self.cpu}, {self.cores} cores, {self.memory_gib} GiB{accelerator}"

    def to_json(self) -> dict[str, Any]:
        """Plain values for a record, label first."""
        return {"label": self.label, **asdict(self)}


def this_machine() -> Machine:
    """The machine and thread setting of the calling process; `cores` are those that it may use."""
    import torch

    return Machine(
        cpu=_cpu_model(),
        cores=usable_cores(),
        memory_gib=round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
        torch_threads=torch.get_num_threads(),
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        os=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        kept_awake=can_keep_awake(),
    )


def usable_cores() -> int:
    """Cores that the operating system lets this process run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
