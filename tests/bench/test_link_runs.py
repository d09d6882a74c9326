from __future__ import annotations

import pytest

from bench.attention import AttentionShape, attention_layer, unit_input
from bench.link_runs import UNSEEN_LINKS, LinkWorkload, how_to_emulate, measure_links
from mpc.network import PROFILES, network
from mpc.ranges import NOTHING_DECLARED
from mpc.scheme import Scheme

TUNED = Scheme("tuned", transport="direct")


def test_unseen_links_are_no_profiles() -> None:
    known = {(profile.bytes_per_s, profile.one_way_delay_s) for profile in PROFILES.values()}
    links = [network(name) for name in UNSEEN_LINKS]
    assert len({(link.bytes_per_s, link.one_way_delay_s) for link in links} - known) == len(links) >= 12


def test_gloo_needs_a_shaped_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.link_runs.why_not", lambda: "no link here")
    assert how_to_emulate(TUNED) == "transport"
    with pytest.raises(ValueError, match="no link here"):
        how_to_emulate(Scheme())


@pytest.mark.parties
def test_every_workload_is_measured_on_every_link_and_beside_it_on_loopback() -> None:
    shape = AttentionShape(5, 8, 2)
    layer = attention_layer("scaling", shape)
    workload = LinkWorkload("tiny", layer, unit_input(shape), NOTHING_DECLARED)
    links = [network("1gbit/10ms"), network("1gbit/30ms")]
    heard: list[tuple[int, int, str]] = []
    measured = measure_links(TUNED, links, 2, [workload], on_run=lambda *what: heard.append(what))
    assert [(one.what, one.network, one.mode) for one in measured] == [
        ("tiny", link, "emulated-transport") for link in links
    ]
    assert [(done, total) for done, total, _ in heard] == [(done, 8) for done in range(8)]
    for one in measured:
        hops = len(one.logs[0].messages)
        assert len(one.samples_s) == len(one.loopback_s) == 2 and len(one.logs) == 2
        assert min(one.samples_s) > hops * one.network.one_way_delay_s
