"""Training, validation and test data out of one dataset, without a clip in common.

The shuffle that deals out the samples depends on the dataset's length alone, not on a seed or a
rank: the parts are the same in every run, so no run trains on what another one validates.
(Upstream seeds it with the rank: what one rank validates, another trains on.)
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from app.data.batch import Item
from app.data.sources.protocols import SampleId, SizedSource, Source, left_out, sample_id, shard_id
from app.data.video.clip import ClipShape
from app.data.video.sizes import Sizes
from app.distributed.mix import permutation
from app.errors import DataError

SPLIT_KEY = 7  # first key of the permutation, beside those of the orders
PARTS = ("train", "valid", "test")


def members(length: int, shares: Sequence[float], part: str, where: str) -> np.ndarray:
    """Indices of one part of a dataset, ascending.

    Every part with a share gets at least one sample.

    Raises:
        DataError: fewer samples than parts.
    """
    wanted = [share > 0 for share in shares]
    if length < sum(wanted):
        raise DataError(
            f"{length} samples cannot be split into {sum(wanted)} parts",
            where=where,
            fix="name valid_data, or write split: 1,0,0",
        )
    counts = [max(round(length * share), 1) if share > 0 else 0 for share in shares]
    counts[0] = length - sum(counts[1:])
    if counts[0] < 1:  # rounding took the last one
        largest = 1 + int(np.argmax(counts[1:]))
        counts[largest] -= 1 - counts[0]
        counts[0] = 1
    which = PARTS.index(part)
    start = sum(counts[:which])
    return np.sort(permutation(length, 0, SPLIT_KEY)[start : start + counts[which]])


class PartSource:
    """Some samples of a source, in their order."""

    def __init__(self, source: Source, chosen: np.ndarray, part: str) -> None:
        self.inner = source
        self._chosen = chosen
        self._part = part
        ends = list(accumulate(source.shard_sizes()))
        cuts = [bisect_left(chosen, end) for end in ends]
        self._counts = [end - start for start, end in zip([0, *cuts], cuts, strict=False)]

    @property
    def sample_bytes(self) -> int:
        return self.inner.sample_bytes

    def __len__(self) -> int:
        return len(self._chosen)

    def shard_sizes(self) -> Sequence[int]:
        return self._counts

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self._chosen.astype("<i8").tobytes()).hexdigest()
        return f"{self.inner.fingerprint()}/{self._part}:{digest}"

    def read(self, index: int, position: int) -> Item:
        return self.inner.read(int(self._chosen[index]), position)

    def shard_id(self, index: int) -> str:
        return shard_id(self.inner, int(self._chosen[index]))

    def sample_id(self, index: int) -> SampleId:
        return sample_id(self.inner, int(self._chosen[index]))

    def expect(self, index: int) -> None:
        self.inner.expect(int(self._chosen[index]))

    def release(self, index: int) -> None:
        self.inner.release(int(self._chosen[index]))

    def close(self) -> None:
        self.inner.close()


class SizedPartSource(PartSource):
    """The same of a source whose samples can be read at several sizes."""

    def __init__(self, source: SizedSource, chosen: np.ndarray, part: str) -> None:
        super().__init__(source, chosen, part)
        self._sized = source

    @property
    def shape(self) -> ClipShape:
        return self._sized.shape

    def use_shapes(self, shapes: Sequence[ClipShape], of: np.ndarray) -> None:
        inner = np.full(len(self.inner), -1, dtype=np.int64)
        inner[self._chosen] = of
        self._sized.use_shapes(shapes, inner)

    def clip_sizes(self) -> Sizes:
        sizes = self._sized.clip_sizes()
        return [sizes[index] for index in self._chosen]


def part_of(source: Source, shares: Sequence[float], part: str, where: str) -> Source:
    """One part of a source; the source itself when the other parts are empty."""
    if part == PARTS[0] and shares[0] == 1.0:
        return source
    chosen = members(len(source), shares, part, where)
    if isinstance(source, SizedSource):
        return SizedPartSource(source, chosen, part)
    return PartSource(source, chosen, part)


class JoinedSource:
    """Several datasets laid end to end; an index counts through all of them."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = list(sources)
        self._first = [0, *accumulate(len(source) for source in self.sources)]

    @property
    def sample_bytes(self) -> int:
        return max(source.sample_bytes for source in self.sources)

    def __len__(self) -> int:
        return self._first[-1]

    def shard_sizes(self) -> Sequence[int]:
        return [size for source in self.sources for size in source.shard_sizes()]

    def fingerprint(self) -> str:
        return "+".join(source.fingerprint() for source in self.sources)

    def read(self, index: int, position: int) -> Item:
        source, own = self._find(index)
        return source.read(own, position)

    def shard_id(self, index: int) -> str:
        """The shard of a sample; with the number of its dataset where there are several."""
        source, own = self._find(index)
        return self._prefix(index) + shard_id(source, own)

    def sample_id(self, index: int) -> SampleId:
        source, own = self._find(index)
        shard, key = sample_id(source, own)
        return self._prefix(index) + shard, key

    def expect(self, index: int) -> None:
        source, own = self._find(index)
        source.expect(own)

    def release(self, index: int) -> None:
        source, own = self._find(index)
        source.release(own)

    def close(self) -> None:
        for source in self.sources:
            source.close()

    def left_out(self) -> list[tuple[int, str, str, str]]:
        """(dataset, shard, key, reason) of what has no place in the order."""
        several = len(self.sources) > 1
        return [
            (which, f"{which}:" * several + shard, key, reason)
            for which, source in enumerate(self.sources)
            for shard, key, reason in left_out(source)
        ]

    def which(self, index: int) -> int:
        """Which of the datasets a sample belongs to."""
        return next(i for i, end in enumerate(self._first[1:]) if index < end)

    def _prefix(self, index: int) -> str:
        return f"{self.which(index)}:" if len(self.sources) > 1 else ""

    def _find(self, index: int) -> tuple[Source, int]:
        which = self.which(index)
        return self.sources[which], index - self._first[which]
