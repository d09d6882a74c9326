from __future__ import annotations

import pytest

from cost_models.replay import replay
from mpc.ledger import LogEntry, MessageLog
from mpc.network import LOOPBACK, NetworkProfile
from mpc.traffic import Correlation, Message

LINK = NetworkProfile("link", one_way_delay_s=0.01, bytes_per_s=1000.0, source="test")
ENTRIES = (
    LogEntry("linear", "head", Message("all_reduce", (80, 40)), compute_s=0.5, wait_s=0.25),
    LogEntry("relu", "act", Correlation("and", 80), 0.0, 0.0),
    LogEntry("relu", "act", Message("all_reduce", (8,)), compute_s=1.0, wait_s=0.5),
    LogEntry("linear", "head", Message("all_reduce", (80,)), compute_s=0.125, wait_s=0.125),
)
LOG = MessageLog(party=0, parties=2, entries=ENTRIES, online_s=3.0, dealer_s=9.0)


def test_three_messages_by_hand() -> None:
    replayed = replay(LOG, LINK)
    # Hops: 4 + 2 (one element) + 4; bytes: 120 + 8 + 80; half a second passed after the last message.
    assert replayed.online.delay_s == pytest.approx(10 * 0.01)
    assert replayed.online.transfer_s == pytest.approx(208 / 1000)
    assert replayed.online.loopback_s == 3.0
    assert replayed.online.total_s == pytest.approx(3.0 + 0.1 + 0.208)


def test_parts_by_operation_and_module_by_hand() -> None:
    replayed = replay(LOG, LINK)
    assert replayed.by_op["linear"].total_s == pytest.approx(1.0 + 8 * 0.01 + 0.2)
    assert replayed.by_op["relu"].total_s == pytest.approx(1.5 + 2 * 0.01 + 0.008)
    assert replayed.by_op[""].total_s == pytest.approx(0.5)
    assert replayed.by_module["head"] == replayed.by_op["linear"]
    for parts in (replayed.by_op, replayed.by_module):
        assert sum(part.total_s for part in parts.values()) == pytest.approx(replayed.online.total_s)


def test_loopback_gives_the_measured_seconds() -> None:
    assert replay(LOG, LOOPBACK).online.total_s == LOG.online_s


def test_at_three_parties_only_the_root_waits_for_a_gather() -> None:
    entries = (LogEntry("mean", "", Message("gather", (1000,), root=0), 0.0, 0.0),)
    root, other = (replay(MessageLog(party, 3, entries, 1.0, 0.0), LINK).online for party in (0, 1))
    assert (root.delay_s, root.transfer_s) == (0.02, 0.0)
    assert (other.delay_s, other.transfer_s) == (0.0, 1.0)


def test_a_log_without_messages_is_refused() -> None:
    with pytest.raises(ValueError, match="no online message"):
        replay(MessageLog(0, 2, (), 1.0, 0.0), LINK)


def test_record_says_that_it_was_replayed() -> None:
    record = replay(LOG, LINK).to_json()
    assert (record["mode"], record["network"]) == ("replayed", "link")
    assert record["online"]["total_s"] == pytest.approx(3.308)
