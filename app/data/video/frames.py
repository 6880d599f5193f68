"""Which frames of a video make a clip.

Two rules. `exact` (default) picks by time stamps, so the clip really has the requested frame rate.
`sat` is upstream's integer rule, for training runs that must match it; it differs for folders and
for shards. Both give M frame numbers, M = 4k + 1, and `num_frames`, the frames that are not
padding. Explained in docs/data_format.md. Symbols: L frames in the file, f its frames per
second, w the requested ones, s frames skipped at both ends.
Source of `sat`: measured behaviour of CogVideo's sat/data_video.py, commit 7a1af71.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.data.bad_clip import BadClipError

# Containers round time stamps to milliseconds at worst; two frames are never this close.
TIME_TOLERANCE_S = 0.0015


@dataclass(frozen=True, slots=True)
class FrameRequest:
    """What a clip should be: M frames at w frames per second, s frames left out at both ends."""

    num_frames: int
    fps: float
    skip: float = 0  # upstream's files write 3.

    @property
    def skip_frames(self) -> int:
        return int(self.skip)


@dataclass(frozen=True, slots=True)
class Selection:
    """Frame numbers of one clip, ascending, M of them, and how many are not padding."""

    frames: tuple[int, ...]
    num_frames: int


def exact(times: np.ndarray, request: FrameRequest, crop: random.Random | None = None) -> Selection:
    """Frames on the screen at start, start + 1/w, start + 2/w, ...

    The frame on the screen at a time is the last one that began at or before it, so a file with
    uneven frame times plays as it does in a player. A video that ends early gives the largest
    4k + 1 frames and the last of them repeated, as upstream does for short videos.

    Args:
        times: (L,) seconds at which each frame begins, ascending.
        request: what the clip should be.
        crop: where a random start comes from; None starts at frame `request.skip`.

    Raises:
        BadClipError: no frame is left after skipping, or the times do not ascend.
    """
    usable = np.asarray(times, dtype=np.float64)
    if usable.size > 1 and np.diff(usable).min() < 0:
        raise BadClipError("bad_timestamps", "its frames are not in the order of their times")
    usable = usable[request.skip_frames : max(usable.size - request.skip_frames, 0)]
    if usable.size == 0:
        raise _too_short(len(times), request.skip_frames)
    length_s = usable[-1] - usable[0] + _frame_time_s(usable, request.fps)
    start = float(usable[0])
    spare_s = length_s - request.num_frames / request.fps
    if crop is not None and spare_s > 0:
        start += crop.uniform(0.0, spare_s)
    moments = start + np.arange(request.num_frames) / request.fps
    end = usable[0] + length_s
    count = max(1, int(np.count_nonzero(moments < end - TIME_TOLERANCE_S)))
    picked = np.searchsorted(usable, moments[:count] + TIME_TOLERANCE_S, side="right") - 1
    frames = [request.skip_frames + int(i) for i in np.maximum(picked, 0)]
    return _filled(frames, request.num_frames, keep=_largest_4k_plus_1(count))


def sat_folder(length: int, fps: float, request: FrameRequest) -> Selection:
    """Upstream's rule for folders (SFTDataset).

    Raises:
        BadClipError: where upstream fails: too short, slower than requested, or a few frames
            short of the clip.
    """
    count, skip = request.num_frames, request.skip_frames
    if length / fps * request.fps > count:
        end = int(skip + count / request.fps * fps)
        step = (end - skip) // count
        if step == 0:
            raise BadClipError(
                "too_slow",
                f"it has {fps:g} frames per second, and frame_rule sat cannot make {request.fps:g}",
            )
        frames = range(skip, end, step)
        if frames[-1] >= length:
            raise BadClipError(
                "too_short",
                f"frame_rule sat asks for frame {frames[-1]} of a video with {length} frames",
            )
        return _filled(frames, count, keep=count)
    end = int(length - request.skip)
    if end <= skip:
        raise _too_short(length, skip)
    if length > count:
        frames = range(skip, end, max((end - skip) // count, 1))
        return _filled(frames, count, keep=None)
    kept = _largest_4k_plus_1(end - skip)
    return _filled(range(skip, skip + kept), count, keep=kept)


def sat_shards_duration_s(fps: float, request: FrameRequest) -> float:
    """Seconds below which upstream leaves a clip of a shard out, before it looks at the video."""
    return request.num_frames / request.fps + 2 * request.skip / fps


def sat_shards(
    length: int, fps: float, duration_s: float | None, request: FrameRequest, crop: random.Random
) -> Selection:
    """Upstream's rule for tar shards (VideoDataset): a random start, then every f/w-th frame.

    Args:
        length: frames in the file.
        fps: of the file, from the metadata.
        duration_s: from the metadata; None takes `length` as it is.
        request: what the clip should be.
        crop: gives the start by `randint`, as upstream's generator does.

    Raises:
        BadClipError: the video is shorter than the clip and both skips.
    """
    count = request.num_frames
    limit = length if duration_s is None else min(int(duration_s * fps) - 1, length)
    span = count / request.fps * fps
    last_start = int(limit - request.skip - span) + 1
    if last_start < request.skip_frames:
        raise BadClipError(
            "too_short",
            f"{limit} frames at {fps:g} per second are less than {span:.1f} and the skipped ones",
        )
    start = crop.randint(request.skip_frames, last_start)
    end = int(start + span)
    if end > length:  # upstream's start may be one too late, and then it drops the sample
        raise BadClipError("too_short", f"frame {end - 1} of a video with {length} frames")
    frames = np.arange(start, end, (end - start) / count).astype(int).tolist()
    return _filled(frames, count, keep=count)


def _filled(frames: Sequence[int], count: int, keep: int | None) -> Selection:
    """Cut to `keep` frames, then repeat the last one up to `count`; None reports `count`."""
    kept = list(frames[: count if keep is None else keep])
    padded = kept + [kept[-1]] * (count - len(kept))
    return Selection(tuple(padded), count if keep is None else len(kept))


def _largest_4k_plus_1(count: int) -> int:
    return (count - 1) // 4 * 4 + 1


def _frame_time_s(times: np.ndarray, fps: float) -> float:
    """How long the last frame is shown: as long as the frames are on average."""
    if times.size > 1 and times[-1] > times[0]:
        return float((times[-1] - times[0]) / (times.size - 1))
    return 1.0 / fps


def _too_short(length: int, skip: int) -> BadClipError:
    return BadClipError(
        "too_short", f"{length} frames are not more than the {2 * skip} that are skipped"
    )
