"""One clip cut in time over the ranks of a group.

Latent frames are handed out in order, as evenly as they go: rank 0 has the start of the clip. What
a convolution needs of the frames before its own comes from the rank before.
Source: context parallelism of the CogVideoX autoencoder (arXiv:2408.06072, "3D Causal VAE"), with
uneven shares.
"""

from __future__ import annotations

import torch
from torch import Tensor

from app.distributed.rank_group import RankGroup


def shares(num_latents: int, size: int) -> list[int]:
    """Latent frames of each of `size` ranks, the first ones having one more where uneven."""
    return [num_latents // size + (rank < num_latents % size) for rank in range(size)]


def past_from_neighbour(last: Tensor, group: RankGroup) -> Tensor | None:
    """The frames before this rank's, for one convolution; every rank of the group calls it.

    Args:
        last: (B, C, n, H, W), n = 2, or 1 where this rank has one frame only: its last ones.
        group: the ranks that share the clip.

    Returns:
        (B, C, 2, H, W), or None on rank 0, which has the start of the clip.
    """
    rank, gives = group.rank, group.rank + 1 < group.size
    needs_past = last.shape[2] < 2
    if gives and not needs_past:
        group.send(last, rank + 1)
    past: Tensor | None = None
    if rank > 0:
        like = last.new_empty(*last.shape[:2], 2, *last.shape[3:])
        past = group.receive(like, rank - 1)
    if gives and needs_past:
        earlier = past if past is not None else last.expand(-1, -1, 2, -1, -1)
        group.send(torch.cat([earlier[:, :, 1:], last], dim=2), rank + 1)
    return past
