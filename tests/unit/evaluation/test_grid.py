"""Several videos in one picture."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from app.evaluation.grid import tiled

T, H, W = 2, 4, 6


def videos(count: int) -> list[Tensor]:
    """Video i is of gray level i + 1 everywhere."""
    return [torch.full((T, 3, H, W), i + 1, dtype=torch.uint8) for i in range(count)]


def levels(picture: Tensor) -> list[list[int]]:
    """Gray level of each tile, after asserting that a tile is of one level."""
    tiles = picture.unfold(2, H, H).unfold(3, W, W)  # (T, 3, rows, columns, H, W)
    flat = tiles.permute(2, 3, 0, 1, 4, 5).flatten(2)
    assert bool((flat == flat[..., :1]).all())
    return [[int(level) for level in row] for row in flat[..., 0]]


@pytest.mark.parametrize(
    ("count", "rows", "grid"),
    [
        (1, 1, [[1]]),
        (3, 1, [[1, 2, 3]]),
        (4, 2, [[1, 2], [3, 4]]),
        (3, 2, [[1, 2], [3, 0]]),
        (3, 3, [[1], [2], [3]]),
        (2, 8, [[1], [2]]),  # no more rows than videos
        (5, 4, [[1, 2], [3, 4], [5, 0]]),  # four rows of two would leave one empty
        (2, 0, [[1, 2]]),
    ],
)
def test_videos_lie_row_by_row_and_empty_places_are_black(
    count: int, rows: int, grid: list[list[int]]
) -> None:
    picture = tiled(videos(count), rows)

    assert picture.shape == (T, 3, len(grid) * H, len(grid[0]) * W)
    assert picture.dtype == torch.uint8
    assert levels(picture) == grid


def test_a_tile_is_the_video_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    pair = [torch.rand((T, 3, H, W), generator=generator) for _ in range(2)]

    picture = tiled(pair, rows=2)

    assert torch.equal(picture[:, :, :H], pair[0])
    assert torch.equal(picture[:, :, H:], pair[1])
