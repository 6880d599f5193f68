"""Rotary position embedding along three axes (5B and 1.5).

Axes: n text tokens, N image tokens (frames slowest, columns fastest), S = n + N, d features of
one attention head.
Source: RoFormer, arXiv:2104.09864; CogVideoX, arXiv:2408.06072, "3D-RoPE". A head's features are
split into time (d/4), row (3d/8) and column (3d/8); coordinates are token indices from zero at the
top left, never scaled to the resolution (upstream_differences.md, M23).
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


def rotation_for(grid: PatchGrid, head_dim: int, like: Tensor) -> Rotation:
    """Angles of every image token, computed in fp32 on the device of `like`, in its dtype.

    Computed from the grid at hand, so every size is exact; one call per forward serves all layers.

    Args:
        grid: patches of the latents.
        head_dim: d, a multiple of 16.
        like: any tensor; device and dtype of the result.

    Returns:
        Rotation with cos and sin of shape (grid.num_tokens, head_dim).
    """
    widths = (head_dim // 4, head_dim // 8 * 3, head_dim // 8 * 3)
    parts = []
    for axis, (size, width) in enumerate(zip(grid, widths, strict=True)):
        shape = [1, 1, 1, width]
        shape[axis] = size
        angles = _axis_angles(size, width, like.device)
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


def _axis_angles(size: int, width: int, device: torch.device) -> Tensor:
    """(size, width) fp32: position * frequency, each frequency twice in a row."""
    exponents = torch.arange(0, width, 2, dtype=torch.float32, device=device) / width
    frequencies = 1.0 / (THETA**exponents)
    positions = torch.arange(size, dtype=torch.float32, device=device)
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
