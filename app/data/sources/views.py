"""Training, validation and test data out of one dataset, without a clip in common.

The shuffle that deals out the samples depends on the dataset's length alone, not on a seed or a
rank: the parts are the same in every run, so no run trains on what another one validates.
(Upstream seeds it with the rank: what one rank validates, another trains on.)
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import accumulate

import numpy as np

from app.data.batch import Item
from app.data.left_out import LeftOut
from app.data.sources.protocols import SampleId, Shapes, Source
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
    named = [share > 0 for share in shares]
    if length < sum(named):
        raise DataError(
            f"{length} samples cannot be split into {sum(named)} parts",
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


class ForwardingSource:
    """The samples of another source; a subclass overrides what it does differently."""

    def __init__(self, inner: Source) -> None:
        self.inner = inner

    @property
    def sample_bytes(self) -> int:
        return self.inner.sample_bytes

    @property
    def shapes(self) -> Shapes | None:
        return self.inner.shapes

    def __len__(self) -> int:
        return len(self.inner)

    def shard_sizes(self) -> Sequence[int]:
        return self.inner.shard_sizes()

    def fingerprint(self) -> str:
        return self.inner.fingerprint()

    def read(self, index: int, position: int) -> Item:
        source, own = self._find(index)
        return source.read(own, position)

    def name(self, index: int) -> str:
        source, own = self._find(index)
        return source.name(own)

    def identity(self, index: int) -> str:
        source, own = self._find(index)
        return source.identity(own)

    def shard_id(self, index: int) -> str:
        source, own = self._find(index)
        return source.shard_id(own)

    def sample_id(self, index: int) -> SampleId:
        source, own = self._find(index)
        return source.sample_id(own)

    def left_out(self) -> list[LeftOut]:
        """Only a dataset that is read itself and as a whole lists them."""
        return []

    def expect(self, index: int) -> None:
        source, own = self._find(index)
        source.expect(own)

    def release(self, index: int) -> None:
        source, own = self._find(index)
        source.release(own)

    def close(self) -> None:
        self.inner.close()

    def _find(self, index: int) -> tuple[Source, int]:
        """The source of a sample, and its index there."""
        return self.inner, index


class PartShapes:
    """Shapes of some samples of a source; the other ones are never read."""

    def __init__(self, whole: Shapes, chosen: np.ndarray, samples: int) -> None:
        self._whole, self._chosen, self._samples = whole, chosen, samples

    @property
    def configured(self) -> ClipShape:
        return self._whole.configured

    def use(self, shapes: Sequence[ClipShape], of: np.ndarray) -> None:
        of_whole = np.full(self._samples, -1, dtype=np.int64)
        of_whole[self._chosen] = of
        self._whole.use(shapes, of_whole)

    def sizes(self) -> Sizes:
        sizes = self._whole.sizes()
        return [sizes[index] for index in self._chosen]


class PartSource(ForwardingSource):
    """Some samples of a source, in their order."""

    def __init__(self, source: Source, chosen: np.ndarray, part: str) -> None:
        super().__init__(source)
        self._chosen = chosen
        self._part = part
        ends = list(accumulate(source.shard_sizes()))
        cuts = [bisect_left(chosen, end) for end in ends]
        self._counts = [end - start for start, end in zip([0, *cuts], cuts, strict=False)]

    @property
    def shapes(self) -> Shapes | None:
        whole = self.inner.shapes
        return whole and PartShapes(whole, self._chosen, len(self.inner))

    def __len__(self) -> int:
        return len(self._chosen)

    def shard_sizes(self) -> Sequence[int]:
        return self._counts

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self._chosen.astype("<i8").tobytes()).hexdigest()
        return f"{self.inner.fingerprint()}/{self._part}:{digest}"

    def _find(self, index: int) -> tuple[Source, int]:
        return self.inner, int(self._chosen[index])


def part_of(source: Source, shares: Sequence[float], part: str, where: str) -> Source:
    """One part of a source; the source itself when the other parts are empty."""
    if part == PARTS[0] and shares[0] == 1.0:
        return source
    return PartSource(source, members(len(source), shares, part, where), part)


class JoinedSource(ForwardingSource):
    """Several datasets one after the other; an index counts through all of them.

    Args:
        sources: the datasets.
        on_close: ends what they share.
    """

    def __init__(
        self, sources: Sequence[Source], on_close: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(sources[0])
        self.sources = list(sources)
        self._on_close = on_close
        self._first = [0, *accumulate(len(source) for source in self.sources)]

    @property
    def sample_bytes(self) -> int:
        return max(source.sample_bytes for source in self.sources)

    @property
    def shapes(self) -> Shapes | None:
        """Shapes are chosen for each dataset by itself."""
        return None

    def __len__(self) -> int:
        return self._first[-1]

    def shard_sizes(self) -> Sequence[int]:
        return [size for source in self.sources for size in source.shard_sizes()]

    def fingerprint(self) -> str:
        return "+".join(source.fingerprint() for source in self.sources)

    def shard_id(self, index: int) -> str:
        """The shard of a sample; with the number of its dataset where there are several."""
        return self._prefix(self.which(index)) + super().shard_id(index)

    def sample_id(self, index: int) -> SampleId:
        shard, key = super().sample_id(index)
        return self._prefix(self.which(index)) + shard, key

    def left_out(self) -> list[LeftOut]:
        return [
            LeftOut(self._prefix(which) + one.shard, one.key, one.reason, which)
            for which, source in enumerate(self.sources)
            for one in source.left_out()
        ]

    def close(self) -> None:
        for source in self.sources:
            source.close()
        self._on_close()

    def which(self, index: int) -> int:
        """Which of the datasets a sample belongs to."""
        return next(i for i, end in enumerate(self._first[1:]) if index < end)

    def _prefix(self, which: int) -> str:
        return f"{which}:" if len(self.sources) > 1 else ""

    def _find(self, index: int) -> tuple[Source, int]:
        which = self.which(index)
        return self.sources[which], index - self._first[which]
