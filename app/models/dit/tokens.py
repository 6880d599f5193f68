"""Cut latent video into transformer tokens, and put tokens back.

Axes: B batch, T latent frames, C channels, H rows, W columns, N tokens.
Source: CogVideoX, arXiv:2408.06072, "Patchify". The order inside a token is (channel, time, row,
column), and tokens run over columns fastest, frames slowest; released weights depend on both.
"""

from __future__ import annotations

from typing import NamedTuple

from einops import rearrange
from torch import Tensor

from app.config.schema.model import PatchSize
from app.errors import ShapeError


class PatchGrid(NamedTuple):
    """Number of patches along each axis."""

    frames: int
    rows: int
    columns: int

    @property
    def num_tokens(self) -> int:
        return self.frames * self.rows * self.columns


def grid_of(latents_shape: tuple[int, ...], patch: PatchSize) -> PatchGrid:
    """Patches of latents (B, T, C, H, W).

    Raises:
        ShapeError: T, H or W is not a multiple of its patch size.
    """
    _, T, _, H, W = latents_shape
    for axis, size, step in (("T", T, patch.frames), ("H", H, patch.rows), ("W", W, patch.columns)):
        if size % step:
            raise ShapeError(
                f"axis {axis} has {size} entries, not a multiple of {step}",
                where=f"latents of shape {tuple(latents_shape)}",
                fix=f"pad {axis} to {size + step - size % step} before the network",
            )
    return PatchGrid(T // patch.frames, H // patch.rows, W // patch.columns)


def patchify(latents: Tensor, patch: PatchSize) -> Tensor:
    """Flatten non-overlapping patches into tokens, time first, then rows, then columns.

    Args:
        latents: (B, T, C, H, W), any float dtype.
        patch: size of one patch.

    Returns:
        (B, N, C * frames * rows * columns), N = T/frames * H/rows * W/columns.

    Raises:
        ShapeError: T, H or W is not a multiple of its patch size.
    """
    grid_of(tuple(latents.shape), patch)
    return rearrange(
        latents,
        "B (T o) C (H p) (W q) -> B (T H W) (C o p q)",
        o=patch.frames,
        p=patch.rows,
        q=patch.columns,
    )


def unpatchify(tokens: Tensor, grid: PatchGrid, patch: PatchSize) -> Tensor:
    """The inverse of `patchify`.

    Args:
        tokens: (B, grid.num_tokens, C * frames * rows * columns).
        grid: number of patches along each axis.
        patch: size of one patch.

    Returns:
        (B, T, C, H, W).
    """
    return rearrange(
        tokens,
        "B (T H W) (C o p q) -> B (T o) C (H p) (W q)",
        T=grid.frames,
        H=grid.rows,
        W=grid.columns,
        o=patch.frames,
        p=patch.rows,
        q=patch.columns,
    )
