"""SIGTERM: finish the step, save, leave. A second one: leave at once."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from app.errors import PreemptedError

log = logging.getLogger(__name__)


class StopFlag:
    """Set by the signal, read by the loop at every step boundary."""

    def __init__(self) -> None:
        self._requested_at: float | None = None

    @property
    def requested(self) -> bool:
        return self._requested_at is not None

    def request(self) -> None:
        """Ask for the end of the run at the next step boundary."""
        if self._requested_at is None:
            self._requested_at = time.monotonic()


@contextlib.contextmanager
def stop_on_sigterm() -> Iterator[StopFlag]:
    """A flag that SIGTERM sets until the end of the block."""
    flag = StopFlag()

    def handle(number: int, frame: FrameType | None) -> None:
        if flag.requested:
            # Somebody insists: no time is left for anything that could block.
            os._exit(PreemptedError.exit_code)
        flag.request()

    if threading.current_thread() is not threading.main_thread():
        yield flag  # python delivers signals to the main thread only
        return
    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGTERM, before)
