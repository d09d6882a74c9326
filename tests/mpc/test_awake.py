from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from bench.machine import this_machine
from mpc import awake


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Stand-ins for the kernel's: what is asked of it, and how its cores sleep."""
    request, driver = tmp_path / "cpu_dma_latency", tmp_path / "current_driver"
    request.touch()
    monkeypatch.setattr(awake, "_REQUEST", request)
    monkeypatch.setattr(awake, "_DRIVER", driver)
    return request, driver


@pytest.mark.parametrize(("driver", "latency_us"), [("haltpoll", 0), ("intel_idle", 2), ("acpi_idle", 2)])
def test_guests_never_sleep_and_other_cores_lightly(files: tuple[Path, Path], driver: str, latency_us: int) -> None:
    files[1].write_text(driver + "\n")
    assert awake.can_keep_awake() and this_machine().kept_awake
    awake.keep_awake()
    assert struct.unpack("=i", files[0].read_bytes()) == (latency_us,)
    held = [open_file for open_file in Path("/dev/fd").iterdir() if open_file.resolve() == files[0].resolve()]
    assert held  # it stays open, or the kernel would forget it
    os.close(int(held[0].name))


@pytest.mark.parametrize("driver", ["none\n", None])
def test_nothing_is_asked_where_cores_would_not_obey(files: tuple[Path, Path], driver: str | None) -> None:
    if driver is not None:
        files[1].write_text(driver)
    awake.keep_awake()
    assert not awake.can_keep_awake() and files[0].read_bytes() == b""


def test_a_file_that_will_not_open_is_no_failure(files: tuple[Path, Path]) -> None:
    files[1].write_text("haltpoll")
    files[0].unlink()
    files[0].mkdir()  # refused to root too, as by the device rules of a container
    awake.keep_awake()
    assert not awake.can_keep_awake()
