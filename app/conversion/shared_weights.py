"""Weights read by rank 0 and received by the others, one tensor at a time.

A node with eight ranks would otherwise download and read a file eight times. What travels is
already in the run's dtype. Beyond the networks themselves the memory in use is one tensor per rank
and, on rank 0, pages of the file that the kernel may drop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from app.conversion.weights_file import Kind, WeightsFile, open_weights
from app.distributed.agreement import error_fields, error_from_fields
from app.distributed.rank_group import transport_device, world
from app.errors import CogvxError


class ReadableWeights(Protocol):
    """What loading needs of a file: a WeightsFile, or one that rank 0 reads for all."""

    @property
    def where(self) -> str: ...
    @property
    def kind(self) -> Kind: ...
    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def metadata(self) -> Mapping[str, str]: ...

    def our_outline(self) -> dict[str, Tensor]: ...
    def our_tensors(self) -> Iterator[tuple[str, Tensor]]: ...


@dataclass(frozen=True)
class SharedWeights:
    """Weights of rank 0 on every rank. All ranks must iterate over `our_tensors` to its end.

    Attributes:
        file: open on rank 0, None elsewhere.
        outline: our name -> (shape, name of the dtype in the file).
        dtype: of floating-point tensors on their way.
    """

    where: str
    kind: Kind
    names: tuple[str, ...]
    metadata: Mapping[str, str]
    outline: Mapping[str, tuple[tuple[int, ...], str]]
    dtype: torch.dtype
    file: WeightsFile | None = field(default=None, repr=False)

    def our_outline(self) -> dict[str, Tensor]:
        """Names, shapes and dtypes of the network's tensors, on the meta device."""
        return {
            name: torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
            for name, (shape, dtype) in self.outline.items()
        }

    def our_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors in the same order on every rank, each valid until the next is read."""
        read = None if self.file is None else self.file.our_tensors()
        for name, (shape, stored) in self.outline.items():
            dtype = self._travels_as(getattr(torch, stored))
            if read is None:
                tensor = torch.empty(shape, dtype=dtype, device=transport_device())
            else:
                own_name, own = next(read)
                assert own_name == name, f"{own_name} came instead of {name}"
                tensor = own.to(dtype).to(transport_device())
            yield name, world().broadcast(tensor)

    def _travels_as(self, stored: torch.dtype) -> torch.dtype:
        return self.dtype if stored.is_floating_point else stored


@contextmanager
def open_for_all(locate: Callable[[], Path], dtype: torch.dtype) -> Iterator[ReadableWeights]:
    """Open weights on rank 0 for all ranks; without a process group, for this process.

    Args:
        locate: finds the file on rank 0, downloading it if need be; not called elsewhere.
        dtype: of the network, in which floating-point tensors travel.

    Raises:
        InputMissingError: there is nothing to open.
        WeightsError: the content is not what the name promises. Every rank raises what rank 0 met.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        with open_weights(locate()) as file:
            yield file
        return
    if dist.get_rank():
        yield _from_header(_agreed(None), dtype, None)
        return
    try:
        opened = open_weights(locate())
        file = opened.__enter__()
        header = _header(file)
    except CogvxError as problem:
        _agreed({"error": error_fields(problem)})
        raise
    try:
        yield _from_header(_agreed(header), dtype, file)
    finally:
        opened.__exit__(None, None, None)


def _header(file: WeightsFile) -> dict[str, Any]:
    """Everything about a file but its values, as JSON."""
    outline = {
        name: [list(tensor.shape), str(tensor.dtype).removeprefix("torch.")]
        for name, tensor in file.our_outline().items()
    }
    return {
        "where": file.where,
        "kind": file.kind,
        "names": list(file.names),
        "metadata": dict(file.metadata),
        "outline": outline,
    }


def _agreed(header: dict[str, Any] | None) -> dict[str, Any]:
    """Rank 0's header on every rank; on the others, rank 0's error is raised."""
    agreed = world().broadcast_json(header)
    if "error" in agreed and dist.get_rank():
        raise error_from_fields(agreed["error"])
    return dict(agreed)


def _from_header(
    header: Mapping[str, Any], dtype: torch.dtype, file: WeightsFile | None
) -> SharedWeights:
    return SharedWeights(
        where=header["where"],
        kind=header["kind"],
        names=tuple(header["names"]),
        metadata=header["metadata"],
        outline={name: (tuple(shape), kind) for name, (shape, kind) in header["outline"].items()},
        dtype=dtype,
        file=file,
    )
