"""Buckets: several clip sizes in one run, each clip at the size that loses least of it.

A bucket is (frames, rows, columns). Clips of one batch come from one bucket, because tensors of
one batch have one shape. Which bucket a clip goes to depends on its own size and length only;
the order in which buckets take turns is in `bucket_order.py`. Explained in docs/data.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from app.config.schema.data import Bucket

# Losses of picture that differ by less do not decide: then the length does.
LOSS_STEP = 0.05


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


def best_bucket(
    clip: ClipSize, buckets: Sequence[Bucket], fps: float, skip_frames: int = 0
) -> int | None:
    """Number of the bucket for a clip; None when no bucket is as short as the clip.

    In this order: the bucket must be filled in time; it should cut away least of the picture
    (steps of 5%); it should not enlarge the picture; then longer, then larger ones win.
    """
    available = clip.frames_at(fps, skip_frames)
    fitting = [i for i, bucket in enumerate(buckets) if bucket.frames <= available]
    if not fitting:
        return None

    def rank(which: int) -> tuple[float, bool, int, int, int]:
        bucket = buckets[which]
        enlarges = bucket.rows > clip.rows or bucket.columns > clip.columns
        pixels = bucket.rows * bucket.columns
        lost = round(picture_loss(clip, bucket) / LOSS_STEP)
        return lost, enlarges, -bucket.frames, pixels if enlarges else -pixels, which

    return min(fitting, key=rank)


def picture_loss(clip: ClipSize, bucket: Bucket) -> float:
    """Share of the picture that resizing over the short side and cutting takes away."""
    shape, wanted = clip.columns / clip.rows, bucket.columns / bucket.rows
    return 1.0 - min(shape / wanted, wanted / shape)


def training_bucket(
    clip: ClipSize, buckets: Sequence[Bucket], fps: float, skip_frames: int = 0
) -> int:
    """As `best_bucket`; a clip shorter than all goes to a shortest one and is padded there."""
    found = best_bucket(clip, buckets, fps, skip_frames)
    if found is not None:
        return found
    shortest = min(bucket.frames for bucket in buckets)
    places = [i for i, bucket in enumerate(buckets) if bucket.frames == shortest]
    return min(places, key=lambda which: (picture_loss(clip, buckets[which]), which))
