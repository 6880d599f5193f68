"""A user's own dataset class, for `--register`: small random clips that are never decoded."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import torch

FRAMES, ROWS, COLUMNS = 9, 32, 64  # what configs/tiny/tiny.yaml trains on
REGISTRATION = "numbered=tests.support.numbered_clips:NumberedClips"


class NumberedClips:
    """Clip i is noise of its own; `reads` tells which clips were asked for, in this process."""

    reads: list[tuple[str, int]] = []  # noqa: RUF012 (shared on purpose: (path, index))

    def __init__(self, path: str, count: int) -> None:
        self.path = path
        self.count = count

    @classmethod
    def create_dataset_function(cls, path: str, args: Namespace, **params: Any) -> NumberedClips:
        return cls(path, int(params["count"]))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.reads.append((self.path, index))
        generator = torch.Generator().manual_seed(index)
        shape = (FRAMES, 3, ROWS, COLUMNS)
        return {
            "mp4": torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8),
            "txt": f"clip number {index}",
            "num_frames": FRAMES,
            "fps": 8,
            "key": f"{self.path}/{index}",
        }
