"""Processes that end with the one that started them, also when that one is killed by SIGKILL.

The starter names itself in the child's environment; the child asks the kernel for SIGKILL at the
starter's end. Linux only; elsewhere nothing is asked for.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Mapping

PARENT = "COGVX_PARENT_PID"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def followed(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child that is to end with this process.

    The thread that starts the child counts, not the process: it must last as long.
    """
    return {**environ, PARENT: str(os.getpid())}


def follow_parent() -> None:
    """End with the starter, if it asked for that; call this first of all."""
    # Taken out: what this process starts has another parent.
    parent = os.environ.pop(PARENT, None)
    if parent is None or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if str(os.getppid()) != parent:
        os._exit(128 + signal.SIGKILL)  # it ended before the kernel was asked
