"""Groups of neighbouring ranks that work on one clip, and what they hand to each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from app.distributed.collectives import transport_device
from app.distributed.groups import ProcessGroups
from app.distributed.rank import check_clip_groups
from app.distributed.rank_group import RankGroup


def share_clips(groups: ProcessGroups, size: int) -> ProcessGroups:
    """Let neighbouring ranks encode clips together, `size` of them each; every rank calls this.

    Raises:
        ConfigError: the number of ranks is no multiple of `size`.
    """
    rank, world_size = groups.rank.rank, groups.rank.world_size
    check_clip_groups(world_size, size)
    if size == 1:
        return groups
    # Every rank must take part in making every group, those of others too.
    firsts = range(0, world_size, size)
    handles = [dist.new_group(list(range(first, first + size))) for first in firsts]
    return replace(groups, clips=RankGroup(rank % size, size, handles[rank // size]))


def send(x: Tensor, group: RankGroup, to: int) -> None:
    """Give `x` to rank `to` of the group, which calls `receive` for the same shape and dtype."""
    dist.send(_bytes(x.detach().to(transport_device())), _in_gang(group, to), group=group.handle)


def receive(like: Tensor, group: RankGroup, source: int) -> Tensor:
    """What rank `source` of the group sends; of the shape, dtype and device of `like`."""
    found = torch.empty(like.shape, dtype=like.dtype, device=transport_device())
    dist.recv(_bytes(found), _in_gang(group, source), group=group.handle)
    return found.to(like.device)


def broadcast_from(x: Tensor, group: RankGroup, source: int) -> Tensor:
    """`x` of rank `source` on every rank, which give one of the same shape and dtype."""
    moved = x.detach().to(transport_device(), copy=True).contiguous()
    dist.broadcast(_bytes(moved), _in_gang(group, source), group=group.handle)
    return moved.to(x.device)


def shapes_of_ranks(shape: Sequence[int], group: RankGroup) -> list[tuple[int, ...]]:
    """The shape that each rank names, in order; all have the same number of axes."""
    found = group.gathered(torch.tensor(list(shape), dtype=torch.int64))
    return [tuple(int(size) for size in one) for one in found]


def _bytes(x: Tensor) -> Tensor:
    """The same memory as bytes: not every backend moves every dtype."""
    return x.contiguous().reshape(-1).view(torch.uint8)


def _in_gang(group: RankGroup, part: int) -> int:
    return part if group.handle is None else dist.get_global_rank(group.handle, part)
