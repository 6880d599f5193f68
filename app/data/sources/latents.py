"""Clips that `cogvx encode` has encoded, in the place of a source that decodes them.

The order of a run is that of the source underneath: its shards, its lengths and its fingerprint.
A run may change between live and cached samples at any start without a sample moving.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from app.data.bad_clip import BadClipError
from app.data.batch import FIRST_FRAME, LOGVAR, MEAN, TEXT, Item
from app.data.latent_cache import (
    DamagedEntryError,
    LatentCache,
    LatentEntry,
    Listing,
    SampleRecord,
    packed,
    shard_key,
)
from app.data.latent_table import LatentTable, TableBuilder
from app.data.local_files import LocalFiles
from app.data.sources.protocols import Originals, Source
from app.data.sources.settings import SourceSettings
from app.data.sources.views import ForwardingSource
from app.errors import DataError
from app.storage.objects import Entry

NAME_BYTES = 16  # of a digest that stands for a name: no two of 10^9 names share one
NAMES = np.dtype(f"S{NAME_BYTES}")
IDENTITY_BYTES = 8  # compared between two states of one sample only
BATCH = 1 << 14  # records that are compared at once
# What the records say of a sample, from the least to the best.
NOTHING, OLDER, GONE, BAD, ENTRY = range(5)


@dataclass(frozen=True, eq=False, slots=True)
class Coverage:
    """How much of a source is in a cache.

    Attributes:
        rows: what is known of each sample, in the order of the source.
        changed: indices of samples whose files are others than when they were encoded.
        missing: indices of samples that were never encoded, or whose entry is gone.
        damaged: entries that are there with another size than they were written with.
    """

    rows: TableBuilder
    changed: np.ndarray
    missing: np.ndarray
    damaged: frozenset[str]


@dataclass(frozen=True, slots=True)
class Content:
    """What a sample's entry is keyed by, and the sample itself where it had to be read for that.

    Attributes:
        video_sha256: of the video's bytes; of the pixels for a registered dataset.
        caption: as training uses it.
        shown: the sample's `key` in batches.
        item: the decoded sample, or None.
    """

    video_sha256: str
    caption: str
    shown: str
    item: Item | None = None


def content_of(source: Source, index: int) -> Content:
    """Read a sample's bytes.

    Raises:
        BadClipError: the sample cannot be used.
        DataError: a registered dataset that gives no pixels.
    """
    if isinstance(source, Originals):
        original = source.original(index)
        digest = hashlib.sha256(original.video).hexdigest()
        return Content(digest, original.caption, original.key)
    item = source.read(index, index)
    shown, video = str(item.get("key", f"item {index}")), item["mp4"]
    if not isinstance(video, Tensor):
        raise DataError(
            f"its clip is a {type(video).__name__}, not a tensor",
            where=shown,
            fix="return 'mp4' as a tensor (T, 3, H, W)",
        )
    pixels = hashlib.sha256(repr((str(video.dtype), tuple(video.shape))).encode())
    pixels.update(video.contiguous().view(torch.uint8).numpy().tobytes())
    return Content(pixels.hexdigest(), str(item["txt"]), shown, item)


def coverage(source: Source, records: Iterable[SampleRecord], present: Listing) -> Coverage:
    """Find the record of every sample of a source; nothing is read but what was listed.

    Needs about 50 bytes a sample while it runs, beside the rows and the listing.
    """
    names = _names(source.name(index) for index in range(len(source)))
    identities = _digests(source.identity(index) for index in range(len(source)))
    order = np.argsort(names)
    names = names[order]
    rows = TableBuilder(len(source))
    best = np.zeros(len(source), dtype=np.uint8)
    cut: set[str] = set()
    remaining = iter(records)
    while len(names) and (batch := list(islice(remaining, BATCH))):
        sizes = np.array([record.size_bytes for record in batch], dtype=np.int64)
        there = present.sizes_of(packed([record.key for record in batch]))
        has_key = np.array([bool(record.key) for record in batch])
        is_cut = has_key & (there >= 0) & (there != sizes)
        cut.update(batch[row].key for row in np.flatnonzero(is_cut))
        index, is_here = _found(names, order, batch)
        is_same = identities[index] == _digests(record.identity for record in batch)
        level = np.where(has_key, np.where(there == sizes, ENTRY, GONE), BAD)
        level = np.where(is_here, np.where(is_same, level, OLDER), NOTHING).astype(np.uint8)
        chosen = _best(index, np.where(level > np.maximum(best[index], GONE), level, NOTHING))
        rows.put(index[chosen], [batch[row] for row in chosen])
        np.maximum.at(best, index, level)
    missing = np.flatnonzero((best == NOTHING) | (best == GONE))
    return Coverage(rows, np.flatnonzero(best == OLDER), missing, frozenset(cut))


def _names(names: Iterable[str]) -> np.ndarray:
    """Digests of names; they sort and compare as bytes."""
    found = bytearray()
    for name in names:
        found += _digest(name, NAME_BYTES)
    return np.frombuffer(found, NAMES)


def _digests(identities: Iterable[str]) -> np.ndarray:
    """Digests of identities."""
    found, last, digest = bytearray(), None, b""
    for identity in identities:
        if identity != last:  # all samples of a shard have the same
            last, digest = identity, _digest(identity, IDENTITY_BYTES)
        found += digest
    return np.frombuffer(found, np.uint64)


def _digest(text: str, length: int) -> bytes:
    # A file name that is no UTF-8 has surrogates.
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=length).digest()


def _found(
    names: np.ndarray, order: np.ndarray, batch: Sequence[SampleRecord]
) -> tuple[np.ndarray, np.ndarray]:
    """The sample of each record by its name, and whether there is one.

    Args:
        names: digests, ascending.
        order: index of the sample of each.
        batch: records.
    """
    digests = _names(record.name for record in batch)
    places = np.minimum(np.searchsorted(names, digests), len(names) - 1)
    return order[places], names[places] == digests


def _best(index: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Rows of a batch, one for each index that has a level: the first of its highest level."""
    # A part that could not use the clip may have had a bad moment: an entry is better.
    rows = np.lexsort((-level.astype(int), index))  # stable
    rows = rows[level[rows] > NOTHING]
    return rows[np.diff(index[rows], prepend=-1) > 0]


class LatentSource(ForwardingSource):
    """The samples of `base`, from a cache that covers all of them.

    Args:
        base: gives order and names; its clips are never read.
        cache: holds the entries.
        table: names the entry of each sample of `base`.
        settings: node-local cache and prefetcher, for entries in a bucket.
    """

    def __init__(
        self, base: Source, cache: LatentCache, table: LatentTable, settings: SourceSettings
    ) -> None:
        assert len(table) == len(base)
        super().__init__(base)
        self._table = table
        self._storage = cache.storage
        self._settings = settings
        self._largest = table.largest

    @property
    def sample_bytes(self) -> int:
        return self._largest

    def read(self, index: int, position: int) -> Item:
        """Moments and embedding; `position` is not needed, since nothing of it is random."""
        record = self._table.record(index, self.inner.name(index))
        if not record.key:
            raise BadClipError(
                record.reason, record.detail, where=record.shown, sha256=record.sha256
            )
        try:
            entry = self._entry(index, record)
        finally:
            self.release(index)
        item = {
            MEAN: entry.mean,
            LOGVAR: entry.logvar,
            TEXT: entry.text,
            "txt": entry.caption,
            "num_frames": entry.num_frames,
            "fps": entry.fps,
            "key": record.shown,
        }
        return item if entry.first_frame is None else {**item, FIRST_FRAME: entry.first_frame}

    def expect(self, index: int) -> None:
        if place := self._place(index):
            self._file(index).expect(place)

    def release(self, index: int) -> None:
        if place := self._place(index):
            self._file(index).done(place)

    def _place(self, index: int) -> str:
        """Where the entry of a sample is; "" when it has none."""
        key = self._table.key(index)
        return shard_key(key) if key else ""

    def _file(self, index: int) -> LocalFiles:
        """The entry of one sample: a listing of all of them would be an object each."""
        place = self._place(index)
        listed = {place: Entry(place, self._table.size(index), None, None)}
        return LocalFiles(self._storage, listed, self._settings.cache, self._settings.prefetcher)

    def _entry(self, index: int, record: SampleRecord) -> LatentEntry:
        """Read an entry; one that is damaged on this node is fetched once more.

        Raises:
            BadClipError: the entry itself is damaged, which is the fault of this one sample.
        """
        place, file = shard_key(record.key), self._file(index)
        where = f"{self._storage.url}/{place}"
        try:
            try:
                return LatentEntry.from_bytes(file.read(place), record.key, where)
            except DamagedEntryError:
                if not file.discard(place):
                    raise
                return LatentEntry.from_bytes(file.read(place), record.key, where)
        except DamagedEntryError as problem:
            raise BadClipError(
                "damaged_entry", f"{problem.what} ({where})", where=record.shown
            ) from problem
