"""Position tables that are added to the tokens: fixed sin-cos (2B) and learned (5B-I2V).

Axes: n text rows, N image rows of the table (frames slowest, columns fastest), h hidden width.
Source: CogVideoX, arXiv:2408.06072; DiT, arXiv:2212.09748, for the sin-cos form. The table holds
text rows first, which are zero in the fixed one.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from app.config.schema.model import DiTConfig, PositionConfig
from app.errors import ShapeError
from app.models.dit.tokens import PatchGrid

WAVELENGTH_BASE = 10000.0  # as in "Attention is all you need"
MOST_GRIDS = 8  # tables kept; one of the 2B model at 49x480x720 in bf16 has 64 MiB


def has_table(config: PositionConfig) -> bool:
    """Whether something is added to the tokens (pure RoPE models add nothing)."""
    return config.learnable or config.kind != "rope3d"


def sincos_rows(positions: Tensor, width: int) -> Tensor:
    """(len(positions), width) float64: sines, then cosines, of position * decreasing frequency."""
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float64) / half
    frequencies = 1.0 / WAVELENGTH_BASE**exponents
    angles = torch.outer(positions.double(), frequencies)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sincos_table(grid: PatchGrid, hidden_size: int, config: PositionConfig) -> Tensor:
    """Image rows of the fixed table, fp32 on the CPU.

    A row is [time: h/4 | column: 3h/8 | row: 3h/8] (2D: [column: h/2 | row: h/2]). The column part
    comes before the row part, as released weights expect.

    Returns:
        (grid.num_tokens, hidden_size).
    """
    scales = (
        config.time_interpolation,
        config.height_interpolation,
        config.width_interpolation,
    )
    time, row, column = (
        torch.arange(size, dtype=torch.float32) / scale
        for size, scale in zip(grid, scales, strict=True)
    )
    time_width = hidden_size // 4 if config.kind == "sincos3d" else 0
    width = (hidden_size - time_width) // 2
    parts = [
        sincos_rows(time, time_width)[:, None, None, :],
        sincos_rows(column, width)[None, None, :, :],
        sincos_rows(row, width)[None, :, None, :],
    ]
    expanded = [part.expand(*grid, part.shape[-1]) for part in parts]
    return torch.cat(expanded, dim=-1).flatten(0, 2).float()


class PositionTable(nn.Module):
    """The table as the checkpoint stores it: (1, n + N, h), text rows first."""

    def __init__(
        self,
        config: DiTConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config.position
        self.grid = PatchGrid(*config.grid)
        if config.position.kind == "sincos2d":
            self.grid = self.grid._replace(frames=1)
        rows = config.position.text_length + self.grid.num_tokens
        shape = (1, rows, config.hidden_size)
        self.table = nn.Parameter(
            torch.zeros(shape, device=device, dtype=dtype), requires_grad=config.position.learnable
        )
        # Image rows that were computed for larger grids; follows from the configuration, so it is
        # not in the state dict.
        self._computed: OrderedDict[tuple[object, ...], Tensor] = OrderedDict()
        if not self.table.is_meta and not config.position.learnable:
            with torch.no_grad():
                self.table.copy_(self.computed())

    def computed(self) -> Tensor:
        """(1, n + N, h) fp32 on the CPU: the values that a fixed table must have."""
        assert not self.config.learnable, "a learned table cannot be computed"
        hidden_size = self.table.shape[-1]
        text = torch.zeros(self.config.text_length, hidden_size)
        return torch.cat([text, sincos_table(self.grid, hidden_size, self.config)])[None]

    def check(self, grid: PatchGrid, text_length: int) -> None:
        """Check that the table has rows for a text length and a grid.

        Raises:
            ShapeError: it does not.
        """
        if text_length != self.config.text_length:
            raise ShapeError(
                f"text has {text_length} tokens, the position table has rows for "
                f"{self.config.text_length}",
                where="conditioning.text",
                fix="set max_length of the text encoder to pos_embed_config.params.text_length",
            )
        if self.config.kind == "sincos2d" and grid.frames != 1:
            raise ShapeError(
                f"{grid.frames} frames, but a 2D position table cannot tell frames apart",
                where="latents",
                fix="use the 3D table (Basic3DPositionEmbeddingMixin), or single images",
            )
        if self.config.learnable and not self._has_rows(grid):
            raise ShapeError(
                f"a grid of {tuple(grid)} tokens is larger than the learned position table "
                f"of {tuple(self.grid)} (frames, rows, columns)",
                where="latents",
                fix="use at most the size of num_frames, latent_height and latent_width: "
                "rows that were never trained cannot be made up",
            )

    def forward(self, grid: PatchGrid) -> Tensor:
        """(1, n + grid.num_tokens, h): text rows, then one row per image token.

        Smaller latents use the top left part of the table. A fixed table is computed, once,
        where the grid is larger than the stored one.
        """
        if grid == self.grid:
            return self.table
        if self.config.first_rows and self._has_rows(grid):
            # Right for fewer frames; with fewer rows or columns a token gets the row of another
            # place, as upstream gives it (upstream_differences.md, F33).
            return self.table[:, : self.config.text_length + grid.num_tokens]
        text, image = self.table.split([self.config.text_length, self.grid.num_tokens], dim=1)
        if self._covers(grid):
            stored = image.unflatten(1, self.grid)
            image = stored[:, : grid.frames, : grid.rows, : grid.columns].flatten(1, 3)
        else:
            image = self._larger(grid)
        return torch.cat([text, image], dim=1)

    def _larger(self, grid: PatchGrid) -> Tensor:
        """(1, grid.num_tokens, h) image rows of a grid beyond the stored one, computed once."""
        key = (grid, self.table.device, self.table.dtype)
        if key not in self._computed:
            # Also used by training after a validation, which autograd would refuse.
            with torch.inference_mode(False):
                rows = sincos_table(grid, self.table.shape[-1], self.config)[None]
                self._computed[key] = rows.to(self.table)
            if len(self._computed) > MOST_GRIDS:
                self._computed.popitem(last=False)
        self._computed.move_to_end(key)
        return self._computed[key]

    def _has_rows(self, grid: PatchGrid) -> bool:
        if self.config.first_rows:
            return grid.num_tokens <= self.grid.num_tokens
        return self._covers(grid)

    def _covers(self, grid: PatchGrid) -> bool:
        return all(size <= stored for size, stored in zip(grid, self.grid, strict=True))
