"""Overlapping tiles of large frames: where they are, and how their results become one.

Axes: rows H and columns W are the last two. Positions are counted in latents; what is `scale`
times larger (pixels) is cut at the same places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import torch
from torch import Tensor

OUTER = 3 / 8  # of an overlap, on either side, in which only the other tile counts

Span = tuple[int, int]  # start and stop along one axis


@dataclass(frozen=True, slots=True)
class Core:
    """The part of a tile that no other tile's core covers, relative to the tile's corner.

    All cores together are the frame, so statistics over them count every position once.
    """

    tile_rows: int
    rows: Span
    columns: Span

    def of(self, x: Tensor) -> Tensor:
        """That part of a feature map (..., H, W) of the tile, at any resolution."""
        scale = x.shape[-2] // self.tile_rows
        (top, bottom), (left, right) = self.rows, self.columns
        return x[..., top * scale : bottom * scale, left * scale : right * scale]


@dataclass(frozen=True, slots=True)
class Tiling:
    """Tiles of `size` in a `frame`, both (rows, columns); neighbours share at least `overlap`."""

    frame: tuple[int, int]
    size: tuple[int, int]
    overlap: int

    @property
    def starts(self) -> list[tuple[int, int]]:
        """Upper left corners, row by row."""
        rows, columns = (self._along(axis) for axis in (0, 1))
        return list(product(rows, columns))

    @property
    def is_one(self) -> bool:
        """Whether a single tile covers the frame."""
        return self.size == self.frame

    @property
    def cores(self) -> list[Core]:
        """The core of each tile; the cuts are in the middle of the overlaps."""
        rows, columns = (self._cores_along(axis) for axis in (0, 1))
        return [Core(self.size[0], *pair) for pair in product(rows, columns)]

    def crops(self, x: Tensor, scale: int) -> list[Tensor]:
        """The tiles of `x` (..., H, W); views."""
        rows, columns = (size * scale for size in self.size)
        corners = [(top * scale, left * scale) for top, left in self.starts]
        return [x[..., top : top + rows, left : left + columns] for top, left in corners]

    def blended(self, results: Sequence[Tensor], scale: int) -> Tensor:
        """The results of all tiles as one, fading over from tile to tile.

        Args:
            results: per tile (..., rows * scale, columns * scale).
            scale: rows of a result per row of latents.

        Returns:
            (..., H, W) in the dtype of the results.
        """
        if len(results) == 1:
            return results[0]
        device = results[0].device
        size = tuple(length * scale for length in self.frame)
        total = torch.zeros(*results[0].shape[:-2], *size, device=device)
        weights = torch.zeros(size, device=device)
        sums, shares = self.crops(total, scale), self.crops(weights, scale)
        for corner, of_sum, of_share, result in zip(
            self.starts, sums, shares, results, strict=True
        ):
            high, wide = (self._fade(axis, corner[axis], scale, device) for axis in (0, 1))
            weight = high[:, None] * wide
            of_sum += result * weight
            of_share += weight
        return (total / weights).to(results[0].dtype)

    def _along(self, axis: int) -> list[int]:
        length, size = self.frame[axis], self.size[axis]
        if length <= size:
            return [0]
        gaps = -(-(length - size) // (size - self.overlap))
        # All tiles have one size: the last is moved in, not narrower.
        return [i * (length - size) // gaps for i in range(gaps + 1)]

    def _cores_along(self, axis: int) -> list[Span]:
        starts, size = self._along(axis), self.size[axis]
        cuts = [(a + size + b) // 2 for a, b in pairwise(starts)]
        bounds = [0, *cuts, self.frame[axis]]
        return [(bounds[i] - start, bounds[i + 1] - start) for i, start in enumerate(starts)]

    def _fade(self, axis: int, start: int, scale: int, device: torch.device) -> Tensor:
        """Weights of a tile along one axis: 1 inside, 0 in the outer part of an overlap.

        The values nearest to a tile's edge are the ones that miss their neighbours most. At the
        border of the frame there is nothing to miss.
        """
        size, frame, starts = self.size[axis], self.frame[axis], self._along(axis)
        shared = min((a + size - b for a, b in pairwise(starts)), default=0) * scale
        place = torch.arange(size * scale, device=device) + 0.5
        far = torch.full_like(place, float(frame * scale))
        before = place if start > 0 else far
        after = size * scale - place if start + size < frame else far
        inside = torch.minimum(before, after) - OUTER * shared
        return (inside / max(1.0, (1 - 2 * OUTER) * shared)).clamp(0, 1)
