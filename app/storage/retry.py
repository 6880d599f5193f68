"""Retries by class of failure, with full-jitter back-off and a deadline.

The only layer that repeats requests: two layers that both retry cannot be bounded.
Source of the back-off: "Exponential Backoff And Jitter", AWS Architecture Blog (full jitter).
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from app.storage.failures import (
    ALWAYS_RETRIED,
    FailureKind,
    StorageFailure,
    deadline_error,
    permanent_error,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

BACKOFF_BASE_S = 0.2
BACKOFF_CAP_S = 10.0
THROTTLED_FOR_S = 30.0
FRESH_RETRIES = 3  # of a 404 for an object that we have just written
# The same wrong answer so often in a row is the object's own fault and not the network's. Not
# two: at one bad answer in sixty, a run with thousands of ranges meets two in a row.
SAME_WRONG_ANSWERS = 3
SILENT_S = 3.0  # an operation that fails for longer says so, before the wait that goes beyond
SAID_EVERY_S = 30.0  # one line in so much time, whatever the number of requests


@dataclass(frozen=True, slots=True)
class Clock:
    """Time and chance, as arguments, so that tests need no waiting."""

    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    uniform: Callable[[float, float], float] = random.uniform


class Streams:
    """Bounds the requests in flight; half as many for a while after the server says slow down."""

    def __init__(self, count: int, clock: Clock) -> None:
        self._count = count
        self._clock = clock
        self._busy = 0
        self._throttled_until = float("-inf")
        self._change = threading.Condition()

    def allowed(self) -> int:
        """Requests that may be in flight now."""
        throttled = self._clock.monotonic() < self._throttled_until
        return max(1, self._count // 2) if throttled else self._count

    def throttle(self) -> None:
        """Halve the streams for the next 30 seconds."""
        self._throttled_until = self._clock.monotonic() + THROTTLED_FOR_S

    @contextmanager
    def one(self) -> Iterator[None]:
        """Hold one stream; waits for a free one."""
        with self._change:
            while self._busy >= self.allowed():
                self._change.wait(1.0)
            self._busy += 1
        try:
            yield
        finally:
            with self._change:
                self._busy -= 1
                self._change.notify()


class Retrier:
    """Runs a request until it works, cannot work, or its time is up.

    Args:
        deadline_s: time for one operation, retries included.
        clock: time and chance.
        refresh: called once when credentials have expired, before the one retry.
        throttled: called when the server asks to slow down.
        explain: looks closer at a failure; returns it, or a better known one.
    """

    def __init__(
        self,
        deadline_s: float,
        clock: Clock,
        refresh: Callable[[], None],
        throttled: Callable[[], None],
        explain: Callable[[StorageFailure], StorageFailure] = lambda failure: failure,
    ) -> None:
        self._deadline_s = deadline_s
        self._clock = clock
        self._refresh = refresh
        self._throttled = throttled
        self._explain = explain
        self._said_at = float("-inf")
        self._saying = threading.Lock()

    def run(
        self,
        call: Callable[[], T],
        *,
        what: str,
        where: str,
        fresh: bool = False,
        deadline_s: float | None = None,
    ) -> T:
        """Call until it returns.

        Args:
            call: one request; raises StorageFailure.
            what: the operation in words, for messages.
            where: URL, for messages.
            fresh: we wrote this object ourselves just now, so a 404 may be a late copy.
            deadline_s: instead of the deadline of this retrier.

        Raises:
            CogvxError: the leaf that fits the last failure (failures.py).
        """
        started = self._clock.monotonic()
        history = _FailureHistory(fresh)
        while True:
            try:
                return call()
            except StorageFailure as first:
                failure = self._explain(first)
                elapsed_s = self._clock.monotonic() - started
                left_s = (self._deadline_s if deadline_s is None else deadline_s) - elapsed_s
                if not history.may_retry(failure):
                    raise permanent_error(failure, what, where) from failure
                wait_s = self._prepare(failure, history)
                if left_s <= 0:
                    raise deadline_error(failure, what, where, elapsed_s) from failure
                wait_s = min(wait_s, left_s)  # the last try comes at the deadline
                log.info(
                    "storage request repeated",
                    extra={
                        "operation": what,
                        "url": where,
                        "reason": f"{failure.kind.value}: {failure.detail}",
                        "wait_s": round(wait_s, 3),
                    },
                )
                if elapsed_s + wait_s >= SILENT_S:
                    self._say(failure, what, where, left_s)
            self._clock.sleep(wait_s)

    def _say(self, failure: StorageFailure, what: str, where: str, left_s: float) -> None:
        """Tell the user why nothing happens, at a bounded rate."""
        with self._saying:
            now = self._clock.monotonic()
            if now - self._said_at < SAID_EVERY_S:
                return
            self._said_at = now
        reason = f"{failure.kind.value}: {failure.detail}"
        log.warning(
            "retrying for at most %.0f s more: %s of %s (%s)",
            *(left_s, what, where, reason),
            extra={"operation": what, "url": where, "reason": reason, "left_s": round(left_s)},
        )

    def _prepare(self, failure: StorageFailure, history: _FailureHistory) -> float:
        """Do what the failure calls for before the next try; seconds to wait for it."""
        if failure.kind is FailureKind.EXPIRED:
            self._refresh()
        if failure.kind is FailureKind.THROTTLED:
            self._throttled()
        wait_s = self._clock.uniform(0.0, min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2**history.in_a_row))
        history.note(failure)
        return wait_s


class _FailureHistory:
    """The failures so far of one operation."""

    def __init__(self, fresh: bool) -> None:
        self.in_a_row = 0  # failures without a byte of progress; sets the back-off
        self._fresh = fresh
        self._seen: Counter[FailureKind] = Counter()
        self._last_wrong = ""
        self._same_wrong = 0

    def may_retry(self, failure: StorageFailure) -> bool:
        kind = failure.kind
        if kind in ALWAYS_RETRIED:
            return True
        if kind in (FailureKind.CLOCK, FailureKind.EXPIRED):
            return self._seen[kind] == 0
        if kind is FailureKind.WRONG_DATA:
            same = self._same_wrong + 1 if failure.detail == self._last_wrong else 1
            return same < SAME_WRONG_ANSWERS
        if kind is FailureKind.MISSING:
            return self._fresh and self._seen[kind] < FRESH_RETRIES
        return False

    def note(self, failure: StorageFailure) -> None:
        self._seen[failure.kind] += 1
        if failure.kind is not FailureKind.WRONG_DATA:
            self._last_wrong, self._same_wrong = "", 0
        elif failure.detail == self._last_wrong:
            self._same_wrong += 1
        else:
            self._last_wrong, self._same_wrong = failure.detail, 1
        # 2 ** in_a_row must not grow without end during a long outage.
        self.in_a_row = 0 if failure.progressed else min(self.in_a_row + 1, 16)
