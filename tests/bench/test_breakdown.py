from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bench.attention import AttentionShape, attention_layer, unit_input
from bench.breakdown import breakdown, link_bytes_per_s, measure_breakdown
from bench.running import SchemeParties, run_in_turn
from bench.secure_run import SecureRun
from mpc.ledger import LogEntry, MessageLog
from mpc.network import LOOPBACK, network
from mpc.parties import Parties
from mpc.reading import shape_reading
from mpc.scheme import Roles, Scheme
from mpc.traffic import Message, Traffic

TUNED = Scheme("tuned", transport="direct")


def _run(own_s: float, waits_s: tuple[float, ...]) -> SecureRun:
    """A run of two megabytes in as many messages as there are waits."""
    size = 2_000_000 // len(waits_s)
    entries = tuple(LogEntry("op", "", Message("open", (size,)), own_s / len(waits_s), wait_s) for wait_s in waits_s)
    log = MessageLog(0, 2, entries, own_s + sum(waits_s), 0.0, (), "direct")
    trace = shape_reading(attention_layer("scaling", AttentionShape(5, 4, 1)), (1, 5, 4))
    return SecureRun(TUNED, Roles(), trace, Traffic.zero(2), (0.0,), (0.0,), (0.0,), torch.zeros(1), (log,), log, 0)


def test_parts_add_up_and_python_is_the_intercept() -> None:
    runs = {1: _run(0.007, (0.05, 0.07)), 2: _run(0.009, (0.1,)), 4: _run(0.013, (0.1,))}
    parts = breakdown(runs, network("400mbit/40ms"), 50e6)
    assert parts.online_s == pytest.approx(0.127)
    assert parts.python_s == pytest.approx(0.005)
    assert parts.arithmetic_s == pytest.approx(0.002)
    assert parts.transfer_s == pytest.approx(0.04)
    assert parts.waiting_s == pytest.approx(0.08)
    assert parts.floor_s == pytest.approx(0.04 + 2 * 0.02)
    assert parts.online_s == pytest.approx(parts.arithmetic_s + parts.python_s + parts.transfer_s + parts.waiting_s)


def test_a_breakdown_needs_more_than_one_batch() -> None:
    with pytest.raises(ValueError, match="batch 1 and at least one more"):
        breakdown({1: _run(0.01, (0.1,))}, LOOPBACK, 1e9)


@pytest.mark.parties
def test_a_measured_breakdown_adds_up(tuned_parties: Parties) -> None:
    assert link_bytes_per_s(tuned_parties, 3) > 1e7
    layer = attention_layer("relu_softmax", AttentionShape(17, 32, 2))
    with SchemeParties([TUNED, replace(TUNED, truncation="dealer")]) as running:
        inputs = unit_input(AttentionShape(17, 32, 2, 4))
        for record in measure_breakdown(running, "a layer", layer, inputs, {}, repeats=2):
            parts = record["seconds"]
            whole = parts["arithmetic_s"] + parts["python_s"] + parts["transfer_s"] + parts["waiting_s"]
            assert parts["online_s"] == pytest.approx(whole)
            assert min(parts.values()) >= 0
        assert len(run_in_turn(running, layer, inputs[:1], [TUNED], repeats=2)[TUNED].online_s) == 2
