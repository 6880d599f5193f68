"""One child and its descendants: start, forward signals, reap, leave nothing behind.

Written for PID 1: signals are blocked and received with sigtimedwait, so none is lost in between,
and the kernel does not drop them as it drops unhandled signals of PID 1.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.distributed.parent import followed

log = logging.getLogger(__name__)

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
WATCHED = {*FORWARDED, signal.SIGCHLD}
POLL_S = 1.0
KILL_AFTER_S = 5.0  # between SIGTERM and SIGKILL for what the child left behind
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


@dataclass(frozen=True, slots=True)
class Ending:
    """The return code of the child, as in `subprocess`, and the first signal that stopped us."""

    returncode: int
    stopped_by: signal.Signals | None


class Supervisor:
    """Runs one child at a time. Use inside `watching_signals()`."""

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._stopped_by: signal.Signals | None = None
        self._kill_at: float | None = None

    def pause(self, seconds: float) -> bool:
        """Sleep; True when a signal asked us to stop, before or meanwhile."""
        deadline = time.monotonic() + seconds
        while self._stopped_by is None:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self._note(signal.sigtimedwait(WATCHED, left))
            _reap()
        return True

    def run(self, argv: Sequence[str], environ: Mapping[str, str]) -> Ending:
        """Start the child, forward signals to it until it ends, then end what it left running.

        `argv[0]` is an absolute path. The child leads a process group of its own, so that Ctrl-C
        on a terminal reaches it once, through us.
        """
        child = os.posix_spawn(
            argv[0],
            list(argv),
            followed(environ),  # killed alone, this process would leave ranks training
            setpgroup=0,
            setsigmask=(),
            setsigdef=[*FORWARDED, signal.SIGPIPE],
        )
        log.info("started", extra={"pid": child, "command": list(argv)})
        try:
            status = self._until_ended(child)
        finally:
            end_descendants()
        return Ending(os.waitstatus_to_exitcode(status), self._stopped_by)

    def _until_ended(self, child: int) -> int:
        while True:
            ended = _reap()
            if child in ended:
                return ended[child]
            got = self._note(signal.sigtimedwait(WATCHED, POLL_S))
            if got is not None:
                _send(child, got)
            if self._kill_at is not None and time.monotonic() >= self._kill_at:
                log.warning("the grace period is over, killing", extra={"pid": child})
                _send(child, signal.SIGKILL)
                self._kill_at = None

    def _note(self, info: signal.struct_siginfo | None) -> signal.Signals | None:
        if info is None or info.si_signo == signal.SIGCHLD:
            return None
        got = signal.Signals(info.si_signo)
        if got in STOPPING and self._stopped_by is None:
            self._stopped_by = got
            self._kill_at = time.monotonic() + self._grace_s
            log.info("asked to stop", extra={"signal": got.name, "grace_s": self._grace_s})
        return got


@contextmanager
def watching_signals() -> Iterator[None]:
    """Block the signals that `Supervisor` waits for, and adopt orphans, as PID 1 always does."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def descendants(root: int) -> list[int]:
    """Processes below `root`, parents first. Linux only: read from /proc."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            parent = _parent_of(folder)
            if parent is not None:
                children.setdefault(parent, []).append(int(folder.name))
    found: list[int] = []
    queue = [root]
    while queue:
        below = children.get(queue.pop(0), [])
        found += below
        queue += below
    return found


def end_descendants() -> None:
    """End every process below this one: SIGTERM, a pause, SIGKILL; all are reaped."""
    me = os.getpid()
    for pid in descendants(me):
        _send(pid, signal.SIGTERM)
    left = _left_below(me)
    for pid in left:
        _send(pid, signal.SIGKILL)
    if left:
        log.warning("killed what the child left behind", extra={"processes": len(left)})
        _left_below(me)


def _left_below(root: int) -> list[int]:
    """The descendants that have not ended after KILL_AFTER_S; those that have are reaped."""
    deadline = time.monotonic() + KILL_AFTER_S
    while True:
        _reap()
        left = descendants(root)
        if not left or time.monotonic() >= deadline:
            return left
        signal.sigtimedwait({signal.SIGCHLD}, 0.1)


def _parent_of(folder: Path) -> int | None:
    try:
        stat = (folder / "stat").read_text()
    except OSError:
        return None  # it ended meanwhile
    # The name in parentheses may itself hold spaces and parentheses.
    return int(stat.rpartition(")")[2].split()[1])


def _reap() -> dict[int, int]:
    """Collect every child that ended: pid -> wait status."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended[pid] = status


def _send(pid: int, what: signal.Signals) -> None:
    try:
        os.kill(pid, what)
    except ProcessLookupError:
        log.debug("gone before the signal", extra={"pid": pid, "signal": what.name})
