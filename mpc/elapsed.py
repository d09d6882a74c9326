"""Seconds of a run that several parties made together, from their logs."""

from __future__ import annotations

from collections.abc import Sequence

from mpc.ledger import MessageLog


def together_s(logs: Sequence[MessageLog]) -> float:
    """Online seconds from when the last party was ready, dealing done, to when the last party has its result.

    Parties that meet over a long link leave up to a delay apart. The one that leaves first would count that as online:
    seconds that say how the meeting went, not how long the run takes.
    """
    if not all(log.messages for log in logs):
        return max(log.online_s for log in logs)
    ready_s = [log.messages[0].start_s - log.messages[0].compute_s for log in logs]
    return max(log.online_s - (max(ready_s) - ready) for log, ready in zip(logs, ready_s, strict=True))
