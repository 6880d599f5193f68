"""Clips of a folder: videos/ beside labels/, local or in a bucket (`data_video.SFTDataset`)."""

from __future__ import annotations

import hashlib
import json
import logging
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from app.config.schema.data import SFTDataConfig
from app.data.bad_clip import BadClipError
from app.data.left_out import LeftOut, summary
from app.data.local_files import LocalFiles
from app.data.shards.index_files import IndexFiles
from app.data.sources.captions import CaptionFiles
from app.data.sources.folder import list_folder
from app.data.sources.protocols import Original, SampleId, identity_of, object_version
from app.data.sources.settings import SAT, SourceSettings, settings_from_args
from app.data.sources.video_source import VideoPlace, VideoSource, kept_sizes
from app.data.video import frames
from app.data.video.clip import ClipShape
from app.data.video.decoder import VideoFacts
from app.data.video.frames import FrameRequest, Selection
from app.data.video.sizes import Sizes

log = logging.getLogger(__name__)

SIZES_NAME = "dataset.sizes.json"


class SFTSource(VideoSource):
    """A folder of videos with one caption file each, in the order of their names."""

    def __init__(self, params: SFTDataConfig, path: str, settings: SourceSettings) -> None:
        request = FrameRequest(params.max_num_frames, params.fps, params.skip_frms_num)
        super().__init__(ClipShape(request, *params.video_size), settings)
        folder = list_folder(path, upstream=settings.caption_rule == SAT)
        if not folder.videos:
            raise folder.no_videos(path)
        self.keys = list(folder.videos)
        self._left_out = folder.left_out
        self._storage, entries = folder.storage, folder.entries
        self._files = LocalFiles(self._storage, entries, settings.cache, settings.prefetcher)
        self._captions = CaptionFiles(self._storage, entries, settings)
        self._captions.check(self.keys)
        if folder.left_out:
            sentence = summary(folder.left_out, len(self.keys))
            log.warning(sentence, extra={"url": self._storage.url})

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
        facts = object_version(self._files.entries[key]), self._captions.version(key)
        return identity_of(*facts, *self._settings.prefix_fact)

    def original(self, index: int) -> Original:
        key = self.keys[index]
        where = f"{self._storage.url}/{key}"
        try:
            caption = self._settings.prefixed(self._captions.read(key))
        except BadClipError as problem:
            raise problem.named(where) from problem
        return Original(self._files.read(key), caption, key, where)

    def shard_id(self, index: int) -> str:
        """A folder is one shard without a name."""
        return ""

    def sample_id(self, index: int) -> SampleId:
        return "", self.keys[index]

    def left_out(self) -> list[LeftOut]:
        """Videos of kinds that are not read, and those whose names cannot be used."""
        return list(self._left_out)

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
