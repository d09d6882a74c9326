"""The law of a link by cases that can be computed by hand."""

from __future__ import annotations

import math

import pytest

from mpc.congestion import LINUX, SEGMENT_BYTES, Flow, Tcp, ramp_s
from mpc.network import LOOPBACK, NetworkProfile, network

# A segment of 1,000 bytes takes 1 ms; a round trip is 40 ms: 40 segments fill the link.
LINK = NetworkProfile("by hand", 0.020, 1e6, "round figures")
TCP = Tcp(initial_window_bytes=10_000, segment_bytes=1_000, payload_share=1.0)
TIMEOUT_S = 0.240  # a round trip and 200 ms


def fresh() -> Flow:
    return Flow(LINK, TCP)


def test_within_the_window_a_message_takes_its_bytes_and_the_delay() -> None:
    assert fresh().due_s(5.0, 10_000) == pytest.approx(5.0 + 0.010 + 0.020)
    assert fresh().due_s(5.0, 0) == pytest.approx(5.020)


def test_messages_queue_behind_one_another() -> None:
    flow = fresh()
    assert flow.due_s(0.0, 4_000) == pytest.approx(0.024)
    assert flow.due_s(0.001, 3_000) == pytest.approx(0.027)
    assert flow.due_s(0.5, 1_000) == pytest.approx(0.521)


def test_beyond_the_window_each_round_trip_doubles_what_is_sent() -> None:
    # 10 segments at 0; 20 at 42 ms, when two are acknowledged; 40 at 84 ms, and from then on nearly without a pause.
    assert fresh().due_s(0.0, 11_000) == pytest.approx(0.042 + 0.001 + 0.020)
    assert fresh().due_s(0.0, 30_000) == pytest.approx(0.042 + 0.020 + 0.020)
    assert fresh().due_s(0.0, 70_000) == pytest.approx(0.084 + 0.040 + 0.020)
    # 40 segments take 40 ms, two are acknowledged after 42: the pause is 2 ms, and the last.
    assert fresh().due_s(0.0, 150_000) == pytest.approx(0.126 + 0.080 + 0.020)
    assert fresh().due_s(0.0, 310_000) == pytest.approx(0.126 + 0.240 + 0.020)


def test_acknowledgements_queue_behind_what_comes_the_other_way() -> None:
    # 40 segments leave from 84 to 124 ms at both ends. At 106 ms two have arrived; what answers them leaves at 124 ms.
    assert fresh().due_s(0.0, 150_000, 150_000) == pytest.approx(0.144 + 0.080 + 0.020)
    assert fresh().due_s(0.0, 30_000, 30_000) == fresh().due_s(0.0, 30_000)


def test_a_window_counts_whole_segments() -> None:
    flow = fresh()
    assert flow.due_s(0.0, 1) == pytest.approx(0.020001)
    # Nine segments are left of ten; the last waits for the acknowledgement of the first message.
    assert flow.due_s(0.001, 10_000) == pytest.approx(0.040001 + 0.001 + 0.020)


def test_a_lone_segment_is_acknowledged_with_the_first_of_the_answer() -> None:
    flow = fresh()
    flow.due_s(0.0, 1, 1)
    assert flow.due_s(0.030, 10_000, 10_000) == pytest.approx(0.030 + 0.001 + 0.020 + 0.001 + 0.020)


def test_a_window_stays_wide_while_it_is_used_and_is_halved_by_each_timeout_of_idling() -> None:
    flow = fresh()
    flow.due_s(0.0, 310_000)
    for number in range(100):
        flow.due_s(0.5 + 0.05 * number, 1_000)
    assert flow.window_bytes == 320_000
    flow.due_s(0.5 + 99 * 0.05 + 2.5 * TIMEOUT_S, 1_000)
    assert flow.window_bytes == pytest.approx(320_000 / 4)
    flow.due_s(100.0, 1_000)
    assert flow.window_bytes == TCP.initial_window_bytes


def test_all_of_a_message_that_the_window_held_back_widens_it() -> None:
    flow = fresh()
    flow.due_s(0.0, 30_000)  # two flights, of 10 and of 20 segments
    flow.due_s(0.2, 1)
    assert flow.window_bytes == 40_000


def test_after_round_trips_that_queued_idling_lasts_longer_before_it_counts() -> None:
    def after_half_a_second(smalls: int) -> float:
        flow, last_s = fresh(), 0.6
        flow.due_s(0.0, 310_000)
        flow.due_s(last_s, 310_000)  # the last of it is acknowledged 200 ms after it was sent
        for number in range(smalls):
            last_s = 0.9 + 0.05 * number
            flow.due_s(last_s, 1_000)
        flow.due_s(last_s + 0.5, 1_000)
        return flow.window_bytes

    assert after_half_a_second(100) == pytest.approx(after_half_a_second(0) / 4)


def test_what_a_message_adds_to_a_window_is_bounded_by_what_was_on_its_way() -> None:
    flow = fresh()
    for number in range(50):
        flow.due_s(0.1 * number, 3_000)
    assert flow.window_bytes == TCP.initial_window_bytes
    flow.due_s(6.0, 8_000)
    flow.due_s(6.1, 1_000)
    assert flow.window_bytes == 16_000


def test_loopback_costs_nothing_and_no_delay_means_no_ramp() -> None:
    flow = Flow(LOOPBACK)
    assert [flow.due_s(now_s, 10**9, 10**9) for now_s in (0.0, 1.0)] == [0.0, 1.0]
    without_delay = NetworkProfile("cable", 0.0, 1e6, "")
    assert Flow(without_delay, TCP).due_s(0.0, 10**6) == pytest.approx(1.0)
    without_rate = NetworkProfile("far", 0.02, math.inf, "")
    assert Flow(without_rate, TCP).due_s(0.0, 70_000) == pytest.approx(0.100)


def test_the_ramp_is_what_slow_start_adds() -> None:
    assert ramp_s(LINK, 10_000, TCP) == 0
    assert ramp_s(LINK, 30_000, TCP) == pytest.approx(0.032)
    assert ramp_s(LOOPBACK, 10**9) == 0
    wan = network("cheetah-wan")
    sizes = [8, 88_000, 10 * SEGMENT_BYTES, 128_000, 512_000, 4_000_000]
    ramps = [ramp_s(wan, size) for size in sizes]
    assert ramps == sorted(ramps) and ramps[2] == pytest.approx(0) and ramps[3] > 0.9 * 0.040
    assert max(ramp_s(network("bolt-lan"), size) for size in (88_000, 10 * LINUX.segment_bytes)) == pytest.approx(0)


@pytest.mark.parametrize(
    "wrong", [{"initial_window_bytes": 0}, {"segment_bytes": -1}, {"growth": 0.9}, {"payload_share": 2}]
)
def test_values_that_no_connection_has_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Tcp(**wrong)
