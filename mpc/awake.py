"""Cores that stay awake while parties run: what it costs to wake one differs from minute to minute.

A core of a virtual machine that sleeps leaves the host's processor, and where it resumes is the host's choice: both
parties were seen to take 1.6 times as long for minutes, as on the two halves of one core, and less so with cores awake
(`docs/measured.md`). Linux keeps them awake for whoever holds /dev/cpu_dma_latency open (PM QoS; cyclictest of rt-tests
does the same); it takes root, or write access to that file.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

_REQUEST = Path("/dev/cpu_dma_latency")
_DRIVER = Path("/sys/devices/system/cpu/cpuidle/current_driver")
_GUEST_DRIVER = "haltpoll"
_LIGHT_SLEEP_US = 2  # of a core that is not a guest's: its first sleeping state, which leaves others their boost


def can_keep_awake() -> bool:
    """Whether this user may keep cores awake, on a machine whose cores obey."""
    request = _opened()
    if request is not None:
        os.close(request)
    return request is not None


def keep_awake() -> None:
    """Keep all cores awake until this process ends, however it does; nothing happens where it may not."""
    request = _opened()
    if request is not None:  # it holds for as long as it is open: it is never closed
        os.write(request, struct.pack("=i", 0 if _driver() == _GUEST_DRIVER else _LIGHT_SLEEP_US))


def _opened() -> int | None:
    """The file to ask by; a container may show it and yet refuse to open it."""
    if _driver() in ("", "none"):
        return None
    try:
        return os.open(_REQUEST, os.O_WRONLY)
    except OSError:
        return None


def _driver() -> str:
    try:
        return _DRIVER.read_text().strip()
    except OSError:
        return ""
