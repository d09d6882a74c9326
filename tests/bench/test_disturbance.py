from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.disturbance import Disturbance

needs_proc = pytest.mark.skipif(not Path("/proc/stat").exists(), reason="Linux only")
BURN = "import time; end = time.process_time() + {seconds}\nwhile time.process_time() < end: pass"


def disturbance(
    monkeypatch: pytest.MonkeyPatch, before: tuple[float, float, float], after: tuple[float, float, float]
) -> float | None:
    """The share between two readings of wall, busy and own seconds, on 4 cores."""
    readings = iter((before, after))
    monkeypatch.setattr(Disturbance, "_read", lambda _: next(readings))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    return Disturbance([]).share()


@needs_proc
@pytest.mark.parametrize(
    ("after", "share"),
    [
        ((20.0, 130.0, 15.0), 0.5),  # of 10 s on 4 cores 30 s were busy, 10 s of them ours
        ((20.0, 110.0, 15.0), 0.0),
        ((20.0, 108.0, 15.0), 0.0),  # ticks of ours that the machine's count does not have yet
        ((10.001, 100.01, 5.0), 1.0),  # one tick in a millisecond
        ((10.0, 100.01, 5.0), 0.0),
    ],
)
def test_shares_by_hand(monkeypatch: pytest.MonkeyPatch, after: tuple[float, float, float], share: float) -> None:
    assert disturbance(monkeypatch, (10.0, 100.0, 5.0), after) == pytest.approx(share)


def busy(cpu_s: float) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", BURN.format(seconds=cpu_s) + "\ninput()"], stdin=subprocess.PIPE)


def cpu_s_of(process_id: int) -> float:
    after_name = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


@needs_proc
def test_work_of_a_process_that_is_not_ours_counts_and_ours_does_not() -> None:
    with busy(0.3) as process:
        others, alike = Disturbance([]), Disturbance([process.pid])
        started_s = time.monotonic()
        while cpu_s_of(process.pid) < 0.3:
            time.sleep(0.02)
        share, share_of_ours = others.share(), alike.share()
        wall_s = time.monotonic() - started_s
        process.communicate(b"\n")
    assert share is not None and share_of_ours is not None
    assert 0 <= share_of_ours < share <= 1
    # Start-up may have been counted before the first reading; of the rest at least half.
    assert share - share_of_ours > 0.5 * 0.3 / (wall_s * (os.cpu_count() or 1))


@needs_proc
def test_work_of_ours_that_has_ended_is_not_others() -> None:
    def own_s() -> float:
        return Disturbance([])._before[2]

    before_s = own_s()
    subprocess.run([sys.executable, "-c", BURN.format(seconds=0.2)], check=True)
    end_s = time.process_time() + 0.1
    while time.process_time() < end_s:
        pass
    assert own_s() - before_s > 0.25


def test_elsewhere_it_cannot_be_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda _: False)
    assert Disturbance([1]).share() is None
