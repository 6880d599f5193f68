"""The order of samples of a run with buckets: each step takes its samples from one bucket.

Every bucket has an order of its own over its clips. Which bucket a step belongs to is a schedule
by epochs: in epoch e each bucket gets as many steps as it needs so that all its clips were used
e + 1 times, and the steps of an epoch are shuffled by `permutation(steps, seed, 6, e)`. So buckets
never drift apart by more than a batch, and a clip is used once per epoch of its bucket.
Pure functions of the position, as in `order.py`. Explained in docs/data_order.md.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from app.data.order.orders import Order
from app.data.order.share import Share
from app.distributed.mix import permutation
from app.errors import DataError

SCHEDULE_KEY = 6  # first key of the permutation, beside those of order.py and source.py
# Makes the order inside a bucket: samples per shard, one list per dataset, and the batch.
MakeOrder = Callable[[Sequence[Sequence[int]], int], Order]


class BucketOrder:
    """Which sample is at a position, when every step takes one bucket.

    Position t * stride + j is sample j of step t; `stride` is the largest batch of a bucket, and
    j below the batch of the step's own one.

    Args:
        counts: samples per shard, one list per dataset.
        bucket_of: (N,) bucket of each sample of all datasets; -1: not used.
        batches: global batch of each bucket.
        make: the order inside a bucket.
        seed: base seed of the run.

    Raises:
        DataError: no sample in any bucket.
    """

    def __init__(
        self,
        counts: Sequence[Sequence[int]],
        bucket_of: np.ndarray,
        batches: Sequence[int],
        make: MakeOrder,
        seed: int,
    ) -> None:
        self.batches, self.stride = list(batches), max(batches)
        self._seed = seed
        self._members: list[np.ndarray] = []  # indices of each bucket's samples
        self._orders: list[Order | None] = []  # None: an empty bucket
        for bucket, batch in enumerate(batches):
            mine = bucket_of == bucket
            self._members.append(np.flatnonzero(mine))
            filled = [part for part in _counts_within(counts, mine) if sum(part)]
            self._orders.append(make(filled, batch) if filled else None)
        if not any(self._orders):
            raise DataError(
                "no clip fits any bucket",
                where="data.buckets",
                fix="check the data with `cogvx data check`: its videos cannot be used",
            )
        self._epoch = lru_cache(maxsize=4)(self._schedule_of_epoch)
        self._place = lru_cache(maxsize=64)(self._place_of)  # called once per sample

    def bucket_of_step(self, step: int) -> int:
        """The bucket whose samples step `step` uses."""
        return self._place(step)[0]

    def index(self, position: int) -> int:
        """Index of the sample at `position`."""
        bucket, order, own = self._inside(position)
        return int(self._members[bucket][order.index(own)])

    def replacement(self, position: int, attempt: int) -> int:
        """Index of a sample of the same bucket, to try in place of the one at `position`."""
        bucket, order, own = self._inside(position)
        return int(self._members[bucket][order.replacement(own, attempt)])

    def steps_for_epochs(self, epochs: int) -> int:
        """Steps after which every sample of every bucket was used `epochs` times."""
        return sum(order.steps_for_epochs(epochs) for order in self._orders if order is not None)

    def samples_of_bucket(self, bucket: int) -> int:
        """Clips that a bucket has."""
        return len(self._members[bucket])

    def _inside(self, position: int) -> tuple[int, Order, int]:
        """(bucket, its order, the position in that order) of a position."""
        step, j = divmod(position, self.stride)
        bucket, turn = self._place(step)
        batch, order = self.batches[bucket], self._orders[bucket]
        assert order is not None
        assert j < batch, f"position {position} is beyond the batch of its bucket"
        return bucket, order, turn * batch + j

    def _place_of(self, step: int) -> tuple[int, int]:
        """(bucket, how many steps it had before) of a step."""
        epoch = self._epoch_of(step)
        buckets, earlier = self._epoch(epoch)
        i = step - self.steps_for_epochs(epoch)
        bucket = int(buckets[i])
        order = self._orders[bucket]
        assert order is not None
        return bucket, order.steps_for_epochs(epoch) + int(earlier[i])

    def _epoch_of(self, step: int) -> int:
        """The epoch of a step: the last one that begins at or before it."""
        high = 1
        while self.steps_for_epochs(high) <= step:
            high *= 2
        return bisect_right(range(high), step, key=self.steps_for_epochs) - 1

    def _schedule_of_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(steps,) bucket of each step, (steps,) how often it came earlier in this epoch."""
        steps = [
            0
            if order is None
            else order.steps_for_epochs(epoch + 1) - order.steps_for_epochs(epoch)
            for order in self._orders
        ]
        plain = np.repeat(np.arange(len(steps)), steps)
        buckets = plain[permutation(len(plain), self._seed, SCHEDULE_KEY, epoch)]
        earlier = np.zeros(len(plain), dtype=np.int64)
        for bucket, count in enumerate(steps):
            earlier[buckets == bucket] = np.arange(count)
        return buckets, earlier


@dataclass(frozen=True, slots=True)
class BucketShare(Share):
    """One rank's part of every step; the micro-batch is that of the step's bucket.

    `micro_batch` is the largest one. `micro_batches` holds one per bucket.
    """

    order: BucketOrder | None = field(default=None, compare=False)
    micro_batches: tuple[int, ...] = ()

    def positions(self, step: int, micro: int) -> list[int]:
        """Positions of micro-step `micro` (0 .. accumulation - 1) of optimizer step `step`."""
        assert self.order is not None
        assert 0 <= micro < self.accumulation
        size = self.micro_batches[self.order.bucket_of_step(step)]
        first = step * self.order.stride + (self.rank * self.accumulation + micro) * size
        return list(range(first, first + size))


def share_of_buckets(share: Share, order: BucketOrder) -> BucketShare:
    """A rank's share of steps with buckets. Every batch divides by ranks x accumulation."""
    parts = share.world_size * share.accumulation
    micro_batches = tuple(batch // parts for batch in order.batches)
    return BucketShare(
        share.rank,
        share.world_size,
        max(micro_batches),
        share.accumulation,
        order=order,
        micro_batches=micro_batches,
    )


def _counts_within(counts: Sequence[Sequence[int]], mine: np.ndarray) -> list[list[int]]:
    """Samples per shard, as `counts`, of those that are in `mine`."""
    result, first = [], 0
    for part in counts:
        inside = []
        for size in part:
            inside.append(int(np.count_nonzero(mine[first : first + size])))
            first += size
        result.append(inside)
    return result
