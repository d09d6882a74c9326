"""The ledger's seconds on a clock that is set by hand."""

from __future__ import annotations

import time

import pytest

from mpc.ledger import Ledger
from mpc.traffic import Message


class Clock:
    """Stands still but for `pass_s`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 100.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now_s)

    def pass_s(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that the ledger reads."""
    return Clock(monkeypatch)


def test_spans_leave_out_the_dealer_s_work_and_meetings(clock: Clock) -> None:
    ledger = Ledger(0, 2)
    ledger.start()
    clock.pass_s(1)
    with ledger.operation("relu", "act"):
        clock.pass_s(2)
        with ledger.dealing():
            clock.pass_s(16)
        clock.pass_s(4)
    with ledger.apart():
        clock.pass_s(32)
    clock.pass_s(0.5)
    with ledger.operation("linear", "head"):
        clock.pass_s(8)
    clock.pass_s(0.25)
    log = ledger.stop()
    relu, linear = log.spans
    assert (relu.op, relu.site, linear.op, linear.site) == ("relu", "act", "linear", "head")
    assert (relu.start_s, relu.end_s, relu.online_s, relu.until_s) == (101, 123, 6, 7)
    assert (linear.start_s, linear.end_s, linear.online_s, linear.until_s) == (155.5, 163.5, 8, 15.5)
    assert (log.start_s, log.online_s, log.dealer_s) == (100, 15.75, 16)
    assert log.op_s == {"relu": 6, "linear": 8}


def test_messages_say_when_they_began_and_what_was_done_before(clock: Clock) -> None:
    ledger = Ledger(1, 2)
    ledger.start()
    with ledger.operation("relu", "act"):
        clock.pass_s(1)
        with ledger.dealing(), ledger.message("broadcast"):
            ledger.payload(24)
            clock.pass_s(16)
        clock.pass_s(2)
        with ledger.message("all_reduce"):
            ledger.payload(8)
            ledger.payload(16)
            clock.pass_s(4)
    log = ledger.stop()
    of_dealer, online = log.entries
    assert (of_dealer.of_dealer, of_dealer.compute_s, of_dealer.wait_s) == (True, 0.0, 16)
    assert (online.event, online.compute_s, online.wait_s, online.start_s) == (
        Message("all_reduce", (8, 16)),
        3,
        4,
        119,
    )
    assert log.messages == (online,) and log.online_s == 7


def test_nothing_is_kept_of_the_run_before_or_of_what_was_not_recorded(clock: Clock) -> None:
    ledger = Ledger(0, 2)
    for seconds in (3, 5):
        with ledger.operation("negate", ""), ledger.message("all_reduce"):
            clock.pass_s(64)
        ledger.start()
        with ledger.operation("relu", ""), ledger.dealing():
            clock.pass_s(seconds)
        log = ledger.stop()
        assert [(span.op, span.online_s) for span in log.spans] == [("relu", 0)]
        assert (log.entries, log.online_s, log.dealer_s) == ((), 0, seconds)


def test_a_tensor_that_no_message_holds_is_an_error(clock: Clock) -> None:
    ledger = Ledger(0, 2)
    ledger.payload(8)  # not recording: nobody's
    ledger.start()
    clock.pass_s(1)
    with pytest.raises(RuntimeError, match="8 bytes were sent outside"):
        ledger.payload(8)
