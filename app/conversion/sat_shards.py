"""Put tensor-parallel shards of a SAT checkpoint together, and cut a checkpoint into them.

Rank t of m holds a slice of the attention and MLP weights: projections into the heads and into the
wide MLP are cut by rows (query, key and value each for itself), projections out of them by columns.
Everything else is the same on every rank.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from app.errors import ConfigError, WeightsError

_QKV = re.compile(r".*\.query_key_value\.(?:original\.)?(?:weight|bias)")
_ROWS = re.compile(
    r".*\.dense_h_to_4h\.(?:weight|bias)|.*\.swiglu\.w2\.\d+\.weight"
    r"|.*\.query_key_value\.matrix_B\.\d+"
)
_COLUMNS = re.compile(r".*\.(?:attention\.dense|dense_4h_to_h)\.(?:original\.)?weight")


class ShardedTensors(Mapping[str, Tensor]):
    """The whole tensors of several ranks' state dicts, put together when they are read."""

    def __init__(self, shards: Sequence[Mapping[str, Tensor]], where: str) -> None:
        """Take the state dicts in rank order.

        Raises:
            WeightsError: the ranks do not have the same names.
        """
        self._shards = shards
        for rank, shard in enumerate(shards):
            different = set(shard) ^ set(shards[0])
            if different:
                raise WeightsError(
                    f"rank {rank} and rank 0 differ in {sorted(different)[0]}",
                    where=where,
                    mend="fetch all mp_rank_*_model_states.pt of one checkpoint",
                )

    def __getitem__(self, name: str) -> Tensor:
        return whole([shard[name] for shard in self._shards], name)

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self._shards[0])

    def __len__(self) -> int:
        return len(self._shards[0])


def whole(parts: Sequence[Tensor], name: str) -> Tensor:
    """One tensor from its slices in rank order; the first one where all ranks have the same."""
    if len(parts) == 1:
        return parts[0]
    if _QKV.fullmatch(name):
        thirds = [part.chunk(3) for part in parts]
        return torch.cat([third[index] for index in range(3) for third in thirds])
    if _ROWS.fullmatch(name):
        return torch.cat(list(parts))
    if _COLUMNS.fullmatch(name):
        return torch.cat(list(parts), dim=1)
    return parts[0]


def cut(tensor: Tensor, name: str, count: int) -> list[Tensor]:
    """The slices of `count` ranks, of which `whole` makes the tensor again.

    Raises:
        ConfigError: rows or columns do not divide into that many.
    """
    if count == 1:
        return [tensor]
    if _QKV.fullmatch(name):
        thirds = [_equal(third, count, 0, name) for third in tensor.chunk(3)]
        return [torch.cat([third[rank] for third in thirds]) for rank in range(count)]
    if _ROWS.fullmatch(name):
        return _equal(tensor, count, 0, name)
    if _COLUMNS.fullmatch(name):
        return _equal(tensor, count, 1, name)
    return [tensor] * count


def _equal(tensor: Tensor, count: int, axis: int, name: str) -> list[Tensor]:
    if tensor.shape[axis] % count:
        raise ConfigError(
            f"{name} has {tensor.shape[axis]} {('rows', 'columns')[axis]}, which {count} ranks "
            "cannot share",
            where="--shards",
            mend="use a divisor of the number of attention heads",
        )
    return list(tensor.chunk(count, dim=axis))
