"""Replay on timelines that are worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cost_models.replay import Replay, fit_wake, replay
from cost_models.waking import HALF_COLD_S
from mpc.congestion import SEGMENT_BYTES, Flow, Tcp
from mpc.elapsed import together_s
from mpc.ledger import LogEntry, MessageLog, Span
from mpc.network import LOOPBACK, NetworkProfile
from mpc.scheme import Transport
from mpc.traffic import Correlation, Message
from mpc.transport import HEADER_BYTES

LINK = NetworkProfile("link", one_way_delay_s=0.5, bytes_per_s=1000.0, source="test")
WIDE = Tcp(initial_window_bytes=1e9, payload_share=1.0)  # no slow start: what is carried is bytes / bandwidth
HEADER_S = HEADER_BYTES / 1000


def entry(op: str, size: int, compute_s: float, start_s: float, end_s: float, collective: str = "open") -> LogEntry:
    return LogEntry(op, f"{op}.site", Message(collective, (size,)), compute_s, end_s - start_s, False, start_s)


# Two messages over direct links. Party 1 comes to the first a second later, to the second 0.25 s earlier; on loopback
# both leave the first at 2.25 and the second at 4.5. Party 0 works for half a second more, party 1 for a quarter.
FIRST = MessageLog(
    party=0,
    parties=2,
    entries=(
        entry("linear", 1000, 1.0, 1.0, 2.25),
        LogEntry("relu", "relu.site", Correlation("and", 80), 0.0, 0.0),
        entry("relu", 4000, 2.0, 4.25, 4.5),
    ),
    online_s=5.0,
    dealer_s=0.0,
    spans=(Span("linear", "", 0.5, 2.5, 2.0, 2.5), Span("relu", "", 3.0, 4.75, 1.75, 4.75)),
    transport="direct",
)
SECOND = replace(
    FIRST,
    party=1,
    entries=(entry("linear", 1000, 2.0, 2.0, 2.25), entry("relu", 4000, 1.75, 4.0, 4.5)),
    spans=(),
    online_s=4.75,
)
LOGS = (FIRST, SECOND)


def replayed(link: NetworkProfile = LINK, wake_s: float = 0.0) -> Replay:
    return replay(LOGS, link, WIDE, wake_s)


def test_a_message_ends_when_the_later_party_s_data_have_come() -> None:
    one, two = (log.messages for log in replayed().logs)
    # Party 0 waits from 1 s for what party 1 sends at 2 s; party 1 has what party 0 sent at 1 s. Handling, a quarter of
    # a second on loopback, is over before the last byte has come.
    first_s = 2 + 1 + HEADER_S + 0.5
    assert one[0].start_s == 1 and one[0].start_s + one[0].wait_s == pytest.approx(first_s)
    assert two[0].start_s == 2 and two[0].start_s + two[0].wait_s == pytest.approx(1 + 1 + HEADER_S + 0.5)
    # From there each works as long as it did, 2 s and 1.75 s, and sends 4,000 bytes.
    begun_s = first_s + 2, 2.5 + HEADER_S + 1.75
    assert (one[1].start_s, two[1].start_s) == pytest.approx(begun_s)
    carried_s = 4 + HEADER_S + 0.5
    assert one[1].start_s + one[1].wait_s == pytest.approx(max(begun_s[0] + 0.25, begun_s[1] + carried_s))
    assert two[1].start_s + two[1].wait_s == pytest.approx(begun_s[0] + carried_s)


def test_the_slowest_party_s_seconds_by_where_they_come_from() -> None:
    result = replayed()
    # Party 1 is the slower one: 2.524 + 1.75, then until party 0's second message has come, 5.524 + 4.524; + 0.25.
    assert result.log.party == 1
    assert result.online.total_s == pytest.approx(5.5 + HEADER_S + 4.5 + HEADER_S + 0.25)
    assert result.log.online_s == pytest.approx(result.online.total_s)
    # The first message would have ended at 2.25, so the link added 0.274; the second 0.25 after both were there.
    first, second = 0.25 + HEADER_S, 4.25 + HEADER_S
    assert result.by_op["linear"].delay_s + result.by_op["linear"].transfer_s == pytest.approx(first)
    assert (result.by_op["relu"].delay_s, result.by_op["relu"].transfer_s) == pytest.approx((0.5, second - 0.5))
    assert result.by_module["relu.site"] == result.by_op["relu"]
    assert result.by_op[""].total_s == pytest.approx(0.25)
    for parts in (result.by_op, result.by_module):
        assert sum(part.total_s for part in parts.values()) == pytest.approx(result.online.total_s)


def test_spans_move_with_their_messages() -> None:
    (linear, relu) = replayed().logs[0].spans
    later_s = 3.5 + HEADER_S - 2.25  # how much later party 0 leaves the first message
    assert (linear.start_s, linear.end_s, linear.until_s) == pytest.approx((0.5, 2.5 + later_s, 2.5 + later_s))
    assert linear.online_s == pytest.approx(2.0 + later_s)
    assert relu.start_s == pytest.approx(3.0 + later_s)


def test_loopback_gives_the_measured_logs() -> None:
    result = replay(LOGS, LOOPBACK, wake_s=7.0)
    assert result.online.total_s == FIRST.online_s and result.logs == LOGS
    assert (result.online.delay_s, result.online.transfer_s) == (0.0, 0.0)


def test_the_dealer_s_work_takes_time_but_no_online_seconds() -> None:
    def later(log: MessageLog) -> MessageLog:
        entries = tuple(
            replace(e, start_s=e.start_s + 100) if isinstance(e.event, Message) and e.op == "relu" else e
            for e in log.entries
        )
        return replace(log, entries=entries, dealer_s=100.0)

    assert replay([later(log) for log in LOGS], LINK, WIDE).online.total_s == pytest.approx(replayed().online.total_s)


def test_resuming_costs_what_the_link_lets_a_party_sleep_longer() -> None:
    entries = (entry("relu", 8, 1.0, 1.0, 1.0 + HALF_COLD_S),)
    logs = [MessageLog(party, 2, entries, 1.0 + HALF_COLD_S, 0.0, transport="direct") for party in (0, 1)]
    plain, slower = replay(logs, LINK, WIDE), replay(logs, LINK, WIDE, wake_s=0.125)
    # Both slept so long on loopback that half of it was paid there; a delay, 8 bytes and a header on the link.
    asleep_s = 0.5 + 0.008 + HEADER_S
    woken_s = 0.125 * (asleep_s / (asleep_s + HALF_COLD_S) - 0.5)
    assert slower.online.total_s - plain.online.total_s == pytest.approx(woken_s)
    assert slower.online.compute_s - plain.online.compute_s == pytest.approx(woken_s)
    assert replay(logs, LOOPBACK, WIDE, wake_s=0.125).online.total_s == pytest.approx(1.0 + HALF_COLD_S)
    # Two pairs of three were measured with this wake-up: the third does not move the median.
    pairs = [(logs, LINK, together_s(slower.logs))] * 2 + [(logs, LINK, 99.0)]
    assert fit_wake(pairs, WIDE) == pytest.approx(0.125)
    assert fit_wake([(logs, LINK, 0.5)], WIDE) == 0.0
    with pytest.raises(ValueError, match="nothing to fit"):
        fit_wake([])


def test_a_connection_is_warm_and_its_window_limits_a_large_message() -> None:
    narrow = Tcp(initial_window_bytes=100, payload_share=1.0)
    slow, wide = replay(LOGS, LINK, narrow).online, replayed().online
    fresh = Tcp(initial_window_bytes=100, payload_share=1.0, growth=1.0)
    assert wide.total_s < slow.total_s < replay(LOGS, LINK, fresh).online.total_s


def test_acknowledgements_queue_behind_what_the_other_party_sends() -> None:
    logs = [
        MessageLog(
            party, 2, (entry("linear", 1_000_000, 1.0, 1.0, 1.0),), online_s=1.0, dealer_s=0.0, transport="direct"
        )
        for party in (0, 1)
    ]
    far = NetworkProfile("far", 0.02, 5e6, "test")
    warmed, one_way = Flow(far), Flow(far)
    sizes = HEADER_BYTES + 1_000_000, 1_000_000
    ended_s = warmed.due_s(1.0, *sizes)
    assert ended_s > one_way.due_s(1.0, HEADER_BYTES + 1_000_000) + 0.01
    expected_s = warmed.due_s(1.0 + ended_s, *sizes) - ended_s
    assert replay(logs, far).online.total_s == pytest.approx(expected_s)


def test_gloo_crosses_the_link_once_for_every_hop() -> None:
    logs = [
        MessageLog(party, 2, (entry("mean", 16, 1.0, 1.0, 1.25, "all_reduce"),), online_s=1.25, dealer_s=0.0)
        for party in (0, 1)
    ]
    # Handling took 0.25 s: what it takes of the bytes' time on the link overlaps with it, the delays do not.
    assert replay(logs, LINK, WIDE).online.total_s == pytest.approx(1 + 2 * 0.5 + 0.25)
    slow = NetworkProfile("slow", 0.5, 16.0, "test")
    assert replay(logs, slow, WIDE).online.total_s == pytest.approx(1 + 2 * 0.5 + 1)


def test_gloo_sends_half_of_a_tensor_and_then_the_other_half() -> None:
    logs = [
        MessageLog(party, 2, (entry("mean", 32_000, 1.0, 1.0, 1.0, "all_reduce"),), online_s=1.0, dealer_s=0.0)
        for party in (0, 1)
    ]
    far = NetworkProfile("far", 0.5, 1e6, "test")
    # A window of two segments holds a half. One of a single segment holds up each half (the whole: three times).
    for segments, stalls in ((2, 0), (1, 2)):
        tcp = Tcp(initial_window_bytes=segments * SEGMENT_BYTES, growth=1.0, payload_share=1.0)
        assert replay(logs, far, tcp).online.total_s == pytest.approx(1 + 4 * 0.5 + 0.032 + stalls * 1.0, abs=0.02)


# Over direct the others send at 1 s and, the link being free again, at 2.024; over gloo the root asks, which is a delay
# more and not before it has come, a second after it had all of the first.
@pytest.mark.parametrize(
    ("transport", "first_s", "total_s"), [("direct", 1 + HEADER_S + 0.5, 1 + 2 * (1 + HEADER_S) + 0.5), ("gloo", 2, 6)]
)
def test_at_three_parties_only_the_root_waits_for_a_gather(
    transport: Transport, first_s: float, total_s: float
) -> None:
    entries = (entry("mean", 1000, 1.0, 1.0, 1.0, "gather"), entry("mean", 1000, 1.0, 2.0, 2.0, "gather"))
    logs = [MessageLog(party, 3, entries, online_s=2.0, dealer_s=0.0, transport=transport) for party in range(3)]
    result = replay(logs, LINK, WIDE)
    waits_s = [[e.wait_s for e in log.messages] for log in result.logs]
    assert waits_s[1] == waits_s[2] == [0.0, 0.0]
    assert result.log.party == 0
    assert (waits_s[0][0], result.online.total_s) == pytest.approx((first_s, total_s))


def test_together_counts_from_when_the_last_party_was_ready() -> None:
    # Party 0 was ready 1 s after its clock, party 1 at 1.5: of party 0's 5 s half a second was before.
    ready = replace(SECOND.entries[0], compute_s=0.5)
    assert together_s(LOGS) == 5.0
    assert together_s((FIRST, replace(SECOND, entries=(ready, *SECOND.entries[1:])))) == 4.75
    assert together_s((FIRST, replace(SECOND, entries=(ready, *SECOND.entries[1:]), online_s=3.0))) == 3.5


def test_logs_that_are_not_those_of_one_run_are_refused() -> None:
    with pytest.raises(ValueError, match="no online message"):
        replay([MessageLog(0, 2, (), 1.0, 0.0)] * 2, LINK)
    with pytest.raises(ValueError, match="all 2 parties, got those of party 0"):
        replay([FIRST], LINK)
    with pytest.raises(ValueError, match="parties 0 and 1 sent different messages"):
        replay([FIRST, replace(SECOND, entries=SECOND.entries[:1])], LINK)


def test_record_says_that_it_was_replayed() -> None:
    record = replayed().to_json()
    assert (record["mode"], record["network"]) == ("replayed", "link")
    assert record["online"]["total_s"] == pytest.approx(10.25 + 2 * HEADER_S)
