"""SIGTERM as a wish: a run that is asked to end saves first, then exits with code 143."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 128 + signal.SIGTERM


@contextmanager
def heeded_termination(heed: bool = True) -> Iterator[Callable[[], bool]]:
    """Holds SIGTERM back, inside; the function says whether one has come. Outside the main thread it never does."""
    asked = threading.Event()
    if not heed or threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def note(number: int, frame: FrameType | None) -> None:
        asked.set()

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
