"""Buckets: several clip sizes in one run, each clip at the size that loses least of it.

A bucket is (frames, rows, columns). Clips of one batch come from one bucket, because tensors of
one batch have one shape. Which bucket a clip goes to depends on its own size and length only;
the order in which buckets take turns is in `bucket_order.py`. Explained in docs/data.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from app.errors import ConfigError

_WRITTEN = re.compile(r"(\d+)x(\d+)x(\d+)")
SIDE_STEP_PX = 16  # the VAE shrinks a side by 8, and a patch of the network takes two of those
# Losses of picture that differ by less do not decide: then the length does.
LOSS_STEP = 0.05


@dataclass(frozen=True, slots=True, order=True)
class Bucket:
    """Size of a clip: frames (4k + 1), rows and columns in pixels (multiples of 16)."""

    frames: int
    rows: int
    columns: int

    def __post_init__(self) -> None:
        if self.frames < 1 or self.frames % 4 != 1:
            raise ConfigError(
                f"{self.frames} frames are not 4k + 1",
                where=f"bucket {self}",
                mend=f"use {max(1, self.frames // 4 * 4 + 1)}",
            )
        for side in (self.rows, self.columns):
            if side < SIDE_STEP_PX or side % SIDE_STEP_PX:
                raise ConfigError(
                    f"{side} pixels are not a multiple of {SIDE_STEP_PX}",
                    where=f"bucket {self}",
                    mend=f"use {max(1, round(side / SIDE_STEP_PX)) * SIDE_STEP_PX}",
                )

    def __str__(self) -> str:
        return f"{self.frames}x{self.rows}x{self.columns}"

    @property
    def bytes(self) -> int:
        """Of a decoded clip, uint8."""
        return self.frames * 3 * self.rows * self.columns


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


def parse_bucket(text: str, where: str = "--bucket") -> Bucket:
    """`49x480x720` -> Bucket(49, 480, 720).

    Raises:
        ConfigError: written otherwise, or sizes that cannot be.
    """
    match = _WRITTEN.fullmatch(text.strip())
    if match is None:
        raise ConfigError(
            f"'{text}' is no bucket", where=where, mend="write FRAMESxROWSxCOLUMNS, 49x480x720"
        )
    return Bucket(*(int(part) for part in match.groups()))


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
