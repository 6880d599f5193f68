"""Where a process or node stands in the job: the resolved table, with the source of each value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from app.distributed.variables import Sourced, default, derived

Mode = Literal["inside", "elastic", "static", "plain", "single"]

LOOPBACK = "127.0.0.1"
ANY_PORT = 0  # one node: a free one is chosen when something is started


@dataclass(frozen=True, kw_only=True, slots=True)
class RankLayout:
    """The resolved table. `sources` names, for each field, the variable that gave it.

    Modes: `inside` a process that torchrun or OpenMPI started; `elastic` and `static` a node on
    which torchrun has to be started; `plain` one process per pod; `single` one process alone.
    """

    mode: Mode
    node_rank: int | None  # None: elastic, the rendezvous gives it
    nodes: int  # elastic: the most there may be
    nproc_per_node: int
    world_size: int  # processes in all
    master_addr: str
    master_port: int  # 0: any free one
    local_rank: int  # of this process; 0 on a node on which torchrun has to be started
    rank: int  # of this process, or of the first one of its node
    sources: Mapping[str, str]
    standalone: bool = False  # torchrun --standalone

    def as_dict(self) -> dict[str, object]:
        """The table as a person reads it: `cogvx doctor --json` prints it under `rank`."""
        found: dict[str, object] = {name: getattr(self, name) for name in self.sources}
        return {**found, "mode": self.mode, "sources": dict(self.sources)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What one row of the table read; `layout_of` completes it."""

    mode: Mode
    node_rank: Sourced[int] | None
    nodes: Sourced[int]
    nproc: Sourced[int]
    host: Sourced[str]  # empty: not given
    port: Sourced[int]
    world: Sourced[int] | None = None  # None: nodes * nproc
    rank: int | None = None  # None: the first of the node
    local_rank: int = 0
    standalone: bool = False


def layout_of(reading: Reading) -> RankLayout:
    """Fill in what follows from the rest."""
    node_rank, nodes, nproc, host = reading.node_rank, reading.nodes, reading.nproc, reading.host
    world = reading.world or derived(nodes.value * nproc.value, nodes, nproc, sign="*")
    if not host.value and nodes.value == 1:
        host = default(LOOPBACK)
    first = 0 if node_rank is None else node_rank.value * nproc.value
    return RankLayout(
        mode=reading.mode,
        node_rank=None if node_rank is None else node_rank.value,
        nodes=nodes.value,
        nproc_per_node=nproc.value,
        world_size=world.value,
        master_addr=host.value,
        master_port=reading.port.value,
        local_rank=reading.local_rank,
        rank=first if reading.rank is None else reading.rank,
        sources={
            "node_rank": "rendezvous" if node_rank is None else node_rank.source,
            "nodes": nodes.source,
            "nproc_per_node": nproc.source,
            "world_size": world.source,
            "master_addr": host.source,
            "master_port": reading.port.source,
        },
        standalone=reading.standalone,
    )
