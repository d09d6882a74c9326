"""Schemes named on a command line: of every list, each protocol set takes what it has."""

from __future__ import annotations

from typing import Any

import pytest

from bench.comparing import reference_scheme, short_label, times_faster
from bench.scheme_list import one_scheme, schemes_named
from mpc.scheme import Scheme

TUNED = Scheme("tuned", transport="direct")


def test_a_protocol_set_has_its_own_transport_where_none_is_named() -> None:
    assert schemes_named({}) == [Scheme()]
    assert schemes_named({"scheme": "crypten,tuned", "transport": None}) == [Scheme(), TUNED]


def test_each_takes_the_choices_that_it_has() -> None:
    named = schemes_named(
        {"scheme": "crypten,tuned", "functions": "documented,released,max_free", "transport": "gloo,direct"}
    )
    assert [(s.name, s.functions, s.transport) for s in named] == [
        ("crypten", "documented", "gloo"),
        ("crypten", "documented", "direct"),
        ("crypten", "released", "gloo"),
        ("crypten", "released", "direct"),
        ("tuned", "documented", "direct"),
        ("tuned", "max_free", "direct"),
    ]
    named = schemes_named({"scheme": "crypten,tuned", "truncation": "local,dealer", "range_check": True})
    assert [(s.name, s.truncation, s.range_check) for s in named] == [
        ("crypten", "local", False),
        ("tuned", "local", True),
        ("tuned", "dealer", True),
    ]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"scheme": "crypten,tuned", "functions": "released"}, "scheme tuned has functions documented or max_free"),
        ({"functions": "documented,release"}, "functions 'release' is not available"),
        ({"functions": "documented,max_free"}, "scheme crypten has functions documented or released, not 'max_free'"),
        ({"scheme": "crypten,tuned", "parties": 3}, "scheme tuned is for two parties"),
        ({"scheme": "crypten,tuned", "transport": "gloo"}, "scheme tuned has transport direct"),
        ({"range_check": True}, "options of scheme tuned"),
    ],
)
def test_what_nothing_takes_is_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        schemes_named(options)


def test_one_scheme_is_not_several() -> None:
    assert one_scheme({"scheme": "tuned", "model": "not about schemes"}) == TUNED
    with pytest.raises(ValueError, match="one scheme, not 2"):
        one_scheme({"scheme": "crypten,tuned"})


def test_stock_crypten_is_the_reference_where_it_is_there() -> None:
    released = Scheme(functions="released")
    assert reference_scheme([TUNED, Scheme(), released]) == released
    assert reference_scheme([TUNED, Scheme(transport="direct"), Scheme()]) == Scheme()
    assert reference_scheme([TUNED]) == TUNED
    checked = Scheme("tuned", dealer="ttp", transport="direct", truncation="dealer", range_check=True)
    assert short_label(checked.to_json()) == "tuned documented, direct, ttp, dealer truncation, range check"


def _row(scheme: Scheme, kind: str, network: str, online_s: float, total_s: float | None) -> dict[str, Any]:
    seconds = {"online": {"median": online_s}, "total": None if total_s is None else {"median": total_s}}
    return {
        "workload": "attention",
        "kind": kind,
        "scheme": scheme.to_json(),
        "network": network,
        "mode": "measured" if total_s else "replayed",
        "seconds": seconds,
    }


def test_times_faster_compares_the_same_kind_on_the_same_network() -> None:
    rows = [
        _row(Scheme(), "softmax", "loopback", 4.0, 6.0),
        _row(Scheme(), "softmax", "wan", 9.0, None),
        _row(TUNED, "softmax", "loopback", 0.5, 1.0),
        _row(TUNED, "softmax", "wan", 3.0, None),
        _row(TUNED, "scaling", "loopback", 1.0, 1.0),
    ]
    assert times_faster(rows, Scheme()) == [
        {"online": 1.0, "total": 1.0},
        {"online": 1.0, "total": None},
        {"online": 8.0, "total": 6.0},
        {"online": 3.0, "total": None},
        {"online": None, "total": None},
    ]
