"""Buckets: the clip sizes of a run that has several (`data.buckets`, ours)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from app.errors import ConfigError

_WRITTEN = re.compile(r"(\d+)x(\d+)x(\d+)")
SIDE_STEP_PX = 16  # the VAE shrinks a side by 8, and a patch of the network takes two of those


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


def parse_bucket(value: object, where: str = "--bucket") -> Bucket:
    """`49x480x720`, or three numbers, to Bucket(49, 480, 720).

    Raises:
        ConfigError: written otherwise, or sizes that cannot be.
    """
    text = "x".join(str(part) for part in value) if isinstance(value, list | tuple) else str(value)
    match = _WRITTEN.fullmatch(text.strip())
    if match is None:
        raise ConfigError(
            f"'{text}' is no bucket", where=where, mend="write FRAMESxROWSxCOLUMNS: 49x480x720"
        )
    return Bucket(*(int(part) for part in match.groups()))
