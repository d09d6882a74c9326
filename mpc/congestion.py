"""When a message that TCP carries over a link arrives: rate, delay and the stalls of slow start.

One law for every way of emulating or predicting a link: stamps of the transport, replay of a log, the cost model. It is
a fluid: bytes leave at the rate of the link, and an acknowledgement comes one round trip after the bytes it is for. No
byte is lost, so that slow start never ends; that is also what the shaped link does.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from mpc.network import NetworkProfile

MTU_BYTES = 9000
SEGMENT_BYTES = MTU_BYTES - 20 - 32  # less the headers of IPv4 and of TCP with time stamps
# The rate of a profile is that of frames with their headers; Ethernet's has 14 bytes.
PAYLOAD_SHARE = SEGMENT_BYTES / (MTU_BYTES + 14)


@dataclass(frozen=True, slots=True)
class Tcp:
    """How a sender probes a link. The defaults are Linux with Reno on jumbo frames, as `bench/shaped_link.py` sets up.

    A fresh connection has `initial_window_bytes` on their way at most (10 segments, RFC 6928). An acknowledged byte
    lets `growth` bytes go, where the window held back what was sent, or is less than `growth` times what was on its way
    (tcp_cwnd_validate, tcp_is_cwnd_limited). Without sending for a retransmission timeout, the smoothed round trip +
    `least_timeout_s`, the window is halved, once for each timeout, down to the initial one (tcp_cwnd_restart,
    tcp_slow_start_after_idle = 1). While anything is acknowledged, a window that is not used stays as it is: each
    acknowledgement puts tcp_cwnd_application_limited off (snd_cwnd_stamp). Windows count segments: a message takes up
    whole ones of `segment_bytes`. The first acknowledgement of a burst comes when two segments of it have arrived
    (RFC 1122, 4.2.3.2), or all. Of a frame, `payload_share` is payload.

    Raises ValueError for a window or a share that is not positive, or a growth below 1.
    """

    initial_window_bytes: float = 10 * SEGMENT_BYTES
    growth: float = 2.0
    least_timeout_s: float = 0.2
    segment_bytes: float = SEGMENT_BYTES
    payload_share: float = PAYLOAD_SHARE

    def __post_init__(self) -> None:
        for name in ("initial_window_bytes", "segment_bytes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")
        if not self.growth >= 1:
            raise ValueError(f"growth must be >= 1, got {self.growth}")
        if not 0 < self.payload_share <= 1:
            raise ValueError(f"payload_share must lie in 0..1, got {self.payload_share}")


LINUX = Tcp()


@dataclass(slots=True)
class _Flight:
    """Segments that left without a pause and are not acknowledged.

    Until `answers_until_s` the peer's own bytes are ahead of its acknowledgements.
    """

    sent_s: float
    starts_s: float
    ends_s: float
    segments_bytes: float
    answers_until_s: float


class Flow:
    """One direction of a connection, fresh at first; times are seconds on any one clock, never decreasing."""

    def __init__(self, profile: NetworkProfile, tcp: Tcp = LINUX) -> None:
        self._delay_s = profile.one_way_delay_s
        self._payload_bytes_per_s = profile.bytes_per_s * tcp.payload_share
        self._tcp = tcp
        self._window_bytes = tcp.initial_window_bytes
        self._flights: deque[_Flight] = deque()
        self._in_flight_bytes = 0.0
        self._busy_until_s = -math.inf
        self._sent_at_s = -math.inf  # when bytes were last handed to the link
        self._smoothed_s = 2 * self._delay_s  # the round trip as acknowledgements show it: queueing included
        self._limited = False  # whether the window, and not the application, held back what was sent last
        self._most_bytes = 0.0  # on their way at once, lately
        self._judged_bytes = 0.0  # sent when the two above were last set, and not acknowledged

    @property
    def window_bytes(self) -> float:
        """What may be on its way at once."""
        return self._window_bytes

    def due_s(self, now_s: float, payload_bytes: float, answer_bytes: float = 0) -> float:
        """When the last byte of a message reaches the peer that is handed to the connection at `now_s`.

        `answer_bytes` go the other way at the same time, from a peer whose window is alike: its acknowledgements queue
        behind them.
        """
        self._acknowledge(now_s)
        self._restart_after_idling(now_s)
        left_bytes, answers_left_bytes, sends_s = float(payload_bytes), float(answer_bytes), now_s
        left_segments_bytes = math.ceil(payload_bytes / self._tcp.segment_bytes) * self._tcp.segment_bytes
        waited = False
        while True:
            segments_bytes = min(left_segments_bytes, max(0.0, self._window_bytes - self._in_flight_bytes))
            sent_bytes = min(left_bytes, segments_bytes)
            self._send(sends_s, sent_bytes, segments_bytes, min(sent_bytes, answers_left_bytes))
            left_bytes -= sent_bytes
            left_segments_bytes -= segments_bytes
            answers_left_bytes = max(0.0, answers_left_bytes - sent_bytes)
            # What is sent as acknowledgements come in is held back by the window to its end.
            self._judge(waited or self._in_flight_bytes >= self._window_bytes)
            if left_bytes <= 0 or left_segments_bytes <= 0:
                break
            waited = True
            flight = self._flights.popleft()
            sends_s = max(sends_s, self._first_acknowledged_s(flight, now_s, answer_bytes))
            self._take_acknowledged(flight, flight.segments_bytes, flight.ends_s)
        return self._busy_until_s + self._delay_s

    def _send(self, now_s: float, payload_bytes: float, segments_bytes: float, answer_bytes: float) -> None:
        starts_s = max(now_s, self._busy_until_s)
        self._busy_until_s = starts_s + payload_bytes / self._payload_bytes_per_s
        if payload_bytes > 0:
            self._sent_at_s = now_s
            self._in_flight_bytes += segments_bytes
            answers_until_s = starts_s + answer_bytes / self._payload_bytes_per_s
            self._flights.append(_Flight(now_s, starts_s, self._busy_until_s, segments_bytes, answers_until_s))

    def _first_acknowledged_s(self, flight: _Flight, now_s: float, answer_bytes: float) -> float:
        """When a flight begins to be acknowledged: a lone segment with the answer that leaves at `now_s`."""
        segment_bytes = self._tcp.segment_bytes
        first_s = min(2 * segment_bytes / self._payload_bytes_per_s, flight.ends_s - flight.starts_s)
        leaves_s = max(flight.starts_s + first_s + self._delay_s, flight.answers_until_s)
        if answer_bytes and flight.starts_s < now_s and flight.segments_bytes <= segment_bytes:
            leaves_s = max(leaves_s, now_s + min(segment_bytes, answer_bytes) / self._payload_bytes_per_s)
        return leaves_s + self._delay_s

    def _acknowledge(self, now_s: float) -> None:
        """Take in what was acknowledged until now, of the oldest flight that still is only a part."""
        acknowledged_until_s = now_s - 2 * self._delay_s
        while self._flights and self._flights[0].ends_s <= acknowledged_until_s:
            flight = self._flights.popleft()
            self._take_acknowledged(flight, flight.segments_bytes, flight.ends_s)
        if self._flights and self._flights[0].starts_s < acknowledged_until_s:
            flight = self._flights[0]
            share = (acknowledged_until_s - flight.starts_s) / (flight.ends_s - flight.starts_s)
            acknowledged_bytes = share * flight.segments_bytes
            self._take_acknowledged(flight, acknowledged_bytes, acknowledged_until_s)
            flight.segments_bytes -= acknowledged_bytes
            flight.starts_s = acknowledged_until_s

    def _take_acknowledged(self, flight: _Flight, acknowledged_bytes: float, left_until_s: float) -> None:
        """Acknowledged bytes, which left until then, are no longer on their way, and widen a window that was used."""
        self._in_flight_bytes = max(0.0, self._in_flight_bytes - acknowledged_bytes) if self._flights else 0.0
        self._judged_bytes = self._judged_bytes - acknowledged_bytes if self._flights else 0.0
        widest_bytes = math.inf if self._limited else self._tcp.growth * self._most_bytes
        grown_bytes = min(self._window_bytes + (self._tcp.growth - 1) * acknowledged_bytes, widest_bytes)
        self._window_bytes = max(self._window_bytes, grown_bytes)
        self._smooth(flight, acknowledged_bytes, left_until_s)

    def _smooth(self, flight: _Flight, acknowledged_bytes: float, left_until_s: float) -> None:
        """Every second segment is acknowledged, and each acknowledgement counts for an eighth (RFC 6298)."""
        acknowledgements = max(1.0, acknowledged_bytes / self._tcp.segment_bytes / 2)
        first_s, last_s = (
            max(left_s + self._delay_s, flight.answers_until_s) + self._delay_s - flight.sent_s
            for left_s in (flight.starts_s, left_until_s)
        )
        seen_s = last_s - (last_s - first_s) * min(1.0, 7 / acknowledgements)  # a mean of what rises trails behind it
        self._smoothed_s += (seen_s - self._smoothed_s) * (1 - (7 / 8) ** acknowledgements)

    def _timeout_s(self) -> float:
        return self._smoothed_s + self._tcp.least_timeout_s

    def _restart_after_idling(self, now_s: float) -> None:
        timeouts = (now_s - self._sent_at_s) / self._timeout_s()
        initial_bytes = self._tcp.initial_window_bytes
        if not self._flights and timeouts > 1 and self._window_bytes > initial_bytes:
            halvings = min(math.floor(timeouts), 64)
            self._window_bytes = max(initial_bytes, self._window_bytes / 2**halvings)

    def _judge(self, limited: bool) -> None:
        """Keep whether the window is what limits, or how much of it is used, until what was sent is acknowledged."""
        if self._judged_bytes <= 0 or limited or (not self._limited and self._in_flight_bytes > self._most_bytes):
            self._limited, self._most_bytes = limited, self._in_flight_bytes
            self._judged_bytes = self._in_flight_bytes


def ramp_s(profile: NetworkProfile, largest_bytes: float, tcp: Tcp = LINUX) -> float:
    """Seconds that slow start adds to an exchange on fresh windows, as much each way; 0 where none limits it."""
    payload_bytes_per_s = profile.bytes_per_s * tcp.payload_share
    unlimited_s = largest_bytes / payload_bytes_per_s + profile.one_way_delay_s
    return max(0.0, Flow(profile, tcp).due_s(0.0, largest_bytes, largest_bytes) - unlimited_s)
