"""The exit codes of a pod, and how the end of a child maps to them.

Under `restartPolicy: ExitCode` the operator ends the job at 1 to 127 and makes a new pod at 128
and above, so the number decides whether a month of training continues. docs/exit_codes.md has this
table.
"""

from __future__ import annotations

import signal

FINISHED = 0
UNKNOWN = 1
RETRYABLE = 138
PREEMPTED = 143

MEANINGS: dict[int, str] = {
    0: "finished",
    1: "unknown error (a bug), or a GPU out of memory",
    2: "wrong flag",
    65: "bad data, checkpoint or weights",
    66: "missing input",
    77: "permission denied",
    78: "invalid configuration",
    130: "interrupted (SIGINT)",
    137: "killed (SIGKILL; usually the memory limit)",
    138: "a failure that a restart may fix: lost peer, storage outage, broken node",
    139: "segmentation fault (SIGSEGV)",
    143: "preempted (SIGTERM)",
}

# A watchdog of NCCL or gloo ends its process by abort() when a collective hangs or a peer is lost.
_ABORT_MEANS = RETRYABLE


def exit_code_of(returncode: int) -> int:
    """The exit code for the end of a child.

    Args:
        returncode: exit status, or minus the signal's number, as `subprocess` counts.

    Returns:
        A code of `MEANINGS`, or 128 + the signal for a signal that has no row.
    """
    if returncode < 0:
        return _ABORT_MEANS if returncode == -signal.SIGABRT else 128 - returncode
    if returncode == 128 + signal.SIGABRT:  # passed on by a wrapper
        return _ABORT_MEANS
    return returncode if returncode in MEANINGS or returncode > 128 else UNKNOWN


def meaning(code: int) -> str:
    """One readable line."""
    if code in MEANINGS:
        return MEANINGS[code]
    return f"ended by signal {code - 128}" if code > 128 else MEANINGS[UNKNOWN]


def is_permanent(code: int) -> bool:
    """Whether the operator ends the job at this code."""
    return 1 <= code < 128
