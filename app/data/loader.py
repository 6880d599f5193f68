"""Micro-batches of one rank, in the global order, decoded ahead by background threads.

Which sample comes when is decided by `Order` and `Share` alone; the threads only fill it in, so
their number changes nothing. A thread has its own decoder process, so the decoding runs beside
Python and beside the training step.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import count
from types import TracebackType

from app.config.argument import default_of
from app.config.schema.data import DataConfig, QuarantineConfig
from app.data.batch import Batch, Collate, collate, with_names
from app.data.order.cursor import Cursor
from app.data.order.orders import Order
from app.data.order.share import Share
from app.data.quarantine import Filled, Filler, Quarantine
from app.data.sources.protocols import Source

BATCHES_MEASURED = 32  # the rate is that of the last ones
BATCHES_NEEDED = 4
FIRST_SAMPLES = 512  # until the rate is known
FEWEST_SAMPLES, MOST_SAMPLES = 64, 1 << 16
# Decoded samples in memory at once, whatever the number of workers (49x480x720: 42 of them).
MOST_DECODED_BYTES = 2 << 30


class Lookahead:
    """Measures how fast samples are used.

    Args:
        seconds: of training to stay ahead of.
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
        ahead = MOST_SAMPLES if passed <= 0 else self._seconds * used / passed
        return int(min(max(ahead, FEWEST_SAMPLES), MOST_SAMPLES))


@dataclass(frozen=True, slots=True)
class LoaderSettings:
    """How far ahead to work, and how many bad samples to bear."""

    # Threads with a decoder each; 0 decodes when the next batch is taken.
    num_workers: int = default_of(DataConfig, "num_workers")
    prefetch_factor: int = default_of(DataConfig, "prefetch_factor")  # samples per worker
    quarantine: QuarantineConfig = field(default_factory=QuarantineConfig)
    # Of training: how far shards are announced to the downloader.
    prefetch_s: float = default_of(DataConfig, "prefetch_s")


@dataclass(frozen=True, slots=True)
class _Planned:
    """One micro-batch that will come."""

    positions: list[int]
    indices: list[int]


class Loader:
    """Batches from any step on; `with` or `close()` ends its threads and decoders.

    Args:
        source: the samples.
        order: which sample is at a position.
        share: which positions are this rank's.
        settings: workers and prefetch.
        identity: the cursor at step 0, which names the sequence.
        collate_fn: makes a batch of samples; None stacks them.
    """

    def __init__(
        self,
        source: Source,
        order: Order,
        share: Share,
        *,
        settings: LoaderSettings,
        identity: Cursor,
        collate_fn: Collate | None = None,
    ) -> None:
        self.source = source
        self.order = order
        self.share = share
        self.quarantine = Quarantine(settings.quarantine)
        self._filler = Filler(source, order, self.quarantine)
        self._identity = identity
        self._settings = settings
        self._collate = collate_fn or collate
        self._lookahead = Lookahead(settings.prefetch_s)
        self._closed = False
        self._pool = (
            ThreadPoolExecutor(settings.num_workers, thread_name_prefix="decode")
            if settings.num_workers
            else None
        )

    def __len__(self) -> int:
        """Samples of the dataset."""
        return len(self.source)

    def batches(
        self, start_step: int = 0, stop_step: int | None = None
    ) -> Generator[Batch, None, None]:
        """The micro-batches of optimizer steps start_step .. stop_step - 1 (None: for ever).

        Every step gives `share.accumulation` of them. A sample that cannot be used is replaced
        and noted in `quarantine`. Other errors are raised here, as they are, when their batch is
        due. Closing the iterator cancels what was ahead.
        """
        plan = self._plan(start_step, stop_step)
        ahead: deque[_Planned] = deque()  # announced, not yet begun
        begun: deque[tuple[_Planned, list[Future[Filled]]]] = deque()
        try:
            while True:
                self._announce(plan, ahead)
                self._begin(ahead, begun)
                if begun:
                    planned, futures = begun.popleft()
                elif ahead:
                    planned, futures = ahead.popleft(), []
                else:
                    return
                yield self._batch(planned, futures)
        finally:
            for planned, futures in begun:
                for index, future in zip(planned.indices, futures, strict=True):
                    if future.cancel():
                        self.source.release(index)
            for planned in ahead:
                for index in planned.indices:
                    self.source.release(index)

    def cursor(self, step: int, skipped: Sequence[int] = ()) -> Cursor:
        """Where the data is after `step` optimizer steps."""
        return replace(
            self._identity, t=step, quarantined=self.quarantine.ids(), skipped=tuple(skipped)
        )

    def steps_for_epochs(self, epochs: int) -> int:
        """Optimizer steps for `epochs` passes over the data."""
        return self.order.steps_for_epochs(epochs)

    def close(self) -> None:
        """End the workers and the source; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self.source.close()  # kills the decoders, so that running reads end at once
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _plan(self, start_step: int, stop_step: int | None) -> Iterator[_Planned]:
        steps = count(start_step) if stop_step is None else range(start_step, stop_step)
        for step in steps:
            for micro in range(self.share.accumulation):
                positions = self.share.positions(step, micro)
                yield _Planned(positions, [self.order.index(p) for p in positions])

    def _announce(self, plan: Iterator[_Planned], ahead: deque[_Planned]) -> None:
        """Announce to the source the reads of the next `prefetch_s` seconds."""
        size = self.share.micro_batch
        most = max(self._lookahead.samples(), size)
        while (len(ahead) + 1) * size <= most:
            planned = next(plan, None)
            if planned is None:
                return
            for index in planned.indices:
                self.source.expect(index)
            ahead.append(planned)

    def _begin(
        self, ahead: deque[_Planned], begun: deque[tuple[_Planned, list[Future[Filled]]]]
    ) -> None:
        """Give the workers their next micro-batches, as many as may be in memory."""
        if self._pool is None:
            return
        while ahead and (len(begun) + 1) * self.share.micro_batch <= self._most_samples():
            planned = ahead.popleft()
            pairs = zip(planned.indices, planned.positions, strict=True)
            futures = [self._pool.submit(self._filler.fill, p, i) for i, p in pairs]
            begun.append((planned, futures))

    def _most_samples(self) -> int:
        """Samples decoded or being decoded at once: at least the next batch beside this one."""
        most = self._settings.num_workers * self._settings.prefetch_factor
        if self.source.sample_bytes:
            most = min(most, MOST_DECODED_BYTES // self.source.sample_bytes)
        return max(most, 2 * self.share.micro_batch)

    def _batch(self, planned: _Planned, futures: list[Future[Filled]]) -> Batch:
        pairs = zip(planned.positions, planned.indices, strict=True)
        if futures:
            filled = [future.result() for future in futures]
        else:
            filled = [self._filler.fill(position, index) for position, index in pairs]
        # Read ahead: what the ranks have agreed on since must count as if it was known then.
        filled = [
            self._filler.refill(position, one)
            for position, one in zip(planned.positions, filled, strict=True)
        ]
        for one in filled:
            self.quarantine.note(one.bad)
        items = [one.item for one in filled]
        self._lookahead.note(len(items))
        return with_names(self._collate(items), items, planned.positions)
