"""Clips that `cogvx encode` has encoded, in the place of a source that decodes them.

The order of a run is that of the source underneath: its shards, its lengths and its fingerprint.
A run may change between live and cached samples at any start without a sample moving.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from app.data.bad_clip import BadClipError
from app.data.batch import FIRST_FRAME, LOGVAR, MEAN, TEXT, Item
from app.data.latent_cache import (
    DamagedEntryError,
    LatentCache,
    LatentEntry,
    SampleRecord,
    shard_key,
)
from app.data.local_files import LocalFiles
from app.data.sources.protocols import Originals, Source
from app.data.sources.settings import SourceSettings
from app.data.sources.views import ForwardingSource
from app.errors import DataError
from app.storage.objects import Entry


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of a source is in a cache.

    Attributes:
        records: one per sample, in the order of the source; None where there is none.
        changed: names of samples whose files are others than when they were encoded.
        missing: names of samples that were never encoded, or whose entry is gone.
    """

    records: tuple[SampleRecord | None, ...]
    changed: tuple[str, ...]
    missing: tuple[str, ...]


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


def coverage(
    source: Source, known: Mapping[str, Sequence[SampleRecord]], present: Mapping[str, int]
) -> Coverage:
    """Find the record of every sample of a source; nothing is read but what was listed."""
    records: list[SampleRecord | None] = []
    changed: list[str] = []
    missing: list[str] = []
    for index in range(len(source)):
        name = source.name(index)
        of_name = known.get(name, ())
        identity = source.identity(index)
        fitting = [
            record
            for record in of_name
            if record.identity == identity
            and (not record.key or present.get(record.key) == record.size_bytes)
        ]
        # A part that could not use the clip may have had a bad moment: an entry is better.
        records.append(max(fitting, key=lambda record: bool(record.key), default=None))
        if not fitting:
            is_older = bool(of_name) and all(record.identity != identity for record in of_name)
            (changed if is_older else missing).append(name)
    return Coverage(tuple(records), tuple(changed), tuple(missing))


class LatentSource(ForwardingSource):
    """The samples of `base`, from a cache that covers all of them.

    Args:
        base: gives order and names; its clips are never read.
        cache: holds the entries.
        records: one per sample of `base`.
        settings: node-local cache and prefetcher, for entries in a bucket.
    """

    def __init__(
        self,
        base: Source,
        cache: LatentCache,
        records: Sequence[SampleRecord],
        settings: SourceSettings,
    ) -> None:
        assert len(records) == len(base)
        super().__init__(base)
        self._records = records
        entries = {
            shard_key(record.key): Entry(shard_key(record.key), record.size_bytes, None, None)
            for record in records
            if record.key
        }
        self._files = LocalFiles(cache.storage, entries, settings.cache, settings.prefetcher)
        self._largest = max((record.size_bytes for record in records), default=0)

    @property
    def sample_bytes(self) -> int:
        return self._largest

    def read(self, index: int, position: int) -> Item:
        """Moments and embedding; `position` is not needed, since nothing of it is random."""
        record = self._records[index]
        if not record.key:
            raise BadClipError(
                record.reason, record.detail, where=record.shown, sha256=record.sha256
            )
        key = shard_key(record.key)
        try:
            entry = self._entry(record)
        finally:
            self._files.done(key)
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
        if self._records[index].key:
            self._files.expect(shard_key(self._records[index].key))

    def release(self, index: int) -> None:
        if self._records[index].key:
            self._files.done(shard_key(self._records[index].key))

    def _entry(self, record: SampleRecord) -> LatentEntry:
        """Read an entry; one that is damaged on this node is fetched once more.

        Raises:
            BadClipError: the entry itself is damaged, which is the fault of this one sample.
        """
        place = shard_key(record.key)
        where = f"{self._files.storage.url}/{place}"
        try:
            try:
                return LatentEntry.from_bytes(self._files.read(place), record.key, where)
            except DamagedEntryError:
                if not self._files.discard(place):
                    raise
                return LatentEntry.from_bytes(self._files.read(place), record.key, where)
        except DamagedEntryError as problem:
            raise BadClipError(
                "damaged_entry", f"{problem.what} ({where})", where=record.shown
            ) from problem
