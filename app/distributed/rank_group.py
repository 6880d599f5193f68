"""Some ranks of the gang: what they add up, and what the first of them tells the others.

`enter` and `leave` enclose work that the ranks of a group share, each with its own part of the
weights. Values are the same on all ranks before and after, and so are gradients: `enter` sums the
gradients of the parts, `leave` sums the parts.
Source: Megatron-LM, arXiv:1909.08053, section 3, where the two are called f and g.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from app.distributed.collectives import transport_device


@dataclass(frozen=True, eq=False, slots=True)
class RankGroup:
    """`size` ranks, of which this process is number `rank`. A group of one needs no handle."""

    rank: int = 0
    size: int = 1
    handle: dist.ProcessGroup | None = None  # None: all ranks of the gang

    def sum(self, x: Tensor) -> Tensor:
        """The sum over the ranks; same shape and device, every rank gets the same bits."""
        if self.size == 1:
            return x.detach().clone()
        total = x.detach().to(transport_device(), copy=True).contiguous()
        dist.all_reduce(total, group=self.handle)
        return total.to(x.device)

    def gathered(self, x: Tensor) -> list[Tensor]:
        """`x` of every rank in order; all have the same shape and dtype."""
        if self.size == 1:
            return [x]
        own = x.detach().to(transport_device()).contiguous()
        found = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(found, own, group=self.handle)
        return [one.to(x.device) for one in found]

    def broadcast(self, x: Tensor) -> Tensor:
        """`x` of the first rank; the others give one of the same shape and dtype."""
        if self.size == 1:
            return x
        moved = x.detach().to(transport_device()).contiguous()
        # As bytes: not every backend moves every dtype.
        dist.broadcast(moved.reshape(-1).view(torch.uint8), src=self._first(), group=self.handle)
        return moved.to(x.device)

    def broadcast_json(self, value: object) -> Any:
        """A JSON value of the first rank; what the others pass is not looked at."""
        if self.size == 1:
            return json.loads(json.dumps(value))
        payload = json.dumps(value).encode() if self.rank == 0 else b""
        length = self.broadcast(torch.tensor([len(payload)], dtype=torch.int64))
        buffer = torch.zeros(int(length), dtype=torch.uint8)
        if self.rank == 0:
            buffer = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
        return json.loads(self.broadcast(buffer).numpy().tobytes())

    def _first(self) -> int:
        return 0 if self.handle is None else dist.get_global_rank(self.handle, 0)


ALONE = RankGroup()


def enter(x: Tensor, group: RankGroup) -> Tensor:
    """`x` as it is; its gradient is the sum over the ranks of the group."""
    return x if group.size == 1 else _entered(x, group)


def leave(x: Tensor, group: RankGroup) -> Tensor:
    """The sum of `x` over the ranks of the group; the gradient passes as it is."""
    return x if group.size == 1 else _left(x, group)


@torch.compiler.disable
def _entered(x: Tensor, group: RankGroup) -> Tensor:
    return _Enter.apply(x, group)


@torch.compiler.disable
def _left(x: Tensor, group: RankGroup) -> Tensor:
    return _Leave.apply(x, group)


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, group: RankGroup) -> Tensor:
        context.group = group
        return x.view_as(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return context.group.sum(gradient), None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, group: RankGroup) -> Tensor:
        return group.sum(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None
