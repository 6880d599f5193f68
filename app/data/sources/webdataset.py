"""Clips of tar shards, local or in a bucket (`data_video.VideoDataset`)."""

from __future__ import annotations

import hashlib
import logging
import random
from argparse import Namespace
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from functools import cached_property, lru_cache, partial
from itertools import accumulate
from typing import Any

from app.config.schema.data import ShardDataConfig
from app.data.bad_clip import BadClipError
from app.data.left_out import LeftOut
from app.data.local_files import LocalFiles
from app.data.names import checked_address
from app.data.shards.captions import Records, TextRules, metadata, read_sidecar, sidecar_name
from app.data.shards.captions import caption as caption_of
from app.data.shards.index import ShardIndex, video_of
from app.data.shards.manifest import ShardEntry, fingerprint, sizes_key
from app.data.shards.opened import OpenShard, check_content, open_shard
from app.data.shards.survey import Folder, SurveyRules, survey
from app.data.shards.urls import parse_shard_path
from app.data.sources.protocols import Original, SampleId, identity_of, object_version
from app.data.sources.settings import EMPTY, SAT, SourceSettings, settings_from_args
from app.data.sources.video_source import READERS, VideoPlace, VideoSource, kept_sizes
from app.data.video import frames
from app.data.video.clip import ClipShape, checked_caption
from app.data.video.decoder import VideoFacts
from app.data.video.frames import FrameRequest, Selection
from app.data.video.sizes import ClipSize, Sizes, sizes_from_json
from app.distributed.shared_work import SharedWork
from app.errors import DataError
from app.storage.opening import is_remote, open_storage

log = logging.getLogger(__name__)

OPEN_SHARDS = 64
NAMES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class _SourceShard:
    """A shard of the source: the number of its folder, and its line of the manifest."""

    folder: int
    entry: ShardEntry


class ShardSource(VideoSource):
    """Samples of tar shards, numbered in the order of the shards' names."""

    def __init__(self, params: ShardDataConfig, path: str, settings: SourceSettings) -> None:
        request = FrameRequest(params.num_frames, params.fps, params.skip_frms_num)
        super().__init__(ClipShape(request, *params.image_size), settings)
        self._params = params
        self._folders: list[Folder] = []
        self._files: list[LocalFiles] = []
        self._shards: list[_SourceShard] = []
        self._survey(path)
        if params.nshards is not None:
            del self._shards[params.nshards :]
        self._counts = [shard.entry.samples for shard in self._shards]
        self._ends = list(accumulate(self._counts))
        self._may_be_missing = settings.missing_captions == EMPTY or settings.caption_rule == SAT
        self._text = TextRules(params.txt_key, params.meta_names)
        self._opened = lru_cache(maxsize=OPEN_SHARDS)(self._open)
        self._sidecar = lru_cache(maxsize=OPEN_SHARDS)(self._read_sidecar)
        self._keys = lru_cache(maxsize=OPEN_SHARDS)(self._keys_of)
        self._check_captions()

    @classmethod
    def create_dataset_function(cls, path: str, args: Namespace, **params: Any) -> ShardSource:
        """The seam that upstream's trainer calls, once per entry of train_data or valid_data."""
        return cls(ShardDataConfig(**params), path, settings_from_args(args))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def shard_sizes(self) -> Sequence[int]:
        return self._counts

    @cached_property
    def _fingerprint(self) -> str:
        shards = fingerprint((str(shard.folder), shard.entry) for shard in self._shards)
        sidecars = self._sidecar_digests()
        if not sidecars:
            return shards
        text = "\n".join(
            [shards, *(f"{name} {digest}" for name, digest in sorted(sidecars.items()))]
        )
        return hashlib.sha256(text.encode()).hexdigest()

    def fingerprint(self) -> str:
        return self._fingerprint

    def _sidecar_digests(self) -> dict[str, str]:
        """sha256 of every `.meta.jsonl` beside a shard: captions may come from it."""
        named = ((one.folder, sidecar_name(one.entry.name)) for one in self._shards)
        return {
            f"{folder}/{name}": self._folders[folder].sidecars[name]
            for folder, name in named
            if name in self._folders[folder].sidecars
        }

    def _sizes(self) -> Sizes:
        """Kept beside each shard in `<shard>.sizes.json`."""
        shards = list(dict.fromkeys(self._shards))
        are_remote = all(is_remote(folder.storage.url) for folder in self._folders)
        shared = self._settings.shared_work if are_remote else SharedWork()
        rows = shared.divided(shards, partial(self._size_rows, alone=shared.is_alone))
        found = {
            shard: [None if size is None else ClipSize(*size) for size in sizes]
            for shard, sizes in zip(shards, rows, strict=True)
        }
        return [size for shard in self._shards for size in found[shard]]

    def _size_rows(
        self, shards: Sequence[_SourceShard], *, alone: bool
    ) -> list[list[Sequence[float] | None]]:
        """Sizes of the videos of each shard, as JSON."""
        with ThreadPoolExecutor(READERS) as pool:
            kept = list(pool.map(self._kept_sizes, shards))
        found = (
            self._found_sizes(shard, alone=alone) if sizes is None else sizes
            for shard, sizes in zip(shards, kept, strict=True)
        )
        return [[None if size is None else astuple(size) for size in sizes] for sizes in found]

    def _kept_sizes(self, shard: _SourceShard) -> Sizes | None:
        data = self._folders[shard.folder].indexes.read(sizes_key(shard.entry.name))
        return sizes_from_json(data, shard.entry.index_sha256, shard.entry.samples)

    def _found_sizes(self, shard: _SourceShard, *, alone: bool) -> Sizes:
        """Scan a shard, and keep what was found."""
        folder, entry = self._folders[shard.folder], shard.entry

        def scan() -> Sizes:
            log.info("reading sizes of videos", extra={"shard": self._url(shard)})
            index = self._index(shard)
            opened = index or open_shard(self._files[shard.folder], entry).index
            videos = [video_of(sample) for sample in opened.samples()]
            places = [VideoPlace(entry.name, video.offset, video.size) for video in videos]
            return self._scanned_sizes(folder.storage, places)

        key = sizes_key(entry.name)
        return kept_sizes(
            folder.indexes, key, entry.index_sha256, entry.samples, scan, in_turns=alone
        )

    def name(self, index: int) -> str:
        which, offset = self._locate(index)
        return f"{self._url(self._shards[which])}#{offset}"

    def identity(self, index: int) -> str:
        shard = self._shards[self._locate(index)[0]]
        entries = self._folders[shard.folder].entries
        content = shard.entry.sha256 or object_version(entries.get(shard.entry.name))
        sidecar = object_version(entries.get(sidecar_name(shard.entry.name)))
        names = (self._text.txt_key, *self._text.meta_names)
        facts = (content, shard.entry.index_sha256, sidecar, names)
        return identity_of(*facts, *self._settings.prefix_fact)

    def original(self, index: int) -> Original:
        which, offset = self._locate(index)
        shard = self._opened(which)
        sample = shard.samples[offset]
        key = video_of(sample).key
        where = f"{shard.url}, sample {key}"
        try:
            facts = metadata(sample, shard.read, partial(self._sidecar, which), self._text)
            text = caption_of(sample, shard.read, facts, self._text)
            caption = checked_caption(text, may_be_missing=self._may_be_missing)
            caption = self._settings.prefixed(caption)
        except BadClipError as problem:
            raise problem.named(where) from problem
        shown = f"{self._shards[which].entry.name}:{key}"
        return Original(shard.read(video_of(sample)), caption, shown, where, facts)

    def shard_id(self, index: int) -> str:
        """The shard's key, with the number of its folder where there are several."""
        return self._shard_id(self._shards[self._locate(index)[0]])

    def sample_id(self, index: int) -> SampleId:
        which, offset = self._locate(index)
        return self.shard_id(index), self._keys(which)[offset]

    def close(self) -> None:
        super().close()
        self._opened.cache_clear()

    def _survey(self, path: str) -> None:
        """List, check and index every folder that the path names."""
        path = checked_address(path, "the address of a dataset")
        patterns = parse_shard_path(path, self._params.include_dirs)
        rules = SurveyRules(self._params.txt_key, self._settings.on_changed_shard)
        for number, folder in enumerate(dict.fromkeys(pattern.folder for pattern in patterns)):
            here = [pattern for pattern in patterns if pattern.folder == folder]
            storage = open_storage(folder, follow_links=True)
            found = survey(
                storage, here, self._settings.cache_dir, rules, self._settings.shared_work
            )
            files = LocalFiles(
                found.storage, found.entries, self._settings.cache, self._settings.prefetcher
            )
            for shard in found.shards:
                files.check_with(shard.name, partial(check_content, found.storage.url, shard))
                self._shards.append(_SourceShard(number, shard))
            self._folders.append(found)
            self._files.append(files)

    def _check_captions(self) -> None:
        """Refuse samples without any member that could hold a caption, before the start."""
        lacking = {shard.entry.name: shard for shard in self._shards if shard.entry.no_caption}
        count = sum(shard.entry.no_caption for shard in lacking.values())
        if not count or self._may_be_missing:
            return
        names = [
            f"{shard.entry.name}:{video_of(sample).key}"
            for shard in list(lacking.values())[:NAMES_SHOWN]
            if (index := self._index(shard)) is not None
            for sample in index.samples()
            if {"txt", "json", "id", self._params.txt_key}.isdisjoint(sample)
        ]
        raise DataError(
            f"{count} of {len(self)} samples have no caption: {'; '.join(names[:NAMES_SHOWN])}",
            where=self._folders[0].storage.url,
            fix="add .txt members, or set data.missing_captions: empty to train on ''",
        )

    def left_out(self) -> list[LeftOut]:
        """By the shards' indexes."""
        found = {
            (self._shard_id(shard), key): reason
            for shard in self._shards
            if shard.entry.left_out and (index := self._index(shard)) is not None
            for key, reason in index.left_out
        }
        return [LeftOut(shard, key, reason) for (shard, key), reason in found.items()]

    def _shard_id(self, shard: _SourceShard) -> str:
        return f"{shard.folder}/" * (len(self._folders) > 1) + shard.entry.name

    def _url(self, shard: _SourceShard) -> str:
        return f"{self._folders[shard.folder].storage.url}/{shard.entry.name}"

    def _index(self, shard: _SourceShard) -> ShardIndex | None:
        """The index that is kept of a shard; None where there is none that fits it."""
        return self._folders[shard.folder].indexes.index(shard.entry)

    def _keys_of(self, which: int) -> tuple[str, ...]:
        """Keys of a shard's samples, without fetching the shard where its index is beside it."""
        index = self._index(self._shards[which]) or self._opened(which).index
        return tuple(video_of(sample).key for sample in index.samples())

    def _locate(self, index: int) -> tuple[int, int]:
        """(shard, sample in it) of an index."""
        which = bisect_right(self._ends, index)
        return which, index - (self._ends[which] - self._counts[which])

    def _file(self, index: int) -> tuple[LocalFiles, str]:
        shard = self._shards[self._locate(index)[0]]
        return self._files[shard.folder], shard.entry.name

    def _open(self, which: int) -> OpenShard:
        shard = self._shards[which]
        files = self._files[shard.folder]
        try:
            return open_shard(files, shard.entry)
        except DataError:
            if not files.discard(shard.entry.name):
                raise
            return open_shard(files, shard.entry)  # the cached copy was damaged: fetched again

    def _read_sidecar(self, which: int) -> Records:
        shard = self._shards[which]
        return read_sidecar(self._folders[shard.folder].storage, shard.entry.name)

    def _sat_frames(
        self, original: Original, position: int, request: FrameRequest, video: VideoFacts
    ) -> Selection:
        return sat_selection(original.metadata, request, video, self._settings.crop(position))


def sat_selection(
    metadata: Mapping[str, object], request: FrameRequest, video: VideoFacts, crop: random.Random
) -> Selection:
    """Frames of a sample by upstream's rule, which asks the metadata first.

    Raises:
        BadClipError: the clip is too short.
    """
    fps = _number(metadata, "fps") or video.fps
    duration_s = _number(metadata, "duration") or video.reported / video.fps
    if duration_s < frames.sat_shards_duration_s(fps, request):
        raise BadClipError("too_short", f"it lasts {duration_s:g} s")
    return frames.sat_shards(video.reported, fps, duration_s, request, crop)


def _number(facts: Mapping[str, object], name: str) -> float | None:
    """A number that may be written as text; None when there is none above zero."""
    try:
        value = float(facts.get(name))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return value if 0 < value < float("inf") else None
