"""Several videos in one image, for people."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def tiled(videos: Sequence[Tensor], rows: int) -> Tensor:
    """Put videos of one size side by side, row by row; places that stay empty are black.

    Args:
        videos: each (T, 3, H, W), any dtype.
        rows: at most so many rows; no row stays empty.

    Returns:
        (T, 3, rows * H, columns * W), columns = ceil(len(videos) / rows).
    """
    rows = min(max(rows, 1), len(videos))
    columns = -(-len(videos) // rows)
    rows = -(-len(videos) // columns)
    frames, channels, height, width = videos[0].shape
    image = torch.zeros((frames, channels, rows * height, columns * width), dtype=videos[0].dtype)
    for place, video in enumerate(videos):
        top, left = place // columns * height, place % columns * width
        image[:, :, top : top + height, left : left + width] = video
    return image
