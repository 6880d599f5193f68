"""The body of an answer, read block by block; a connection that drips is given up."""

from __future__ import annotations

import time
from collections.abc import Callable

from app.storage.failures import FailureKind, StorageFailure
from app.storage.settings import StorageSettings

# Small enough to notice a connection that drips, large enough to cost no time.
BLOCK_BYTES = 128 * 1024


def drain(
    read: Callable[[int], bytes],
    sink: Callable[[bytes], None],
    settings: StorageSettings,
    count: int | None,
    limit: int | None = None,
) -> None:
    """Hand `count` bytes, or all up to the end, to `sink`.

    Args:
        read: at most so many bytes; nothing at the end; raises StorageFailure.
        settings: what counts as too slow.
        limit: most bytes to accept where `count` is None.

    Raises:
        StorageFailure: CONNECTION, SLOW or REQUEST (more than `limit`).
    """
    arrived, window_bytes, window_started = 0, 0, time.monotonic()
    while count is None or arrived < count:
        try:
            block = read(BLOCK_BYTES if count is None else min(BLOCK_BYTES, count - arrived))
        except StorageFailure as failure:
            failure.progressed = arrived > 0
            raise
        if not block:
            break
        sink(block)
        arrived, window_bytes = arrived + len(block), window_bytes + len(block)
        if limit is not None and arrived > limit:
            raise StorageFailure(FailureKind.REQUEST, f"the page has over {limit} bytes")
        seconds = time.monotonic() - window_started
        if seconds >= settings.slow_window_s:
            if window_bytes < settings.slow_bytes_per_s * seconds and arrived != count:
                speed = f"{window_bytes / seconds / 1024:.1f} KiB/s"
                raise StorageFailure(FailureKind.SLOW, speed, progressed=True)
            window_bytes, window_started = 0, time.monotonic()
    if count is not None and arrived < count:
        detail = f"the answer ended after {arrived} of {count} bytes"
        raise StorageFailure(FailureKind.CONNECTION, detail, progressed=arrived > 0)


def check_etag(expected: str | None, found: str | None) -> None:
    """Raise StorageFailure (CHANGED) when both are known and differ."""
    if expected and found and expected != found:
        raise StorageFailure(
            FailureKind.CHANGED, f"its ETag was {expected} and is {found}: it changed"
        )
