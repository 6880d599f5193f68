"""One clip cut in time over the ranks of a group.

Latent frames are handed out in order, as evenly as they go: rank 0 has the start of the clip. What
a convolution needs of the frames before its own comes from the rank before.
Source: context parallelism of the CogVideoX autoencoder (arXiv:2408.06072, "3D Causal VAE"), with
uneven shares.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from app.distributed.rank_group import RankGroup
from app.errors import ShapeError


def shares(num_latents: int, size: int) -> list[int]:
    """Latent frames of each of `size` ranks, the first ones having one more where uneven."""
    return [num_latents // size + (rank < num_latents % size) for rank in range(size)]


def check_shares(num_latents: int, size: int, time_stride: int) -> None:
    """Refuse a clip that has not a latent frame for every rank.

    Raises:
        ShapeError: with the sizes that work, and the clip that this size needs.
    """
    if num_latents < size:
        valid = ", ".join(str(n) for n in range(1, num_latents + 1))
        frames = (num_latents - 1) * time_stride + 1
        raise ShapeError(
            f"{frames} frames ({num_latents} latent frames) cannot be split over {size} ranks",
            where="context parallelism of the VAE (cp_size)",
            fix=f"use cp_size {valid}, or clips of at least "
            f"{(size - 1) * time_stride + 1} frames ({size} latent frames)",
        )


@dataclass(frozen=True, slots=True)
class ClipPart:
    """What this rank holds of one chunk of a clip.

    Attributes:
        group: who shares the chunk.
        active: how many ranks hold frames of it, from rank 0; the others compute on a stand-in,
            which counts nowhere, so that all ranks do the same steps.
        before: `active` of the chunk before; 0: this is the first chunk of the clip.
    """

    group: RankGroup
    active: int = 1
    before: int = 0

    @property
    def is_start(self) -> bool:
        """This rank has the first frame of the clip."""
        return self.before == 0 and self.group.rank == 0

    @property
    def is_idle(self) -> bool:
        return self.group.rank >= self.active

    def past(self, own: Tensor | None, last: Tensor) -> Tensor | None:
        """The frames before this rank's, for one convolution; every rank of the group calls it.

        Args:
            own: what the same convolution kept of the chunk before; None in the first chunk.
            last: (B, C, n, H, W), n = 2, or 1 where this rank has one frame only: its last ones.

        Returns:
            (B, C, 2, H, W), or None at the start of the clip.
        """
        past = self._of_chunk_before(own)
        rank, group = self.group.rank, self.group
        if self.is_idle:
            return None
        gives, takes = rank + 1 < self.active, rank > 0
        needs_past = last.shape[2] < 2
        if gives and not needs_past:
            group.send(last, rank + 1)
        if takes:
            like = last.new_empty(*last.shape[:2], 2, *last.shape[3:])
            past = group.receive(like, rank - 1)
        if gives and needs_past:
            earlier = past if past is not None else last.expand(-1, -1, 2, -1, -1)
            group.send(torch.cat([earlier[:, :, 1:], last], dim=2), rank + 1)
        return past

    def _of_chunk_before(self, own: Tensor | None) -> Tensor | None:
        """On rank 0 the frames before the chunk, which the last active rank of that one has."""
        holder = self.before - 1
        if holder > 0:
            assert own is not None, "a later chunk needs what the one before kept"
            if self.group.rank == holder:
                self.group.send(own, 0)
            if self.group.rank == 0:
                return self.group.receive(own, holder)
        return own if self.group.rank == 0 else None
