"""The table of a latent cache: made by one process of a node, mapped by all of them.

It is in a file without a name, which peers open through /proc: whoever ends, and however, nothing
is left. A process that sees no such file (another container, another folder of data) makes its own.
"""

from __future__ import annotations

import os
import secrets
import socket
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from app.data.latent_table import MARK_BYTES, LatentTable
from app.data.sources.protocols import Source
from app.distributed.agreement import on_every_rank
from app.distributed.rank import RankInfo
from app.distributed.rank_group import ALONE, RankGroup
from app.errors import ConfigError


@dataclass(frozen=True, slots=True)
class NodePeers:
    """All ranks of the job, and the number of this process on its node."""

    ranks: RankGroup = ALONE
    local_rank: int = 0

    @classmethod
    def of(cls, rank: RankInfo) -> NodePeers:
        return cls(RankGroup(rank.rank, rank.world_size), rank.local_rank)


def once_per_node(
    peers: NodePeers, folder: Path, source: Source, make: Callable[[], LatentTable]
) -> LatentTable:
    """The table of a source; every rank of the job calls this, the first of each node makes it.

    Args:
        peers: who takes part.
        folder: on the node's disk, for the file.
        source: the samples of the table; a peer with other ones makes a table of its own.
        make: lists and reads.

    Raises:
        CogvxError: on every rank, what `make` raised on one of them.
        ConfigError: on every rank: a folder cannot be used.
    """
    if peers.ranks.size == 1:
        return make()
    mark = secrets.token_bytes(MARK_BYTES)
    found: list[LatentTable] = []
    with ExitStack() as stack:

        def offer() -> list[Any] | None:
            if peers.local_rank:
                return None
            file = _written(make(), folder, mark, stack)
            found.append(LatentTable.mapped(file, mark))
            # A peer that sees another folder of data has a table of its own.
            facts = [source.fingerprint(), mark.hex(), os.getpid(), file.fileno()]
            return [socket.gethostname(), *facts]

        offers = on_every_rank(peers.ranks, offer)

        def take() -> None:
            if not found:
                found.append(_opened(offers, source) or make())

        on_every_rank(peers.ranks, take)  # the file stays open until all have it
    return found[0]


def _written(table: LatentTable, folder: Path, mark: bytes, stack: ExitStack) -> BinaryIO:
    """The table in a new file without a name, which `stack` closes."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = stack.enter_context(tempfile.TemporaryFile(dir=folder))  # noqa: SIM115
        table.write(file, mark)
    except OSError as problem:
        raise ConfigError(
            f"the cache folder cannot be used: {problem.strerror}",
            where=f"data.cache_dir: {folder}",
            fix="name a folder on the node's disk that may be written and has room",
        ) from problem
    return file


def _opened(offers: list[Any], source: Source) -> LatentTable | None:
    """The table that another process of this node has made of the same samples."""
    here = socket.gethostname()
    for host, fingerprint, mark, pid, descriptor in filter(None, offers):
        if host != here or fingerprint != source.fingerprint():
            continue
        # With other process numbers, as in another container, this is any file, or a pipe.
        place = f"/proc/{pid}/fd/{descriptor}"
        with suppress(OSError, ValueError), open(place, "rb", opener=_at_once) as file:
            return LatentTable.mapped(file, bytes.fromhex(mark))
    return None


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)
