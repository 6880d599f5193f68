"""SIGTERM and Ctrl-C: finish the step, save, exit. A second one: exit immediately."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from app.errors import CogvxError, InterruptedRunError, PreemptedError

STOPPING = (signal.SIGTERM, signal.SIGINT)
# To a person at a terminal: a step may take a minute. One write, since a handler may not log.
HEARD = b"\nCtrl-C: this step is finished and saved; once more ends at once without saving\n"


@dataclass(slots=True)
class StopFlag:
    """Set by the signal, read by the loop at every step boundary."""

    requested: bool = False
    signal: signal.Signals = signal.SIGTERM  # the one that came first
    in_loop: bool = False  # the loop is there to read the flag
    command: str = ""  # how the run is continued

    def error(self, step: int, steps: int) -> CogvxError:
        """The end of a run that stops after `step` of `steps`."""
        kind = InterruptedRunError if self.signal == signal.SIGINT else PreemptedError
        again = "start the run again: it continues from this step"
        return kind(
            f"stopped by {self.signal.name} after step {step}, which is saved",
            where=f"step {step} of {steps}",
            fix=f"{again}: {self.command}" if self.command else again,
        )


@contextlib.contextmanager
def stop_on_signals(command: str = "") -> Iterator[StopFlag]:
    """A flag that SIGTERM and SIGINT set until the end of the block.

    Args:
        command: what continues the run, for the message.
    """
    flag = StopFlag(command=command)

    def handle(number: int, frame: FrameType | None) -> None:
        if flag.requested:
            # The second signal: there is no time for anything that could block.
            os._exit(_exit_code(number))
        if number == signal.SIGINT:
            if not flag.in_loop:
                raise KeyboardInterrupt  # nothing to save
            if os.environ.get("LOCAL_RANK", "0") == "0":  # once, not by every rank
                os.write(2, HEARD)
        flag.requested, flag.signal = True, signal.Signals(number)

    if threading.current_thread() is not threading.main_thread():
        yield flag  # python delivers signals to the main thread only
        return
    before = [(one, signal.signal(one, handle)) for one in STOPPING]
    try:
        yield flag
    finally:
        for one, handler in before:
            signal.signal(one, handler)


def command_line(argv: Sequence[str]) -> str:
    """What somebody types to start this process again."""
    own = Path(argv[0]).name in ("cogvx", "__main__.py", "main.py")
    return shlex.join(["cogvx", *argv[1:]] if own else ["python", *argv])


def _exit_code(number: int) -> int:
    return InterruptedRunError.exit_code if number == signal.SIGINT else PreemptedError.exit_code
