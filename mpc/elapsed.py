"""Seconds of a run that several parties made together, from their logs."""

from __future__ import annotations

from collections.abc import Sequence

from mpc.ledger import MessageLog


def together_s(logs: Sequence[MessageLog]) -> float:
    """Online seconds from when the last party was ready, dealing done, to when the last party has its result.

    Parties that meet over a long link leave up to a delay apart. The one that leaves first would count that as online:
    seconds that say how the meeting went, not how long the run takes.
    """
    return max(log.online_s - early for log, early in zip(logs, early_s(logs), strict=True))


def early_s(logs: Sequence[MessageLog]) -> list[float]:
    """How long each party was ready before the last one; nothing where a party sends no message to tell by."""
    if not all(log.messages for log in logs):
        return [0.0] * len(logs)
    ready_s = [log.messages[0].start_s - log.messages[0].compute_s for log in logs]
    return [max(ready_s) - ready for ready in ready_s]
