"""What every test runs under: one thread, no display, no downloads."""

from __future__ import annotations

import os

# Read by the libraries when they are first imported, hence here, before any test module.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["HF_HUB_OFFLINE"] = "1"

from hypothesis import settings

# Parties and searches have no steady pace on shared machines; the same examples in every run.
settings.register_profile("repository", deadline=None, derandomize=True)
settings.load_profile("repository")
