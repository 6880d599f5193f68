"""One clip: the bytes of a video in, the chosen frames out, at the model's size."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from app.data.bad_clip import BadClipError
from app.data.video.decoder import DecoderOfThread, VideoFacts
from app.data.video.frames import FrameRequest, Selection
from app.data.video.transforms import frame_to_model_size

LONGEST_CAPTION_BYTES = 64 << 10
Rule = Callable[[VideoFacts], Selection]


@dataclass(frozen=True, slots=True)
class ClipShape:
    """Size of a clip, in frames and pixels."""

    request: FrameRequest
    rows: int
    columns: int

    @property
    def bytes(self) -> int:
        return self.request.num_frames * 3 * self.rows * self.columns


def read_clip(
    blob: bytes, shape: ClipShape, rule: Rule, decoders: DecoderOfThread
) -> tuple[Tensor, int]:
    """Decode, pick, resize and crop.

    Each frame is resized as soon as it comes, so that only one frame of the original size is in
    memory (49 frames of 1920x1080 would be 305 MB).

    Args:
        blob: a whole video file.
        shape: what the clip should be.
        rule: picks the frames when the file's are known.
        decoders: the calling thread's one is used.

    Returns:
        (T, 3, rows, columns) uint8, and the number of frames that are not padding.

    Raises:
        BadClipError: the file cannot be used.
    """
    clip = torch.empty((shape.request.num_frames, 3, shape.rows, shape.columns), dtype=torch.uint8)
    picked: Selection | None = None
    places: dict[int, list[int]] = {}
    unique: list[int] = []

    def choose(facts: VideoFacts) -> list[int]:
        nonlocal picked, unique
        if facts.frames == 0:
            raise BadClipError("too_short", "no frame of it can be seen")
        picked = rule(facts)
        places.clear()
        for place, frame in enumerate(picked.frames):
            # Upstream's rule counts hidden frames too; its decoder repeats the last one instead.
            places.setdefault(min(frame, facts.frames - 1), []).append(place)
        unique = sorted(places)
        return unique

    def take(which: int, frame: np.ndarray) -> None:
        image = frame_to_model_size(frame, (shape.rows, shape.columns))
        for place in places[unique[which]]:
            clip[place] = image

    try:
        decoders.get().decode(blob, choose, take)
    except BadClipError as problem:
        problem.sha256 = hashlib.sha256(blob).hexdigest()  # a repaired file is another one
        raise
    assert picked is not None
    return clip, picked.num_frames


def caption_text(data: bytes) -> str:
    """The text of a caption file or member.

    Raises:
        BadClipError: longer than 64 KiB, not UTF-8, or not text (it has NUL characters).
    """
    if len(data) > LONGEST_CAPTION_BYTES:
        raise BadClipError("bad_caption", f"its caption has {len(data)} bytes")
    if b"\x00" in data:  # zeros in place of a file's content, or UTF-16
        raise BadClipError("bad_caption", "its caption has NUL characters, so it is not UTF-8 text")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise BadClipError("bad_caption", f"its caption is not UTF-8 ({problem})") from problem


def checked_caption(text: str | None, *, may_be_missing: bool) -> str:
    """The caption without surrounding blanks, or "" where that is allowed.

    Raises:
        BadClipError: there is none, or it is blank.
    """
    stripped = (text or "").strip()
    if not stripped and not may_be_missing:
        reason = "no_caption" if text is None else "empty_caption"
        raise BadClipError(reason, "it has no caption" if text is None else "its caption is empty")
    return stripped
