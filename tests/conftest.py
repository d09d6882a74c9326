"""Party processes shared by all tests of a session: starting them takes seconds, a task milliseconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mpc.parties import Parties
from mpc.scheme import Scheme

_started: dict[Scheme, Parties] = {}


def _parties(scheme: Scheme) -> Parties:
    """Parties that are alive: those of an earlier test, or new ones where that test ended them."""
    if scheme not in _started or not _started[scheme].running:
        _started[scheme] = Parties(scheme, deadline_s=250).__enter__()
    return _started[scheme]


@pytest.fixture(scope="session", autouse=True)
def _close_parties() -> Iterator[None]:
    yield
    for parties in _started.values():
        parties.close()


@pytest.fixture
def two_parties() -> Parties:
    """Two party processes and a first-party dealer."""
    return _parties(Scheme())


@pytest.fixture
def three_parties() -> Parties:
    """Three party processes and a first-party dealer."""
    return _parties(Scheme(parties=3))


@pytest.fixture
def two_direct_parties() -> Parties:
    """Two party processes of scheme crypten that are joined by direct links."""
    return _parties(Scheme(transport="direct"))


@pytest.fixture
def three_direct_parties() -> Parties:
    """Three party processes of scheme crypten that are joined by direct links."""
    return _parties(Scheme(parties=3, transport="direct"))


@pytest.fixture
def tuned_parties() -> Parties:
    """Two party processes of the tuned scheme and a first-party dealer."""
    return _parties(Scheme("tuned", transport="direct"))


@pytest.fixture
def tuned_parties_and_dealer() -> Parties:
    """Two party processes of the tuned scheme and a third process that deals."""
    return _parties(Scheme("tuned", transport="direct", dealer="ttp"))
