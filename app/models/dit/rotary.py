"""Rotary position embedding along three axes (5B and 1.5).

Axes: n text tokens, N image tokens (frames slowest, columns fastest), S = n + N, d features of
one attention head.
Source: RoFormer, arXiv:2104.09864; CogVideoX, arXiv:2408.06072, "3D-RoPE". A head's features are
split into time (d/4), row (3d/8) and column (3d/8); coordinates are token indices from zero at the
top left, never scaled to the resolution (upstream_differences.md, M23), or, as diffusers does for
1.0, scaled so that the whole image lies in the size that the network was made for (M35).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from app.models.dit.tokens import PatchGrid

THETA = 10000.0  # base of the wavelengths, as in RoFormer


class Rotation(NamedTuple):
    """Cosine and sine of every token's angles, each (tokens, d)."""

    cos: Tensor
    sin: Tensor


def rotation_for(
    grid: PatchGrid, head_dim: int, like: Tensor, native: tuple[int, int] | None = None
) -> Rotation:
    """Angles of every image token, computed in fp32 on the device of `like`, in its dtype.

    Computed from the grid at hand, so every size is exact; one call per forward serves all layers.

    Args:
        grid: patches of the latents.
        head_dim: d, a multiple of 16.
        like: any tensor; device and dtype of the result.
        native: rows and columns that a grid of another size is fitted into; None: it is not.

    Returns:
        Rotation with cos and sin of shape (grid.num_tokens, head_dim).
    """
    widths = (head_dim // 4, head_dim // 8 * 3, head_dim // 8 * 3)
    parts = []
    positions = _positions(grid, native, like.device)
    for axis, (size, width) in enumerate(zip(grid, widths, strict=True)):
        shape = [1, 1, 1, width]
        shape[axis] = size
        angles = _axis_angles(positions[axis], width)
        parts.append(angles.view(shape).expand(*grid, width))
    angles = torch.cat(parts, dim=-1).flatten(0, 2)
    return Rotation(angles.cos().to(like.dtype), angles.sin().to(like.dtype))


def after_text(rotation: Rotation, text_length: int) -> Rotation:
    """(n + N, d): the text tokens, which come first, are not rotated.

    One table for the whole sequence, so that no layer has to separate text from image.
    """
    pad = (0, 0, text_length, 0)
    return Rotation(
        torch.nn.functional.pad(rotation.cos, pad, value=1.0),
        torch.nn.functional.pad(rotation.sin, pad, value=0.0),
    )


def _positions(
    grid: PatchGrid, native: tuple[int, int] | None, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates of frames, rows and columns, fp32."""
    frames, rows, columns = (
        torch.arange(size, dtype=torch.float32, device=device) for size in grid
    )
    if native is not None and native != (grid.rows, grid.columns):
        ends = fitted(grid, native)
        rows = torch.linspace(*ends[0], grid.rows, dtype=torch.float32, device=device)
        columns = torch.linspace(*ends[1], grid.columns, dtype=torch.float32, device=device)
    return frames, rows, columns


def fitted(
    grid: PatchGrid, native: tuple[int, int]
) -> tuple[tuple[float, float], tuple[float, float]]:
    """First and last coordinate of rows and columns, as diffusers has them for 1.0.

    The image keeps its shape, fills `native` in one direction and is centred in the other. The
    last coordinate is (n - 1) / n of the end, not of the length: kept, it is what diffusers does.
    """
    scale = min(native[0] / grid.rows, native[1] / grid.columns)
    ends = []
    for size, whole in zip((grid.rows, grid.columns), native, strict=True):
        length = round(scale * size)
        start = round((whole - length) / 2)
        ends.append((float(start), (start + length) * (size - 1) / size))
    return ends[0], ends[1]


def _axis_angles(positions: Tensor, width: int) -> Tensor:
    """(len(positions), width) fp32: position * frequency, each frequency twice in a row."""
    exponents = torch.arange(0, width, 2, dtype=torch.float32, device=positions.device) / width
    frequencies = 1.0 / (THETA**exponents)
    return torch.outer(positions, frequencies).repeat_interleave(2, dim=1)


def rotate(heads: Tensor, rotation: Rotation) -> Tensor:
    """Rotate each pair of neighbouring features by its token's angle.

    Args:
        heads: (..., S, d), queries or keys.
        rotation: cos and sin, (S, d).

    Returns:
        Same shape and dtype as `heads`.
    """
    even, odd = heads.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((-odd, even), dim=-1).flatten(-2)
    return heads * rotation.cos + turned * rotation.sin
