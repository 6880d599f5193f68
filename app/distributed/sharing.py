"""Which ranks share one copy of the network, and its batch; which ones share their clips."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from app.distributed.groups import ProcessGroups
from app.distributed.rank import check_clip_groups, check_copies
from app.distributed.rank_group import RankGroup
from app.errors import DataError


def split_ranks(groups: ProcessGroups, size: int) -> ProcessGroups:
    """Let neighbouring ranks share a network, `size` of them each; every rank calls this.

    Rank r holds part r % size of copy r // size, as in upstream's model-parallel groups.

    Raises:
        ConfigError: the number of ranks is not a multiple of `size`.
    """
    if size == 1:
        return groups
    rank, world_size = groups.rank.rank, groups.rank.world_size
    check_copies(world_size, size)
    copies = world_size // size
    # Every rank must take part in making every group, those of others too.
    shared = [dist.new_group(list(range(i * size, (i + 1) * size))) for i in range(copies)]
    apart = [dist.new_group(list(range(part, world_size, size))) for part in range(size)]
    copy, part = divmod(rank, size)
    return replace(
        groups,
        tensor=RankGroup(part, size, shared[copy]),
        data=RankGroup(copy, copies, apart[part]),
    )


def share_clips(groups: ProcessGroups, size: int) -> ProcessGroups:
    """Let neighbouring ranks encode clips together, `size` of them each; every rank calls this.

    Raises:
        ConfigError: the number of ranks is not a multiple of `size`.
    """
    rank, world_size = groups.rank.rank, groups.rank.world_size
    check_clip_groups(world_size, size)
    if size == 1:
        return groups
    # Every rank must take part in making every group, those of others too.
    firsts = range(0, world_size, size)
    handles = [dist.new_group(list(range(first, first + size))) for first in firsts]
    return replace(groups, clips=RankGroup(rank % size, size, handles[rank // size]))


def of_first_rank(value: Mapping[str, Any], group: RankGroup) -> dict[str, Any]:
    """Tensors on the CPU and JSON values by name: those of the first rank, on every rank.

    Args:
        value: ignored on the other ranks.

    Raises:
        DataError: on the first rank, which then leaves the others: a value cannot travel.
    """
    if group.size == 1:
        return dict(value)
    own = dict(value) if group.rank == 0 else {}
    tensors = {name: item for name, item in own.items() if isinstance(item, Tensor)}
    outline = {name: [list(t.shape), str(t.dtype)[6:]] for name, t in tensors.items()}
    plain = {name: _plain(name, item) for name, item in own.items() if name not in tensors}
    names, plain, outline = group.broadcast_json([list(own), plain, outline])
    for name, (shape, dtype) in outline.items():
        empty = torch.empty(shape, dtype=getattr(torch, dtype))
        plain[name] = group.broadcast(tensors.get(name, empty))
    return {name: plain[name] for name in names}


def _plain(name: str, item: object) -> object:
    try:
        json.dumps(item)
    except (TypeError, ValueError):
        raise DataError(
            f"a batch holds '{name}' of type {type(item).__name__}, which cannot be sent to the "
            "processes that share the network",
            where="the batch of the data loader",
            fix="give tensors, numbers, texts and lists of these, or model_parallel_size 1",
        ) from None
    return item
