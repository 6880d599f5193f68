"""SIGTERM: finish the step, save, exit. A second one: exit immediately."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

from app.errors import PreemptedError

log = logging.getLogger(__name__)


@dataclass(slots=True)
class StopFlag:
    """Set by the signal, read by the loop at every step boundary."""

    requested: bool = False


@contextlib.contextmanager
def stop_on_sigterm() -> Iterator[StopFlag]:
    """A flag that SIGTERM sets until the end of the block."""
    flag = StopFlag()

    def handle(number: int, frame: FrameType | None) -> None:
        if flag.requested:
            # The second signal: there is no time for anything that could block.
            os._exit(PreemptedError.exit_code)
        flag.requested = True

    if threading.current_thread() is not threading.main_thread():
        yield flag  # python delivers signals to the main thread only
        return
    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGTERM, before)
