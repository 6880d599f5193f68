"""Wait until the master is up, however long its node takes to pull the image."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable

from app.errors import PreemptedError, RetryableError

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
REPORT_EVERY_S = 30.0

# pause(seconds) -> True when a signal asked us to stop meanwhile
Pause = Callable[[float], bool]
Probe = Callable[[str, int], None]  # OSError: not yet


def connect_once(host: str, port: int) -> None:
    """Open and close one connection; OSError when nobody listens.

    The name is resolved here, at every try: a recreated pod has another address.
    """
    with socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S):
        return


def resolve_once(host: str, port: int) -> None:
    """Look the name up; OSError when it has no address.

    The operator's Services list a pod once its container runs: it has a node and its image.
    """
    socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)


def wait_for_master(
    address: tuple[str, int],
    deadline_s: float,
    pause: Pause,
    probe: Probe = connect_once,
) -> float:
    """Return the seconds waited, once `probe` (`connect_once` or `resolve_once`) succeeds.

    Raises:
        RetryableError: it failed until the deadline.
        PreemptedError: a signal came first.
    """
    host, port = address
    start = time.monotonic()
    reported = start - REPORT_EVERY_S
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            probe(host, port)
        except OSError as problem:
            last = problem
        else:
            return time.monotonic() - start
        now = time.monotonic()
        if now - start >= deadline_s:
            raise RetryableError(
                f"the master was not reachable for {now - start:.0f} s ({last})",
                where=f"{host}:{port}",
                fix="look at the master's pod: is it Pending, pulling its image, or failing? "
                "Does every rank have a number of its own, and one of them 0?",
            )
        if now - reported >= REPORT_EVERY_S:
            reported = now
            log.info(
                "waiting for the master",
                extra={
                    "master": f"{host}:{port}",
                    "waited_s": round(now - start),
                    "last": str(last),
                },
            )
        if pause(min(pause_s, deadline_s)):
            raise PreemptedError(
                "asked to stop while waiting for the master",
                where=f"{host}:{port}",
                fix="nothing to do: the next start waits again",
            )
        pause_s = min(pause_s * 1.5, LONGEST_PAUSE_S)
