"""Some ranks of the job, or all of them: sums, values of one rank for all, tensors between two.

Every rank of a group must make the same calls in the same order. Tensors travel on the GPU under
nccl and on the CPU under gloo; callers need not care. No pickle.

`enter` and `leave` enclose work that the ranks of a group share, each with its own part of the
weights. Values are the same on all ranks before and after, and so are gradients: `enter` sums the
gradients of the parts, `leave` sums the parts.
Source: Megatron-LM, arXiv:1909.08053, section 3, where the two are called f and g.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

P = ParamSpec("P")
T = TypeVar("T")


def transport_device() -> torch.device:
    """The device on which the process group moves tensors."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


@dataclass(frozen=True, eq=False, slots=True)
class RankGroup:
    """`size` ranks, of which this process is number `rank`. A group of one needs no handle."""

    rank: int = 0
    size: int = 1
    handle: dist.ProcessGroup | None = None  # None: all ranks of the job

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

    def broadcast(self, x: Tensor, source: int = 0) -> Tensor:
        """`x` of rank `source`; the others give one of the same shape and dtype, left as it is."""
        if self.size == 1:
            return x
        if self.rank == source:
            moved = x.detach().to(transport_device()).contiguous()
        else:
            moved = torch.empty(x.shape, dtype=x.dtype, device=transport_device())
        dist.broadcast(_bytes(moved), src=self._in_job(source), group=self.handle)
        return x if self.rank == source else moved.to(x.device)

    def send(self, x: Tensor, to: int) -> None:
        """Give `x` to rank `to`, which calls `receive` for the same shape and dtype."""
        moved = x.detach().to(transport_device()).contiguous()
        dist.send(_bytes(moved), self._in_job(to), group=self.handle)

    def receive(self, like: Tensor, source: int) -> Tensor:
        """What rank `source` sends; of the shape, dtype and device of `like`."""
        found = torch.empty(like.shape, dtype=like.dtype, device=transport_device())
        dist.recv(_bytes(found), self._in_job(source), group=self.handle)
        return found.to(like.device)

    def broadcast_json(self, value: object) -> Any:
        """A JSON value of the first rank; what the others pass is ignored."""
        payload = json.dumps(value).encode() if self.rank == 0 else b""
        length = self.broadcast(torch.tensor([len(payload)], dtype=torch.int64))
        buffer = torch.zeros(int(length), dtype=torch.uint8)
        if self.rank == 0:
            buffer = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
        return json.loads(self.broadcast(buffer).numpy().tobytes())

    def gathered_json(self, value: object) -> list[Any]:
        """A small JSON value of every rank, in order."""
        own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = [int(size) for size in self.gathered(torch.tensor([len(own)]))]
        padded = torch.zeros(max(sizes), dtype=torch.uint8)
        padded[: len(own)] = own
        parts = zip(self.gathered(padded), sizes, strict=True)
        return [json.loads(part[:size].numpy().tobytes()) for part, size in parts]

    def barrier(self) -> None:
        """Wait until every rank is here."""
        # dist.barrier() of nccl guesses a device; a sum of nothing does not.
        self.sum(torch.zeros(1))

    def _in_job(self, rank: int) -> int:
        """The number among all ranks of number `rank` of this group."""
        return rank if self.handle is None else dist.get_global_rank(self.handle, rank)


def _bytes(x: Tensor) -> Tensor:
    """The memory of a contiguous tensor as bytes: not every backend moves every dtype."""
    return x.reshape(-1).view(torch.uint8)


ALONE = RankGroup()


def world() -> RankGroup:
    """All ranks of the job, which this process has joined."""
    return RankGroup(dist.get_rank(), dist.get_world_size())


def enter(x: Tensor, group: RankGroup) -> Tensor:
    """`x` as it is; its gradient is the sum over the ranks of the group."""
    return x if group.size == 1 else _entered(x, group)


def leave(x: Tensor, group: RankGroup) -> Tensor:
    """The sum of `x` over the ranks of the group; the gradient passes as it is."""
    return x if group.size == 1 else _left(x, group)


def _opaque(function: Callable[P, T]) -> Callable[P, T]:
    """`torch.compiler.disable` at the first call: it imports the compiler, which takes seconds."""
    disabled: list[Callable[P, T]] = []

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        if not disabled:
            disabled.append(torch.compiler.disable(function))
        return disabled[0](*args, **kwargs)

    return call


@_opaque
def _entered(x: Tensor, group: RankGroup) -> Tensor:
    return _Enter.apply(x, group)


@_opaque
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
