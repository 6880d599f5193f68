"""Clips of a folder: videos/ beside labels/, local or in a bucket (`data_video.SFTDataset`)."""

from __future__ import annotations

import hashlib
import json
import logging
from argparse import Namespace
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from app.config.schema.data import SFTDataConfig
from app.data.bad_clip import BadClipError
from app.data.local_files import LocalFiles
from app.data.shards.survey import IndexFiles
from app.data.sources.protocols import (
    LeftOut,
    Original,
    SampleId,
    identity_of,
    object_version,
)
from app.data.sources.settings import EMPTY, SAT, SourceSettings, settings_from_args
from app.data.sources.video_source import READERS, VideoPlace, VideoSource, kept_sizes
from app.data.video import frames
from app.data.video.clip import ClipShape, caption_text, checked_caption
from app.data.video.decoder import VideoFacts
from app.data.video.frames import FrameRequest, Selection
from app.data.video.sizes import Sizes
from app.errors import DataError, InputMissingError
from app.storage.objects import Entry, ObjectMissingError, Storage
from app.storage.opening import is_remote, open_storage

log = logging.getLogger(__name__)

VIDEO_SUFFIX = ".mp4"  # exactly: upstream leaves .MP4 and other kinds out
VIDEOS, LABELS = "videos", "labels"
BLANK_BYTES = 16  # a caption file this small may be blank: read before the start
NAMES_SHOWN = 5
SIZES_NAME = "dataset.sizes.json"


class SFTSource(VideoSource):
    """A folder of videos with one caption file each, in the order of their names."""

    def __init__(self, params: SFTDataConfig, path: str, settings: SourceSettings) -> None:
        request = FrameRequest(params.max_num_frames, params.fps, params.skip_frms_num)
        super().__init__(ClipShape(request, *params.video_size), settings)
        self._storage, entries, within = list_folder(path)
        self.keys = [key for key in sorted(entries) if is_video(key, within)]
        if not self.keys:
            raise no_videos(path, entries)
        self._files = LocalFiles(self._storage, entries, settings.cache, settings.prefetcher)
        self._captions = CaptionFiles(self._storage, entries, settings)
        self._captions.check(self.keys)
        other = sum(1 for key in entries if key.lower().endswith(VIDEO_SUFFIX)) - len(self.keys)
        if other > 0 and not within:
            log.warning("files are not read: their suffix is not .mp4", extra={"files": other})

    @classmethod
    def create_dataset_function(cls, path: str, args: Namespace, **params: Any) -> SFTSource:
        """The seam that upstream's trainer calls, once per entry of train_data or valid_data."""
        return cls(SFTDataConfig(**params), path, settings_from_args(args))

    def __len__(self) -> int:
        return len(self.keys)

    def shard_sizes(self) -> Sequence[int]:
        return [len(self.keys)]

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for key in self.keys:
            digest.update(json.dumps([key, self._files.entries[key].size_bytes]).encode() + b"\n")
        return digest.hexdigest()

    def name(self, index: int) -> str:
        return self.keys[index]

    def identity(self, index: int) -> str:
        key = self.keys[index]
        return identity_of(object_version(self._files.entries[key]), self._captions.version(key))

    def original(self, index: int) -> Original:
        key = self.keys[index]
        where = f"{self._storage.url}/{key}"
        try:
            caption = self._captions.read(key)
        except BadClipError as problem:
            raise problem.named(where) from problem
        return Original(self._files.read(key), caption, key, where)

    def shard_id(self, index: int) -> str:
        """A folder is one shard without a name."""
        return ""

    def sample_id(self, index: int) -> SampleId:
        return "", self.keys[index]

    def left_out(self) -> list[LeftOut]:
        """Every video gets an index."""
        return []

    def _file(self, index: int) -> tuple[LocalFiles, str]:
        return self._files, self.keys[index]

    def _sizes(self) -> Sizes:
        """Kept in `dataset.sizes.json` beside the folders."""
        places = [VideoPlace(key, 0, self._files.entries[key].size_bytes) for key in self.keys]

        def scan() -> Sizes:
            log.info("reading sizes of videos", extra={"videos": len(places)})
            return self._scanned_sizes(self._storage, places)

        files = IndexFiles(self._storage, self._settings.cache_dir)
        return kept_sizes(files, SIZES_NAME, self.fingerprint(), len(places), scan)

    def _sat_frames(
        self, original: Original, position: int, request: FrameRequest, video: VideoFacts
    ) -> Selection:
        return frames.sat_folder(video.reported, video.fps, request)


class CaptionFiles:
    """The caption file of each video, by one of two rules.

    `relative`: the same path with the last folder `videos` named `labels`, else beside the
    video; the whole text. `sat`: upstream's text replacement in the full path, also inside other
    names; the first line; "" where the file is missing.
    """

    def __init__(
        self, storage: Storage, entries: Mapping[str, Entry], settings: SourceSettings
    ) -> None:
        self._storage = storage
        self._root = storage.url
        self._entries = entries
        self._sat = settings.caption_rule == SAT
        self._may_be_missing = self._sat or settings.missing_captions == EMPTY

    def check(self, keys: Sequence[str]) -> None:
        """Find missing and blank captions before the run starts.

        Raises:
            DataError: with the count and the first names, unless they may be missing.
        """
        if self._may_be_missing and not self._sat:
            return
        with ThreadPoolExecutor(READERS) as pool:
            problems = [p for p in pool.map(self._problem, keys) if p is not None]
        if problems:
            names = "; ".join(problems[:NAMES_SHOWN])
            more = (
                f"; and {len(problems) - NAMES_SHOWN} more" if len(problems) > NAMES_SHOWN else ""
            )
            raise DataError(
                f"{len(problems)} of {len(keys)} videos have no caption: {names}{more}",
                where=self._root,
                fix="write the captions, or set data.missing_captions: empty to train on ''",
            )

    def read(self, key: str) -> str:
        """The caption of a video.

        Raises:
            BadClipError: missing, blank, too long or not UTF-8.
        """
        data = self._data(key)
        text = None if data is None else caption_text(data)
        if self._sat:
            if text is None:
                return ""
            lines = text.splitlines()
            if not lines:
                raise BadClipError("empty_caption", "its caption file is empty")
            return lines[0]
        return checked_caption(text, may_be_missing=self._may_be_missing)

    def version(self, key: str) -> tuple[object, ...]:
        """Distinguishes the caption file of a video from its next version."""
        path = self._local_path(key)
        if path is None:
            return object_version(self._entries.get(self._key(key)))
        found = path.stat() if path.is_file() else None
        return (found.st_size, found.st_mtime) if found else ()

    def _problem(self, key: str) -> str | None:
        """What is wrong with the caption of a video, where that is cheap to find."""
        if self._sat:
            is_empty = self.version(key)[:1] == (0,)
            return f"{key} (its caption file is empty)" if is_empty else None
        entry = self._entries.get(label_key(key))
        if entry is None:
            return f"{key} (no {label_key(key)})"
        if entry.size_bytes <= BLANK_BYTES and not (self._data(key) or b"").strip():
            return f"{key} ({entry.key} is blank)"
        return None

    def _key(self, key: str) -> str:
        return sat_label_path(key) if self._sat else label_key(key)

    def _local_path(self, key: str) -> Path | None:
        """Upstream replaces text in the full path, so the file may be outside of the folder."""
        is_local = self._sat and not is_remote(self._root)
        return Path(sat_label_path(f"{self._root}/{key}")) if is_local else None

    def _data(self, key: str) -> bytes | None:
        path = self._local_path(key)
        if path is not None:
            return path.read_bytes() if path.is_file() else None
        try:
            return self._storage.read_small(self._key(key))
        except ObjectMissingError:
            return None


def list_folder(path: str) -> tuple[Storage, dict[str, Entry], str]:
    """What a dataset's folder holds, by key, and the prefix of its videos.

    Where the folder `videos` itself is named, its captions are beside it.
    """
    root, within = split_root(path)
    storage = open_storage(root)
    entries = {entry.key: entry for entry in storage.list(within)}
    if within:
        entries |= {entry.key: entry for entry in storage.list(f"{LABELS}/")}
    return storage, entries, within


def split_root(path: str) -> tuple[str, str]:
    """(root, prefix of the videos): a path that ends in `videos` means that folder of its parent.

    Upstream finds labels/ beside it, because it replaces the name in the full path.
    """
    path = path.removeprefix("file://").rstrip("/") or "/"
    parent, _, name = path.rpartition("/")
    if name == VIDEOS and parent and not parent.endswith("/"):
        return parent, f"{VIDEOS}/"
    return path, ""


def is_video(key: str, within: str) -> bool:
    return key.endswith(VIDEO_SUFFIX) and key.startswith(within)


def label_key(key: str) -> str:
    """`a/videos/b/1.mp4` -> `a/labels/b/1.txt`; without a folder videos: beside the video."""
    parts = key.removesuffix(VIDEO_SUFFIX).split("/")
    folders = parts[:-1]
    if VIDEOS in folders:
        last = len(folders) - 1 - folders[::-1].index(VIDEOS)
        folders[last] = LABELS
    return "/".join([*folders, parts[-1]]) + ".txt"


def sat_label_path(path: str) -> str:
    """Upstream's caption path: every `.mp4` and every `videos` in the whole path is replaced."""
    return path.replace(".mp4", ".txt").replace("videos", "labels")


def no_videos(path: str, entries: Mapping[str, Entry]) -> InputMissingError:
    """The error of a folder without videos, with what it holds instead."""
    shards = sum(1 for key in entries if key.endswith(".tar"))
    hint = "check the path; videos end in .mp4 and belong in videos/, captions in labels/"
    if shards:
        hint = f"there are {shards} tar shards: set data.target to data_video.VideoDataset"
    return InputMissingError("there is no video (*.mp4) here", where=path, fix=hint)
