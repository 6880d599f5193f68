"""Small agreements between ranks: means, flags, one value for all. No pickle.

Tensors travel on the GPU under nccl and on the CPU under gloo; callers need not care.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def transport_device() -> torch.device:
    """The device on which the process group moves tensors."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def mean_over_ranks(values: Tensor) -> Tensor:
    """Mean of a tensor over ranks; same shape and device, every rank gets the same bits."""
    total = values.detach().to(transport_device(), copy=True)
    dist.all_reduce(total)
    return (total / dist.get_world_size()).to(values.device)


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sum of a tensor over ranks; same shape and device."""
    total = values.detach().to(transport_device(), copy=True)
    dist.all_reduce(total)
    return total.to(values.device)


def max_over_ranks(values: Sequence[float]) -> list[float]:
    """Largest of each value over ranks, in float64."""
    largest = torch.tensor(list(values), dtype=torch.float64, device=transport_device())
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return [float(value) for value in largest.tolist()]


def any_rank(flag: bool) -> bool:
    """True on every rank when it is true on one."""
    return max_over_ranks([float(flag)])[0] > 0


def broadcast_bytes(data: bytes | None, source: int = 0) -> bytes:
    """The bytes of rank `source`, on every rank; what the others pass is not looked at."""
    device = transport_device()
    is_source = dist.get_rank() == source
    payload = (data or b"") if is_source else b""
    size = torch.tensor([len(payload)], dtype=torch.int64, device=device)
    dist.broadcast(size, src=source)
    if not int(size):
        return b""
    buffer = torch.empty(int(size), dtype=torch.uint8, device=device)
    if is_source:
        buffer.copy_(torch.frombuffer(bytearray(payload), dtype=torch.uint8))
    dist.broadcast(buffer, src=source)
    return buffer.cpu().numpy().tobytes()


def broadcast_json(value: object, source: int = 0) -> object:
    """A JSON value of rank `source`, on every rank."""
    return json.loads(broadcast_bytes(json.dumps(value).encode(), source))


def gather_json(value: object) -> list[Any]:
    """A small JSON value of every rank, in rank order, on every rank."""
    data = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)
    device, count = transport_device(), dist.get_world_size()
    sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(count)]
    dist.all_gather(sizes, torch.tensor([data.numel()], dtype=torch.int64, device=device))
    longest = max(int(size) for size in sizes)
    padded = torch.zeros(longest, dtype=torch.uint8, device=device)
    padded[: data.numel()] = data.to(device)
    parts = [torch.empty_like(padded) for _ in range(count)]
    dist.all_gather(parts, padded)
    texts = [
        part.cpu().numpy()[: int(size)].tobytes() for part, size in zip(parts, sizes, strict=True)
    ]
    return [json.loads(text) for text in texts]


def barrier() -> None:
    """Wait until every rank is here."""
    # dist.barrier() of nccl guesses a device; a sum of nothing does not.
    dist.all_reduce(torch.zeros(1, device=transport_device()))


def broadcast_tensor(
    tensor: Tensor | None, shape: Sequence[int], dtype: torch.dtype, source: int = 0
) -> Tensor:
    """The tensor of rank `source` on every rank, on the device that the process group uses.

    Args:
        tensor: on `source`, of this shape and dtype, on any device; not looked at elsewhere.
    """
    device = transport_device()
    if dist.get_rank() == source:
        assert tensor is not None
        assert tuple(tensor.shape) == tuple(shape), f"{tensor.shape} is not {shape}"
        assert tensor.dtype == dtype, f"{tensor.dtype} is not {dtype}"
        whole = tensor.detach().to(device).contiguous()
    else:
        whole = torch.empty(tuple(shape), dtype=dtype, device=device)
    # As bytes: not every backend moves every dtype.
    dist.broadcast(whole.reshape(-1).view(torch.uint8), src=source)
    return whole
