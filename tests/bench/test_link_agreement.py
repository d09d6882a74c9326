from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from bench.link_agreement import Case, agreement, cases_of, fitted_tcp, law_s, measure_ways, ways_of
from bench.running import Stage, parties_on, stages_of
from bench.shaped_link import why_not
from mpc.congestion import SEGMENT_BYTES, Tcp
from mpc.network import LOOPBACK, network
from mpc.parties import Parties
from mpc.scheme import Scheme

WAN = network("cheetah-wan")
GLOO, DIRECT = Scheme(), Scheme("tuned", transport="direct")
LACKING = why_not()


def test_where_schemes_run_to_have_seconds_on_every_network() -> None:
    lan = network("bolt-lan")
    both = (GLOO, DIRECT)
    assert stages_of(both, []) == [Stage(LOOPBACK, "link", both, {GLOO: ()})]
    assert stages_of(both, [WAN, LOOPBACK, lan]) == [
        Stage(LOOPBACK, "link", both, {GLOO: (WAN, lan)}),
        Stage(WAN, "transport", (DIRECT,)),
        Stage(lan, "transport", (DIRECT,)),
    ]
    assert stages_of([GLOO], [WAN]) == [Stage(LOOPBACK, "link", (GLOO,), {GLOO: (WAN,)})]
    assert stages_of(both, [WAN], "replay") == [Stage(LOOPBACK, "link", both, {GLOO: (WAN,), DIRECT: (WAN,)})]
    assert stages_of(both, [WAN], "link") == [Stage(WAN, "link", both)]
    assert stages_of([DIRECT], [WAN], "transport") == [Stage(WAN, "transport", (DIRECT,))]
    with pytest.raises(ValueError, match="hide their hops"):
        stages_of(both, [WAN], "transport")


def test_gloo_is_refused_before_any_party_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Parties, "__enter__", lambda _: pytest.fail("parties were started"))
    with pytest.raises(ValueError, match="hide their hops"), parties_on([DIRECT, GLOO], WAN, emulate="transport"):
        pass


def test_the_law_of_a_series_of_exchanges() -> None:
    cases = (Case(8, 0.0, 3), Case(1_000_000, 0.0, 1))
    small_s, large_s = law_s(WAN, cases, [0.001, 0.002])
    assert small_s == pytest.approx(0.021, rel=0.001)
    assert large_s > 0.020 + 1_000_000 / WAN.bytes_per_s
    # Copying that takes longer than the link is what counts.
    assert law_s(WAN, cases, [0.5, 0.5])[0] == pytest.approx(0.520, rel=0.001)


def test_the_fit_finds_the_window_that_the_figures_came_from() -> None:
    cases, own_s = cases_of(WAN), [20e-6] * len(cases_of(WAN))
    true = Tcp(initial_window_bytes=20 * SEGMENT_BYTES)
    found, error = fitted_tcp(WAN, cases, own_s, law_s(WAN, cases, own_s, true))
    assert error < 0.01
    assert found.initial_window_bytes == pytest.approx(true.initial_window_bytes, rel=0.15)
    assert math.isclose(found.growth, 2.0, rel_tol=0.1)


def test_a_row_agrees_within_its_bar() -> None:
    cases = (Case(8, 0.0, 3), Case(1_000_000, 0.0, 3))
    seconds = {"loopback": [[1e-5], [1e-4]], "transport": [[0.0209], [0.0460]], "link": [[0.0200], [0.0420]]}
    record = agreement(WAN, cases, {**seconds, "program": seconds["loopback"]})
    assert [row["agrees"] for row in record["rows"]] == [True, True]
    assert [row["ratio"] for row in record["rows"]] == pytest.approx([1.045, 46 / 42])
    seconds["link"] = [[0.0198], [0.0410]]
    assert agreement(WAN, cases, seconds)["agreeing"] == 0


@pytest.mark.parties
def test_the_transport_alone_is_measured_where_there_is_no_link() -> None:
    profile = network("400mbit/8ms")
    cases = (Case(8, 0.0, 2), Case(100_000, 0.01, 1))
    with ways_of(profile, with_link=False) as ways:
        seconds = measure_ways(ways, cases, repeats=2)
    assert {way: [len(samples) for samples in of_way] for way, of_way in seconds.items()} == {
        "loopback": [2, 2],
        "transport": [2, 2],
    }
    assert min(map(min, seconds["transport"])) >= profile.one_way_delay_s
    record = agreement(profile, cases, seconds)
    assert "fit" not in record and "ratio" not in record["rows"][0]


@pytest.mark.parties
@pytest.mark.skipif(LACKING is not None, reason=LACKING or "")
def test_both_ways_are_measured_and_nothing_is_left_behind() -> None:
    before = set(Path("/run/netns").glob(f"mpc-pareto-{os.getpid()}-*"))
    profile = network("400mbit/8ms")
    cases = (Case(8, 0.0, 2),)
    with ways_of(profile) as ways:
        seconds = measure_ways(ways, cases, repeats=1)
    assert set(seconds) == {"loopback", "transport", "link", "program"}
    assert min(*seconds["transport"][0], *seconds["link"][0]) >= profile.one_way_delay_s
    assert agreement(profile, cases, seconds)["fit"]["growth"] >= 1
    assert set(Path("/run/netns").glob(f"mpc-pareto-{os.getpid()}-*")) <= before
