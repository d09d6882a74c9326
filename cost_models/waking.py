"""What it costs a process to go on after it slept for a message: cold caches, and a core at rest."""

from __future__ import annotations

# After so long a sleep, half of what resuming can cost: measured on two cores of an AMD EPYC, direct links with delays
# of 0.2 to 30 ms.
HALF_COLD_S = 3e-3


def resume_s(wake_s: float, asleep_s: float) -> float:
    """What local work after a sleep takes longer, at most `wake_s`."""
    return wake_s * asleep_s / (asleep_s + HALF_COLD_S)
