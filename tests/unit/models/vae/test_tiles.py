from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from app.models.vae.tiles import Tiling

SIZES = [((7, 9), (4, 5), 2), ((8, 8), (8, 4), 1), ((5, 20), (5, 6), 3), ((4, 4), (4, 4), 0)]


@pytest.mark.parametrize(("frame", "size", "overlap"), SIZES)
def test_tiles_cover_the_frame_and_overlap_enough(
    frame: tuple[int, int], size: tuple[int, int], overlap: int
) -> None:
    tiling = Tiling(frame, size, overlap)

    for axis in (0, 1):
        starts = sorted({corner[axis] for corner in tiling.starts})
        assert starts[0] == 0
        assert starts[-1] + size[axis] == frame[axis]
        for left, right in pairwise(starts):
            assert left + size[axis] - right >= overlap
    assert tiling.is_one == (len(tiling.starts) == 1)


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize(("frame", "size", "overlap"), SIZES)
def test_cores_count_every_position_once(
    frame: tuple[int, int], size: tuple[int, int], overlap: int, scale: int
) -> None:
    tiling = Tiling(frame, size, overlap)
    counts = torch.zeros(1, frame[0] * scale, frame[1] * scale)

    for core, crop in zip(tiling.cores, tiling.crops(counts, scale), strict=True):
        core.of(crop).add_(1)

    assert torch.equal(counts, torch.ones_like(counts))


@pytest.mark.parametrize(("frame", "size", "overlap"), SIZES)
def test_blending_the_crops_of_an_image_gives_the_image(
    frame: tuple[int, int], size: tuple[int, int], overlap: int
) -> None:
    tiling = Tiling(frame, size, overlap)
    x = torch.rand(1, 2, 1, frame[0] * 2, frame[1] * 2, generator=torch.Generator().manual_seed(0))

    blended = tiling.blended(tiling.crops(x, 2), 2)

    torch.testing.assert_close(blended, x)


def test_near_its_edge_a_tile_does_not_count() -> None:
    tiling = Tiling((1, 12), (1, 8), 4)  # columns 0 to 8 and 4 to 12 share four
    left, right = torch.zeros(1, 1, 8), torch.ones(1, 1, 8)

    blended = tiling.blended([left, right], 1).flatten()

    # Three eighths of the overlap on either side belong to one tile alone: 1.5 positions.
    assert blended[:5].tolist() == [0, 0, 0, 0, 0]
    assert blended[7:].tolist() == [1, 1, 1, 1, 1]
    assert 0 <= blended[5] < blended[6] <= 1
