"""How many samples ahead shards are announced to the downloader: so many seconds of training."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

BATCHES_MEASURED = 32  # the rate is that of the last ones
BATCHES_NEEDED = 4
FIRST_SAMPLES = 512  # until the rate is known
FEWEST_SAMPLES, MOST_SAMPLES = 64, 1 << 16


class Lookahead:
    """Measures how fast samples are used.

    Args:
        seconds: of training that should lie ahead.
        clock: seconds of a clock that never goes back.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._used: deque[tuple[float, int]] = deque(maxlen=BATCHES_MEASURED)

    def note(self, samples: int) -> None:
        """A batch was handed out."""
        self._used.append((self._clock(), samples))

    def samples(self) -> int:
        """Samples that should be announced now."""
        if len(self._used) < BATCHES_NEEDED:
            return FIRST_SAMPLES
        passed = self._used[-1][0] - self._used[0][0]
        used = sum(count for _, count in self._used) - self._used[0][1]
        wished = MOST_SAMPLES if passed <= 0 else self._seconds * used / passed
        return int(min(max(wished, FEWEST_SAMPLES), MOST_SAMPLES))
