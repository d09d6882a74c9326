"""What every test runs under: one thread, no display, no downloads, no calibration but its own."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

# Read by the libraries when they are first imported, hence here, before any test module.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["HF_HUB_OFFLINE"] = "1"

from hypothesis import settings

# Parties and searches have no steady pace on shared machines; the same examples in every run.
settings.register_profile("repository", deadline=None, derandomize=True)
settings.load_profile("repository")


@pytest.fixture(scope="session", autouse=True)
def _own_configuration(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A calibration of the person who runs the tests is neither seen nor overwritten."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("configuration")))
        yield
