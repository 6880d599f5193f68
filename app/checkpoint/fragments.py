"""The unit of a checkpoint: a piece of one parameter's flattened tensor, and what it belongs to.

The engine gives these to the writer and gets them back from the reader; how the ranks divide a
parameter is not known here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Fragment:
    """Entries [start, start + values.numel()) of a flattened parameter."""

    name: str
    kind: str  # one of layout.KINDS
    start: int
    values: Tensor  # (numel,), fp32, on the CPU


@dataclass(frozen=True, slots=True)
class ParameterInfo:
    """A trained parameter: its whole shape and the number of its optimizer group."""

    shape: tuple[int, ...]
    group: int


def tensor_key(kind: str, name: str, start: int) -> str:
    """Name of a fragment inside its file."""
    return f"{kind}/{name}@{start}"


class Exchange(Protocol):
    """Bytes from every rank to rank 0, outside of the collectives of a training step."""

    rank: int
    world_size: int

    def gather(self, key: str, payload: bytes) -> list[bytes]:
        """Every rank's payload in order of rank on rank 0; an empty list elsewhere.

        A key is used once in a run. RetryableError when a rank does not answer in time.
        """
        ...

    def barrier(self) -> None:
        """Wait until every rank is here."""
        ...
