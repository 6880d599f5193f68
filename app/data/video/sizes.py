"""Sizes of videos without decoding them, and the side files that keep them.

A dataset is scanned once: of each video the movie box is read by ranges, a few kilobytes. The
sizes are kept with the data (or on this node where the data is read-only) and are valid for as
long as the data is the same.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from app.data.bad_clip import BadClipError
from app.data.json_files import parsed_or_none
from app.data.video.containers import HEAD_BYTES, MOV, container_of
from app.data.video.decoder import VideoFacts
from app.data.video.mp4 import VideoHeader, read_movie


@dataclass(frozen=True, slots=True)
class ClipSize:
    """Size of a video as it is shown (after rotation), and its length."""

    rows: int
    columns: int
    frames: int
    fps: float  # mean of the file

    def frames_at(self, fps: float, skip_frames: int = 0) -> int:
        """Frames of a clip at `fps`, `skip_frames` left out at both ends."""
        kept = max(self.frames - 2 * skip_frames, 0)
        if kept == 0 or self.fps <= 0:
            return kept
        # A frame lasts 1/f: n frames show n/f seconds. Rounding of time stamps must not cost one.
        return max(1, math.floor(kept / self.fps * fps + 0.01))


SIZES_VERSION = 1
LARGEST_MOVIE_BYTES = 64 << 20
MOST_TOP_BOXES = 10_000
ReadRange = Callable[[int, int], bytes]
Probe = Callable[[bytes], VideoFacts]
Sizes = Sequence[ClipSize | None]  # None: the video cannot be used


def read_size(read: ReadRange, file_bytes: int, probe: Probe) -> ClipSize | None:
    """Size and length of the video in a file; None when it has none that can be used.

    Args:
        read: bytes [start, stop) of the file.
        file_bytes: of the whole file.
        probe: what a decoder says of a whole file: for fragmented ones, whose movie box does not
            say how long they are, and for containers other than mp4 and mov.
    """
    try:
        if container_of(read(0, min(HEAD_BYTES, file_bytes))) != MOV:
            return size_of(probe(read(0, file_bytes)))
        header = _header(read, file_bytes)
        if header.samples is None:
            facts = probe(read(0, file_bytes))
            return _shown(header, facts.frames, facts.fps)
    except (BadClipError, struct.error):
        return None
    if header.duration_s <= 0:
        return None
    return _shown(header, header.samples, round(header.samples / header.duration_s, 6))


def size_of(facts: VideoFacts) -> ClipSize:
    """The same from what the decoder found."""
    return _shown(facts.header, facts.frames, round(facts.fps, 6))


def _shown(header: VideoHeader, frames: int, fps: float) -> ClipSize:
    if header.is_turned:
        return ClipSize(header.columns, header.rows, frames, fps)
    return ClipSize(header.rows, header.columns, frames, fps)


def _header(read: ReadRange, file_bytes: int) -> VideoHeader:
    """Find the movie box among the boxes of the file, wherever it is."""
    place, movie, fragmented = 0, b"", False
    for _ in range(MOST_TOP_BOXES):
        if place + 16 > file_bytes:
            break
        size, kind = struct.unpack(">I4s", (head := read(place, place + 16))[:8])
        start = place + 8
        if size == 1:
            (size,) = struct.unpack(">Q", head[8:])
            start = place + 16
        size = size or file_bytes - place
        if size < 8 or place + size > file_bytes:
            raise BadClipError("truncated", f"box '{kind!r}' ends behind the end of the file")
        if kind == b"moov":
            if size > LARGEST_MOVIE_BYTES:
                raise BadClipError("too_large", f"its index has {size} bytes")
            movie = read(start, place + size)
        fragmented = fragmented or kind == b"moof"
        place += size
        if movie and (fragmented or b"mvex" not in movie):
            break
    if not movie:
        raise BadClipError("truncated", "its index ('moov') is missing")
    return read_movie(movie, file_bytes, fragmented=fragmented)


def sizes_to_json(sizes: Sizes, fingerprint: str) -> bytes:
    """The side file; `fingerprint` is that of the data, which must still hold when it is read."""
    content = {
        "format_version": SIZES_VERSION,
        "data": fingerprint,
        "fields": ["rows", "columns", "frames", "fps"],
        "sizes": [None if size is None else astuple(size) for size in sizes],
    }
    return json.dumps(content, separators=(",", ":")).encode() + b"\n"


def sizes_from_json(
    data: bytes | None, fingerprint: str | None, count: int | None = None
) -> list[ClipSize | None] | None:
    """What `sizes_to_json` wrote; None when it is unreadable, of other data, or not so many.

    Args:
        fingerprint: of the data; None takes the sizes of any.
        count: videos that the data has; None takes any number.
    """

    def parse(content: Mapping[str, Any]) -> list[ClipSize | None] | None:
        if content["format_version"] != SIZES_VERSION:
            return None
        if fingerprint is not None and content["data"] != fingerprint:
            return None
        sizes = [None if size is None else _size(*size) for size in content["sizes"]]
        return sizes if count in (None, len(sizes)) else None

    return parsed_or_none(data, parse)


def _size(rows: int, columns: int, frames: int, fps: float) -> ClipSize:
    return ClipSize(int(rows), int(columns), int(frames), float(fps))
