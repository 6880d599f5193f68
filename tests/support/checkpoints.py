"""A made-up training state, saved and read back at any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from app.checkpoint.fragments import Fragment, ParameterInfo
from app.checkpoint.layout import KINDS
from app.checkpoint.manifest import CheckpointIdentity
from app.checkpoint.reader import Checkpoint
from app.checkpoint.train_state import TrainState
from app.checkpoint.writer import Snapshot, save_checkpoint
from app.storage.objects import Storage
from tests.support.ranks import ThreadExchange, run_ranks

SHAPES = {
    "blocks.0.attention.q.weight": (17, 64),
    "blocks.0.attention.q.bias": (17,),
    "blocks.10.mlp.up.weight": (33, 7),
    "blocks.2.norm.weight": (5,),
    "scale": (),
}
PARAMETERS = {
    name: ParameterInfo(shape, 0 if len(shape) > 1 else 1) for name, shape in SHAPES.items()
}

Values = dict[tuple[str, str], Tensor]  # (name, kind) -> flat fp32


def made_up_values(seed: int, kinds: tuple[str, ...] = KINDS) -> Values:
    """Random values; the master weights of half of them are exact bf16 numbers."""
    generator = torch.Generator().manual_seed(seed)
    values: Values = {}
    for index, (name, shape) in enumerate(SHAPES.items()):
        for kind in kinds:
            drawn = torch.randn(torch.Size(shape).numel(), generator=generator)
            values[name, kind] = drawn.bfloat16().float() if index % 2 else drawn
    return values


def share(numel: int, rank: int, world_size: int) -> tuple[int, int]:
    """First and last + 1 of a rank's entries, in uneven shares."""
    cuts = [numel * r * (r + 1) // (world_size * (world_size + 1)) for r in range(world_size + 1)]
    return cuts[rank], cuts[rank + 1]


def fragments_of(
    values: Values, rank: int, world_size: int, kinds: tuple[str, ...] = KINDS
) -> Iterator[Fragment]:
    for name in SHAPES:
        for kind in kinds:
            whole = values[name, kind]
            first, last = share(whole.numel(), rank, world_size)
            if last > first:
                yield Fragment(name, kind, first, whole[first:last].clone())


def identity_of(step: int, attempt: int, parent: str | None = None) -> CheckpointIdentity:
    return CheckpointIdentity(
        run_id="run", attempt=attempt, owner="3f9c2a1b", step=step, kind="full", parent=parent
    )


def save(
    storage: Storage,
    scratch: Path,
    *,
    step: int,
    attempt: int = 1,
    world_size: int = 1,
    values: Values | None = None,
    rng: Mapping[str, object] | None = None,
) -> list[str | Exception | None]:
    """Save one checkpoint from several ranks; what each rank got."""
    found = values if values is not None else made_up_values(step)
    kinds = tuple(kind for kind in KINDS if ("scale", kind) in found)

    def one(exchange: ThreadExchange) -> str | None:
        rank = exchange.rank
        snapshot = Snapshot(
            fragments=fragments_of(found, rank, world_size, kinds),
            parameters=PARAMETERS,
            state=TrainState(step=step, cursor={"t": step}) if rank == 0 else None,
            rng=dict(rng, rank=rank) if rng is not None else None,
        )
        return save_checkpoint(storage, identity_of(step, attempt), snapshot, exchange, scratch)

    return run_ranks(world_size, one)


def read_back(checkpoint: Checkpoint, world_size: int) -> Values:
    """Every value, read as `world_size` ranks would and put together."""
    values: Values = {}
    for name, record in checkpoint.manifest.parameters.items():
        for kind in record.kinds:
            pieces = []
            for rank in range(world_size):
                first, last = share(record.numel, rank, world_size)
                pieces.append(checkpoint.read(name, kind, first, last - first))
            values[name, kind] = torch.cat(pieces)
    return values


def same_bits(left: Values, right: Values) -> bool:
    return left.keys() == right.keys() and all(
        left[key].view(torch.int32).equal(right[key].view(torch.int32)) for key in left
    )
