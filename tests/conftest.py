"""Party processes shared by all tests of a session: starting them takes seconds, a task milliseconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mpc.parties import Parties
from mpc.scheme import Scheme

_started: dict[int, Parties] = {}


def _parties(count: int) -> Parties:
    """Parties that are alive: those of an earlier test, or new ones where that test ended them."""
    if count not in _started or not _started[count].running:
        _started[count] = Parties(Scheme(parties=count), deadline_s=250).__enter__()
    return _started[count]


@pytest.fixture(scope="session", autouse=True)
def _close_parties() -> Iterator[None]:
    yield
    for parties in _started.values():
        parties.close()


@pytest.fixture
def two_parties() -> Parties:
    """Two party processes and a first-party dealer."""
    return _parties(2)


@pytest.fixture
def three_parties() -> Parties:
    """Three party processes and a first-party dealer."""
    return _parties(3)
