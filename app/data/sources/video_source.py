"""What a folder of videos and tar shards have in common: files that are decoded at some size."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from typing import NamedTuple

import numpy as np
from torch import Tensor

from app.data.bad_clip import BadClipError
from app.data.batch import Item
from app.data.local_files import LocalFiles
from app.data.shards.index_files import IndexFiles
from app.data.sources.protocols import Original
from app.data.sources.settings import RANDOM, SAT, SourceSettings
from app.data.video import frames
from app.data.video.clip import ClipShape, read_clip
from app.data.video.decoder import VideoFacts
from app.data.video.frames import FrameRequest, Selection
from app.data.video.sizes import ClipSize, Sizes, read_size, sizes_from_json, sizes_to_json
from app.storage.objects import Storage

log = logging.getLogger(__name__)

READERS = 16


class ClipShapes:
    """Shapes of a source's samples; at first all alike.

    Args:
        shape: of every sample, until `use` says otherwise.
        sizes: finds the sizes of all videos.
    """

    def __init__(self, shape: ClipShape, sizes: Callable[[], Sizes]) -> None:
        self.configured = shape
        self.sizes = sizes
        self._shapes: Sequence[ClipShape] = [shape]
        self._of: np.ndarray | None = None

    def use(self, shapes: Sequence[ClipShape], of: np.ndarray) -> None:
        """From now on sample i has shape number of[i]; samples with -1 are not read."""
        self._shapes, self._of = list(shapes), of

    def at(self, index: int) -> ClipShape:
        """Shape of a sample."""
        return self._shapes[0 if self._of is None else int(self._of[index])]

    @property
    def bytes(self) -> int:
        """Memory of the largest sample."""
        return max(shape.bytes for shape in self._shapes)


class VideoPlace(NamedTuple):
    """A video: `size_bytes` at `offset` of an object."""

    key: str
    offset: int
    size_bytes: int


class VideoSource(ABC):
    """Samples that are video files; a subclass finds them and their captions.

    Args:
        shape: of a clip, as configured.
        settings: decoders, cache, frame rule.
    """

    def __init__(self, shape: ClipShape, settings: SourceSettings) -> None:
        self._settings = settings
        self.shapes = ClipShapes(shape, self._sizes)

    @property
    def sample_bytes(self) -> int:
        return self.shapes.bytes

    def __getitem__(self, index: int) -> Item:
        return self.read(index, index)

    @abstractmethod
    def original(self, index: int) -> Original:
        """The bytes of a sample; errors carry its name."""

    @abstractmethod
    def _file(self, index: int) -> tuple[LocalFiles, str]:
        """The object that holds a sample, and where it is opened."""

    @abstractmethod
    def _sizes(self) -> Sizes:
        """Sizes of all videos, kept in side files."""

    @abstractmethod
    def _sat_frames(
        self, original: Original, position: int, request: FrameRequest, video: VideoFacts
    ) -> Selection:
        """Frames by upstream's rule."""

    def read(self, index: int, position: int) -> Item:
        files, key = self._file(index)
        try:
            original = self.original(index)
            video, count = self._clip(original, self.shapes.at(index), position)
        finally:
            files.done(key)
        return {
            "mp4": video,
            "txt": original.caption,
            "num_frames": count,
            "fps": self.shapes.configured.request.fps,
            "key": original.key,
        }

    def expect(self, index: int) -> None:
        files, key = self._file(index)
        files.expect(key)

    def release(self, index: int) -> None:
        files, key = self._file(index)
        files.done(key)

    def close(self) -> None:
        self._settings.decoders.close()

    def _clip(self, original: Original, shape: ClipShape, position: int) -> tuple[Tensor, int]:
        rule = partial(self._frames, original, position, shape.request)
        try:
            return read_clip(original.video, shape, rule, self._settings.decoders)
        except BadClipError as problem:
            raise problem.named(original.where) from problem

    def _frames(
        self, original: Original, position: int, request: FrameRequest, video: VideoFacts
    ) -> Selection:
        if self._settings.frame_rule == SAT:
            return self._sat_frames(original, position, request, video)
        is_random = self._settings.temporal_crop == RANDOM
        crop = self._settings.crop(position) if is_random else None
        return frames.exact(video.times, request, crop)

    def _scanned_sizes(self, storage: Storage, videos: Sequence[VideoPlace]) -> Sizes:
        """Read the head of every video."""

        def size(video: VideoPlace) -> ClipSize | None:
            def read(start: int, stop: int) -> bytes:
                return storage.read_range(video.key, video.offset + start, video.offset + stop)

            return read_size(read, video.size_bytes, self._settings.decoders.get().probe)

        with ThreadPoolExecutor(READERS) as pool:
            return list(pool.map(size, videos))


def kept_sizes(
    files: IndexFiles,
    key: str,
    fingerprint: str,
    count: int,
    scan: Callable[[], Sizes],
    *,
    in_turns: bool = True,
) -> Sizes:
    """Sizes of `count` videos from a side file, or those of a scan, which are then kept there.

    Args:
        in_turns: one process of the node scans at a time; the others then find the file.
    """
    with files.locked() if in_turns else nullcontext():
        known = sizes_from_json(files.read(key), fingerprint, count)
        if known is not None:
            return known
        found = scan()
        files.write(key, sizes_to_json(found, fingerprint))
        return found
