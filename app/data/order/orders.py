"""The order of samples: a pure function of a position, so that a run resumes by one number.

Words: a *position* is t * B + j: sample j of the global batch of B samples at optimizer step t.
A *lane* owns a fixed part of every epoch, whatever the number of ranks is; a *window* is the
range in which a lane's samples are shuffled. An *index* numbers the samples of a dataset in the
order of its shards, unshuffled. Explained with a worked example in docs/data_order.md.

The idea of lanes that outlive the world size is mosaicml/streaming's `num_canonical_nodes`.
The arithmetic is part of the product's format: a change reorders the data of running jobs.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Protocol

import numpy as np

from app.distributed.mix import mix, permutation
from app.errors import ConfigError, DataError

# First key of each draw, so that shards, windows, replacements and the mixture never share one.
SHARDS_KEY, WINDOW_KEY, REPLACEMENT_KEY, MIXTURE_KEY = 1, 2, 3, 4
MIXTURE_BLOCK = 1000  # draws of a lane between two points where the weights are met exactly


class Order(Protocol):
    """Which sample is at a position. Implemented by EpochOrder, MixedOrder and SatOrder."""

    def index(self, position: int) -> int:
        """Index of the sample at `position` >= 0."""
        ...

    def replacement(self, position: int, attempt: int) -> int:
        """Index of the sample to try when that at `position` cannot be used: 0, 1, ... in turn.

        A pure function too, so every rank finds the same one; nothing else moves.
        """
        ...

    def steps_for_epochs(self, epochs: int) -> int:
        """Optimizer steps after which every sample was used `epochs` times."""
        ...


def lane_count(batch: int, lanes: int, samples: int) -> int:
    """The largest divisor of the global batch that is <= `lanes` and <= `samples`."""
    limit = min(lanes, samples, batch)
    return next(count for count in range(limit, 0, -1) if batch % count == 0)


class EpochOrder:
    """Every sample exactly once per epoch, shuffled by shards and inside windows.

    Args:
        counts: samples per shard, in the order of the manifest; empty shards are allowed.
        seed: base seed of the run.
        batch: samples per optimizer step over all ranks.
        lanes: upper limit for the number of lanes.
        window: samples that one shuffle covers.

    Raises:
        DataError: no sample at all.
        ConfigError: `batch`, `lanes` or `window` is below 1.
    """

    def __init__(
        self, counts: Sequence[int], *, seed: int, batch: int, lanes: int = 16, window: int = 256
    ) -> None:
        _check_positive(batch=batch, lanes=lanes, window=window)
        self.samples = sum(counts)
        if self.samples == 0:
            raise DataError(
                f"the dataset has no sample ({len(counts)} shards, all empty)",
                where="the data of this run",
                fix="check the path and `cogvx data pack`'s report",
            )
        self.batch, self.window, self.seed = batch, window, seed
        self.lanes = lane_count(batch, lanes, self.samples)
        self.per_lane = batch // self.lanes  # samples that a lane gives to one batch
        self._counts = [int(count) for count in counts]
        self._starts = [0, *accumulate(self._counts)]  # index of each shard's first sample
        self._filled = [shard for shard, count in enumerate(self._counts) if count]
        self._bounds = [lane * self.samples // self.lanes for lane in range(self.lanes + 1)]
        # Lanes drift by at most one epoch; each lane is inside one window at a time, and the
        # prefetcher looks a few windows ahead.
        self._epoch = lru_cache(maxsize=4)(self._shards_of_epoch)
        self._shuffled = lru_cache(maxsize=8 * self.lanes)(self._shuffled_window)

    def index(self, position: int) -> int:
        """Index of the sample at `position`: O(log shards) and no state."""
        lane, draw = lane_and_draw(position, self.batch, self.lanes)
        return self.lane_index(lane, draw)

    def replacement(self, position: int, attempt: int) -> int:
        """Index of the sample at base position mix(seed, 3, epoch, base, attempt) mod N."""
        lane, draw = lane_and_draw(position, self.batch, self.lanes)
        return self.lane_replacement(lane, draw, attempt)

    def lane_index(self, lane: int, draw: int) -> int:
        """Index of sample `draw` (0, 1, ... over all epochs) of a lane."""
        return self._at(*self._epoch_and_base(lane, draw))

    def lane_replacement(self, lane: int, draw: int, attempt: int) -> int:
        """Index of what takes the place of sample `draw` of a lane, in the epoch of that draw."""
        epoch, base = self._epoch_and_base(lane, draw)
        other = mix(self.seed, REPLACEMENT_KEY, epoch, base, attempt) % self.samples
        return self._at(epoch, other)

    def _epoch_and_base(self, lane: int, draw: int) -> tuple[int, int]:
        """The epoch of a lane's draw, and the base position that it takes there."""
        start, stop = self._bounds[lane], self._bounds[lane + 1]
        epoch, i = divmod(draw, stop - start)
        window, offset = divmod(i, self.window)
        return epoch, start + window * self.window + int(
            self._shuffled(epoch, lane, window)[offset]
        )

    def _at(self, epoch: int, base: int) -> int:
        """Index of the sample at a base position of an epoch."""
        shards, ends = self._epoch(epoch)
        place = bisect_right(ends, base)
        first = ends[place - 1] if place else 0
        return self._starts[shards[place]] + base - first

    def steps_for_epochs(self, epochs: int) -> int:
        """Steps until the slowest lane has finished `epochs` epochs."""
        longest = max(b - a for a, b in zip(self._bounds, self._bounds[1:], strict=False))
        return -(-longest * epochs // self.per_lane)

    def _shards_of_epoch(self, epoch: int) -> tuple[list[int], list[int]]:
        """The non-empty shards in this epoch's order, and the base position where each ends."""
        order = permutation(len(self._filled), self.seed, SHARDS_KEY, epoch)
        shards = [self._filled[i] for i in order]
        return shards, list(accumulate(self._counts[shard] for shard in shards))

    def _shuffled_window(self, epoch: int, lane: int, window: int) -> np.ndarray:
        length = self._bounds[lane + 1] - self._bounds[lane]
        size = min(self.window, length - window * self.window)
        return permutation(size, self.seed, WINDOW_KEY, epoch, lane, window)


class MixedOrder:
    """Several datasets, each drawn with its own share; each in its own epoch order.

    Every lane draws in blocks of 1000: a dataset gets its largest-remainder quota of the block,
    the block is shuffled, and the n-th draw of a dataset in a lane is sample n of that lane of
    the dataset's own EpochOrder. So each dataset is used exactly once per its own epoch.

    Args:
        counts: samples per shard, one list per dataset.
        shares: relative number of draws, one number > 0 per dataset.
        seed, batch, lanes, window: as for EpochOrder.

    Raises:
        ConfigError: a share that is not positive, or too small to get one draw of 1000.
    """

    def __init__(
        self,
        counts: Sequence[Sequence[int]],
        shares: Sequence[float],
        *,
        seed: int,
        batch: int,
        lanes: int = 16,
        window: int = 256,
    ) -> None:
        smallest = min(sum(part) for part in counts)
        lanes = lane_count(batch, lanes, max(smallest, 1))
        self._orders = [
            EpochOrder(part, seed=seed, batch=batch, lanes=lanes, window=window) for part in counts
        ]
        self.batch, self.lanes, self.seed = batch, lanes, seed
        self._first = [0, *accumulate(order.samples for order in self._orders)]
        self.quotas = quotas(shares, MIXTURE_BLOCK)
        self._block = lru_cache(maxsize=4 * lanes)(self._shuffled_block)

    def index(self, position: int) -> int:
        """Index in the concatenation of the datasets."""
        dataset, lane, draw = self._drawn(position)
        return self._first[dataset] + self._orders[dataset].lane_index(lane, draw)

    def replacement(self, position: int, attempt: int) -> int:
        """Index of a sample of the same dataset, so that the mixture stays as it is."""
        dataset, lane, draw = self._drawn(position)
        return self._first[dataset] + self._orders[dataset].lane_replacement(lane, draw, attempt)

    def _drawn(self, position: int) -> tuple[int, int, int]:
        """(dataset, lane, which draw of the dataset in that lane)."""
        lane, draw = lane_and_draw(position, self.batch, self.lanes)
        block, i = divmod(draw, MIXTURE_BLOCK)
        datasets, earlier = self._block(lane, block)
        dataset = int(datasets[i])
        return dataset, lane, block * self.quotas[dataset] + int(earlier[i])

    def steps_for_epochs(self, epochs: int) -> int:
        """Steps for as many draws as `epochs` times all samples; an epoch is not exact here."""
        return -(-self._first[-1] * epochs // self.batch)

    def _shuffled_block(self, lane: int, block: int) -> tuple[np.ndarray, np.ndarray]:
        """(1000,) dataset of each draw, (1000,) how often it was drawn earlier in this block."""
        plain = np.repeat(np.arange(len(self.quotas)), self.quotas)
        datasets = plain[permutation(MIXTURE_BLOCK, self.seed, MIXTURE_KEY, lane, block)]
        earlier = np.zeros(MIXTURE_BLOCK, dtype=np.int64)
        for dataset, quota in enumerate(self.quotas):
            earlier[datasets == dataset] = np.arange(quota)
        return datasets, earlier


class SatOrder:
    """Upstream's order (`compat: sat`): with replacement, and the same for every seed.

    Element i is drawn uniformly by a generator that is seeded with i alone, from the datasets
    laid end to end, each repeated as often as its weight says. There are no epochs.
    Source: behaviour of SAT's RandomMappingDataset, measured.

    Args:
        lengths: samples per dataset.
        repeats: how often each dataset counts (`train_data_weights`).
    """

    def __init__(self, lengths: Sequence[int], repeats: Sequence[int] | None = None) -> None:
        repeats = [1] * len(lengths) if repeats is None else repeats
        self._lengths = list(lengths)
        self._first = [0, *accumulate(lengths)]
        self._ends = list(accumulate(n * r for n, r in zip(lengths, repeats, strict=True)))
        if not self._ends or self._ends[-1] == 0:
            raise DataError(
                "the dataset has no sample", where="the data of this run", fix="check the path"
            )

    def index(self, position: int) -> int:
        """Index in the concatenation of the datasets (without repeats)."""
        words = random.Random(position)
        state = np.random.RandomState([words.randint(0, 2**32 - 1) for _ in range(16)])
        return self._mapped(int(state.randint(self._ends[-1])))

    def replacement(self, position: int, attempt: int) -> int:
        """Ours: the original has no rule. Drawn from all datasets, as often as each counts."""
        return self._mapped(mix(0, REPLACEMENT_KEY, 0, position, attempt) % self._ends[-1])

    def _mapped(self, element: int) -> int:
        """Index of an element of the repeated datasets."""
        dataset = bisect_right(self._ends, element)
        start = self._ends[dataset - 1] if dataset else 0
        return self._first[dataset] + (element - start) % self._lengths[dataset]

    def steps_for_epochs(self, epochs: int) -> int:
        """Refused: drawing with replacement has no epochs."""
        raise ConfigError(
            f"epochs is {epochs}, but this order draws with replacement and has no epochs",
            where="args.epochs with order: sat",
            fix="set train_iters, or order: epoch",
        )


def lane_and_draw(position: int, batch: int, lanes: int) -> tuple[int, int]:
    """The lane that gives the sample at `position`, and which of the lane's draws it is."""
    step, j = divmod(position, batch)
    per_lane = batch // lanes
    return j // per_lane, step * per_lane + j % per_lane


def quotas(shares: Sequence[float], block: int) -> list[int]:
    """Whole numbers of draws that sum to `block`, by largest remainder; ties: the first one."""
    total = float(sum(shares))
    if not shares or min(shares) <= 0:
        raise ConfigError(
            f"weights of datasets must be above 0, not {list(shares)}",
            where="args.train_data_weights",
            fix="leave a dataset out instead of giving it 0",
        )
    exact = [block * share / total for share in shares]
    result = [int(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda d: (result[d] - exact[d], d))
    for dataset in by_remainder[: block - sum(result)]:
        result[dataset] += 1
    if 0 in result:
        raise ConfigError(
            f"dataset {result.index(0)} would get less than one draw of {block}",
            where="args.train_data_weights",
            fix="give it a larger weight, or leave it out",
        )
    return result


def _check_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ConfigError(
                f"{name} is {value}, but must be 1 or more",
                where=f"data.order.{name}",
                fix="use a positive whole number",
            )
