"""The doctor: says which check fails and what mends it."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from bench import doctor
from bench.doctor import Check


def test_a_check_that_passes_advises_nothing() -> None:
    assert Check("torch", True, "2.11", "reinstall").fix == ""
    assert Check("torch", False, "2.10", "reinstall").fix == "reinstall"


def test_a_version_outside_its_bounds_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        metadata, "requires", lambda _: ["numpy>=1000", "numpy", "absent-package", "mypy; extra == 'dev'"]
    )
    found = {(check.name, check.ok) for check in doctor._versions()}
    assert found == {("numpy", False), ("numpy", True), ("absent-package", False)}


def test_a_package_that_does_not_import_is_broken_in_one_line() -> None:
    def load() -> None:
        raise RuntimeError("operator torchvision::nms does not exist\nand more")

    check = doctor._imports("torchvision", load)
    assert not check.ok
    assert check.found == "RuntimeError: operator torchvision::nms does not exist"
    assert "constraints.txt" in check.fix


def test_write_access_is_asked_of_the_nearest_folder_that_exists(tmp_path: Path) -> None:
    check = doctor._write_access(tmp_path / "a" / "b")
    assert check.ok
    assert check.found == str(tmp_path)


def test_a_link_that_cannot_be_shaped_is_advice_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "why_not", lambda: "a shaped link needs root: use sudo")
    check = doctor._shaped_link()
    assert (check.ok, check.needed, check.fix) == (False, False, "a shaped link needs root: use sudo")
    monkeypatch.setattr(doctor, "why_not", lambda: None)
    assert doctor._shaped_link().ok


def test_cores_that_may_sleep_are_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "can_keep_awake", lambda: False)
    check = doctor._cores_awake()
    assert (check.ok, check.needed) == (False, False) and "/dev/cpu_dma_latency" in check.fix
    monkeypatch.setattr(doctor, "can_keep_awake", lambda: True)
    assert doctor._cores_awake().ok


@pytest.mark.parties
def test_two_processes_meet_on_loopback() -> None:
    assert doctor._meet_on_loopback() == [0, 0]
