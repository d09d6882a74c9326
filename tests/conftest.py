"""Party processes shared by all tests of a session: starting them takes seconds, a task milliseconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mpc.parties import Parties
from mpc.scheme import Scheme


@pytest.fixture(scope="session")
def two_parties() -> Iterator[Parties]:
    """Two party processes and a first-party dealer."""
    with Parties(Scheme(), deadline_s=250) as parties:
        yield parties


@pytest.fixture(scope="session")
def three_parties() -> Iterator[Parties]:
    """Three party processes and a first-party dealer."""
    with Parties(Scheme(parties=3), deadline_s=250) as parties:
        yield parties
