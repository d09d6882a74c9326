"""A synthetic run and its report, built once for all tests of the folder."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from reports import ReportSummary, build


def _synthetic_run() -> ModuleType:
    spec = importlib.util.spec_from_file_location("synthetic_run", Path(__file__).with_name("synthetic_run.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def synthetic() -> ModuleType:
    """The module that makes records up."""
    return _synthetic_run()


@pytest.fixture
def run_dir(tmp_path: Path, synthetic: ModuleType) -> Path:
    """A run directory with every record, free to change."""
    path: Path = synthetic.write_run(tmp_path / "run")
    return path


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory, synthetic: ModuleType) -> ReportSummary:
    """The report of a whole run; leave it as it is."""
    return build(synthetic.write_run(tmp_path_factory.mktemp("whole") / "run"))
