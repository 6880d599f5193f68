"""Clips of tar shards, local or in a bucket (`data_video.VideoDataset`)."""

from __future__ import annotations

import hashlib
import logging
import threading
from argparse import Namespace
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import accumulate
from typing import Any

import numpy as np

from app.config.schema.data import ShardDataConfig
from app.data.bad_clip import BadClipError
from app.data.batch import Item
from app.data.local_files import LocalFiles
from app.data.shards.captions import Records, TextRules, metadata, sidecar_name, sidecar_records
from app.data.shards.captions import caption as caption_of
from app.data.shards.index import VIDEO, Member
from app.data.shards.manifest import ShardEntry, fingerprint, sizes_key
from app.data.shards.opened import OpenShard, check_content, open_shard
from app.data.shards.survey import Folder, SurveyRules, survey
from app.data.shards.urls import parse_shard_path
from app.data.sources.protocols import Original, identity_of, version_of
from app.data.sources.settings import EMPTY, RANDOM, SAT, SourceSettings, settings_from_args
from app.data.sources.shapes import ClipShapes, kept_sizes, range_reader
from app.data.video import frames
from app.data.video.clip import ClipShape, checked_caption, read_clip
from app.data.video.decoder import VideoFacts
from app.data.video.frames import FrameRequest, Selection
from app.data.video.sizes import ClipSize, Sizes, read_size, sizes_from_json
from app.errors import DataError
from app.storage.objects import ObjectMissingError, Storage
from app.storage.opening import open_storage

log = logging.getLogger(__name__)

OPEN_SHARDS = 64
SIZE_READERS = 16
NAMES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class _Place:
    """A shard of the source: its folder, and its line of the manifest."""

    folder: int
    shard: ShardEntry


class ShardSource:
    """Samples of tar shards, numbered in the order of the shards' names."""

    def __init__(self, params: ShardDataConfig, path: str, settings: SourceSettings) -> None:
        self._params = params
        self._settings = settings
        self._folders: list[Folder] = []
        self._files: list[LocalFiles] = []
        self._places: list[_Place] = []
        self._survey(path)
        if params.nshards is not None:
            del self._places[params.nshards :]
        self._counts = [place.shard.samples for place in self._places]
        self._ends = list(accumulate(self._counts))
        wish = FrameRequest(params.num_frames, params.fps, params.skip_frms_num)
        self._shapes = ClipShapes(ClipShape(wish, *params.image_size))
        self._may_be_missing = settings.missing_captions == EMPTY or settings.caption_rule == SAT
        self._open: OrderedDict[int, OpenShard] = OrderedDict()
        self._sidecars: dict[int, Records] = {}
        self._text = TextRules(params.txt_key, params.meta_names)
        self._lock = threading.Lock()
        self._keys = lru_cache(maxsize=OPEN_SHARDS)(self._keys_of)
        self._fingerprint: str | None = None
        self._check_captions()

    @classmethod
    def create_dataset_function(cls, path: str, args: Namespace, **params: Any) -> ShardSource:
        """The seam that upstream's trainer calls, once per entry of train_data or valid_data."""
        return cls(ShardDataConfig(**params), path, settings_from_args(args))

    @property
    def sample_bytes(self) -> int:
        return self._shapes.bytes

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Item:
        return self.read(index, index)

    def shard_sizes(self) -> Sequence[int]:
        return self._counts

    def fingerprint(self) -> str:
        if self._fingerprint is None:
            self._fingerprint = self._found_fingerprint()
        return self._fingerprint

    def _found_fingerprint(self) -> str:
        shards = fingerprint((str(place.folder), place.shard) for place in self._places)
        sidecars = self._sidecar_digests()
        if not sidecars:
            return shards
        text = "\n".join(
            [shards, *(f"{name} {digest}" for name, digest in sorted(sidecars.items()))]
        )
        return hashlib.sha256(text.encode()).hexdigest()

    def _sidecar_digests(self) -> dict[str, str]:
        """sha256 of every `.meta.jsonl` beside a shard: captions may come from it."""
        wanted = {}
        for place in self._places:
            name, folder = sidecar_name(place.shard.name), self._folders[place.folder]
            if name in folder.entries:
                wanted[f"{place.folder}/{name}"] = (folder.storage, name)

        def digest(where: tuple[Storage, str]) -> str:
            return hashlib.sha256(where[0].read_small(where[1])).hexdigest()

        with ThreadPoolExecutor(SIZE_READERS) as pool:
            return dict(zip(wanted, pool.map(digest, wanted.values()), strict=True))

    @property
    def shape(self) -> ClipShape:
        return self._shapes.configured

    def use_shapes(self, shapes: Sequence[ClipShape], of: np.ndarray) -> None:
        self._shapes.use(shapes, of)

    def clip_sizes(self) -> Sizes:
        """Size and length of every video; kept beside each shard in `<shard>.sizes.json`."""
        places = list(dict.fromkeys(self._places))
        with ThreadPoolExecutor(SIZE_READERS) as pool:
            found = dict(zip(places, pool.map(self._kept_sizes, places), strict=True))
        for place, sizes in found.items():
            if sizes is None:
                found[place] = self._found_sizes(place)
        return [size for place in self._places for size in found[place] or ()]

    def _kept_sizes(self, place: _Place) -> Sizes | None:
        files = self._folders[place.folder].indexes
        data = files.read(sizes_key(place.shard.name))
        return sizes_from_json(data, place.shard.index_sha256, place.shard.samples)

    def _found_sizes(self, place: _Place) -> Sizes:
        """Look through a shard, one process of the node at a time, and keep what was found."""
        folder = self._folders[place.folder]
        index = folder.indexes.index(place.shard)
        storage, name = folder.storage, place.shard.name

        def size(member: Member) -> ClipSize | None:
            read = range_reader(storage, name, member.offset)
            return read_size(read, member.size, self._settings.decoders.get().probe)

        def scan() -> Sizes:
            log.info("reading sizes of videos", extra={"shard": f"{storage.url}/{name}"})
            samples = index.samples() if index is not None else self._opened_samples(place)
            with ThreadPoolExecutor(SIZE_READERS) as pool:
                return list(pool.map(size, [sample[VIDEO] for sample in samples]))

        with folder.indexes.locked():
            digest, count = place.shard.index_sha256, place.shard.samples
            return kept_sizes(folder.indexes, sizes_key(name), digest, count, scan)

    def _opened_samples(self, place: _Place) -> list[dict[str, Member]]:
        return open_shard(self._files[place.folder], place.shard).samples

    def name(self, index: int) -> str:
        which, offset = self._place(index)
        place = self._places[which]
        return f"{self._folders[place.folder].storage.url}/{place.shard.name}#{offset}"

    def identity(self, index: int) -> str:
        place = self._places[self._place(index)[0]]
        entries = self._folders[place.folder].entries
        content = place.shard.sha256 or version_of(entries.get(place.shard.name))
        sidecar = version_of(entries.get(sidecar_name(place.shard.name)))
        names = (self._text.txt_key, *self._text.meta_names)
        return identity_of(content, place.shard.index_sha256, sidecar, names)

    def original(self, index: int) -> Original:
        which, offset = self._place(index)
        shard = self._shard(which)
        sample = shard.samples[offset]
        key = f"{self._places[which].shard.name}:{sample[VIDEO].key}"
        try:
            caption = self._words(which, shard, sample)[1]
        except BadClipError as problem:
            raise problem.named(f"{shard.url}, sample {sample[VIDEO].key}") from problem
        return Original(shard.read(sample[VIDEO]), caption, key)

    def shard_id(self, index: int) -> str:
        """The shard's key, with the number of its folder where there are several."""
        return self._shard_id(self._places[self._place(index)[0]])

    def sample_id(self, index: int) -> tuple[str, str]:
        which, offset = self._place(index)
        return self.shard_id(index), self._keys(which)[offset]

    def read(self, index: int, position: int) -> Item:
        which, offset = self._place(index)
        place = self._places[which]
        try:
            shard = self._shard(which)
            sample = shard.samples[offset]
            key = sample[VIDEO].key
            where = f"{shard.url}, sample {key}"
            try:
                facts, caption = self._words(which, shard, sample)
                shape = self._shapes.at(index)
                rule = partial(self._rule, facts, position, shape.wish)
                video, count = read_clip(
                    shard.read(sample[VIDEO]), shape, rule, self._settings.decoders
                )
            except BadClipError as problem:
                raise problem.named(where) from problem
        finally:
            self._files[place.folder].done(place.shard.name)
        return {
            "mp4": video,
            "txt": caption,
            "num_frames": count,
            "fps": self._params.fps,
            "key": f"{place.shard.name}:{key}",
        }

    def expect(self, index: int) -> None:
        place = self._places[self._place(index)[0]]
        self._files[place.folder].expect(place.shard.name)

    def release(self, index: int) -> None:
        place = self._places[self._place(index)[0]]
        self._files[place.folder].done(place.shard.name)

    def close(self) -> None:
        self._settings.decoders.close()
        with self._lock:
            self._open.clear()

    def _survey(self, path: str) -> None:
        """List, check and index every folder that the path names."""
        patterns = parse_shard_path(path, self._params.include_dirs)
        rules = SurveyRules(self._params.txt_key, self._settings.on_changed_shard)
        for number, folder in enumerate(dict.fromkeys(pattern.folder for pattern in patterns)):
            asked = [pattern for pattern in patterns if pattern.folder == folder]
            found = survey(open_storage(folder), asked, self._settings.cache_dir, rules)
            files = LocalFiles(
                found.storage, found.entries, self._settings.cache, self._settings.prefetcher
            )
            for shard in found.shards:
                files.check_with(shard.name, partial(check_content, found.storage.url, shard))
                self._places.append(_Place(number, shard))
            self._folders.append(found)
            self._files.append(files)

    def _check_captions(self) -> None:
        """Refuse samples without any member that could hold a caption, before the start."""
        lacking = {place.shard.name: place for place in self._places if place.shard.no_caption}
        count = sum(place.shard.no_caption for place in lacking.values())
        if not count or self._may_be_missing:
            return
        names: list[str] = []
        for place in list(lacking.values())[:NAMES_SHOWN]:
            index = self._folders[place.folder].indexes.index(place.shard)
            samples = index.samples() if index else []
            names += [
                f"{place.shard.name}:{sample[VIDEO].key}"
                for sample in samples
                if {"txt", "json", "id", self._params.txt_key}.isdisjoint(sample)
            ]
        raise DataError(
            f"{count} of {len(self)} samples have no caption: {'; '.join(names[:NAMES_SHOWN])}",
            where=self._folders[0].storage.url,
            fix="add .txt members, or set data.missing_captions: empty to train on ''",
        )

    def left_out(self) -> list[tuple[str, str, str]]:
        """(shard, key, reason) of what has no place in the order, by the shards' indexes."""
        found: dict[tuple[str, str], str] = {}
        for place in self._places:
            index = None
            if place.shard.left_out:
                index = self._folders[place.folder].indexes.index(place.shard)
            for key, reason in index.left_out if index is not None else ():
                found[self._shard_id(place), key] = reason
        return [(shard, key, reason) for (shard, key), reason in found.items()]

    def _shard_id(self, place: _Place) -> str:
        return f"{place.folder}/" * (len(self._folders) > 1) + place.shard.name

    def _keys_of(self, which: int) -> tuple[str, ...]:
        """Keys of a shard's samples, without fetching the shard where its index is beside it."""
        place = self._places[which]
        index = self._folders[place.folder].indexes.index(place.shard)
        samples = index.samples() if index is not None else self._shard(which).samples
        return tuple(sample[VIDEO].key for sample in samples)

    def _place(self, index: int) -> tuple[int, int]:
        """(shard, sample in it) of an index."""
        which = bisect_right(self._ends, index)
        return which, index - (self._ends[which] - self._counts[which])

    def _shard(self, which: int) -> OpenShard:
        """The opened shard; the least recently used one makes room."""
        with self._lock:
            shard = self._open.get(which)
            if shard is not None:
                self._open.move_to_end(which)
                return shard
        place = self._places[which]
        files = self._files[place.folder]
        try:
            shard = open_shard(files, place.shard)
        except DataError:
            if not files.discard(place.shard.name):
                raise
            shard = open_shard(files, place.shard)  # the cached copy was damaged: fetched again
        with self._lock:
            self._open[which] = shard
            while len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
        return shard

    def _words(
        self, which: int, shard: OpenShard, sample: Mapping[str, Member]
    ) -> tuple[Mapping[str, object], str]:
        """Metadata and caption of a sample."""
        facts = metadata(sample, shard.read, partial(self._sidecar, which), self._text)
        caption = caption_of(sample, shard.read, facts, self._text)
        return facts, checked_caption(caption, may_be_missing=self._may_be_missing)

    def _sidecar(self, which: int) -> Records:
        """Records of `name.meta.jsonl` beside `name.tar`, by their field `key`."""
        with self._lock:
            if which in self._sidecars:
                return self._sidecars[which]
        place = self._places[which]
        storage = self._folders[place.folder].storage
        try:
            records = sidecar_records(storage.read_small(sidecar_name(place.shard.name)))
        except ObjectMissingError:
            records = {}
        with self._lock:
            self._sidecars[which] = records
            while len(self._sidecars) > OPEN_SHARDS:
                del self._sidecars[next(iter(self._sidecars))]
        return records

    def _rule(
        self, facts: Mapping[str, object], position: int, wish: FrameRequest, video: VideoFacts
    ) -> Selection:
        if self._settings.frame_rule != SAT:
            random_start = self._settings.temporal_crop == RANDOM
            crop = self._settings.crop(position) if random_start else None
            return frames.exact(video.times, wish, crop)
        fps = _number(facts, "fps") or video.fps
        duration_s = _number(facts, "duration") or video.reported / video.fps
        if duration_s < frames.sat_shards_duration_s(fps, wish):
            raise BadClipError("too_short", f"it lasts {duration_s:g} s")
        return frames.sat_shards(
            video.reported, fps, duration_s, wish, self._settings.crop(position)
        )


def _number(facts: Mapping[str, object], name: str) -> float | None:
    """A number that may be written as text; None when there is none above zero."""
    try:
        value = float(facts.get(name))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return value if 0 < value < float("inf") else None
