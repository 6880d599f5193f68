"""Where a process or node stands in the job: the resolved table, and the rules it must obey."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from app.errors import ConfigError
from app.launch.variables import Found, default

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
    sources: Mapping[str, str]
    standalone: bool = False  # torchrun --standalone

    def as_dict(self) -> dict[str, object]:
        """The table as a person reads it: `cogvx doctor --json` prints it under `rank`."""
        return {
            "node_rank": self.node_rank,
            "nodes": self.nodes,
            "nproc_per_node": self.nproc_per_node,
            "world_size": self.world_size,
            "master_addr": self.master_addr,
            "master_port": self.master_port,
            "mode": self.mode,
            "sources": dict(self.sources),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What one row of the table read; `placed` completes it."""

    mode: Mode
    node_rank: Found[int] | None
    nodes: Found[int]
    nproc: Found[int]
    host: Found[str]  # empty: not given
    port: Found[int]
    world: Found[int] | None = None  # None: nodes * nproc
    standalone: bool = False


def derived(value: int, *parts: Found[int], sign: str = "/") -> Found[int]:
    """A value computed from others; its source names theirs."""
    names = list(dict.fromkeys(part.source for part in parts))
    return Found(value, f" {sign} ".join(names))


def placed(reading: Reading) -> RankLayout:
    """Fill in what follows from the rest."""
    world = reading.world
    if world is None:
        product = reading.nodes.value * reading.nproc.value
        world = derived(product, reading.nodes, reading.nproc, sign="*")
    host = reading.host
    if not host.value and reading.nodes.value == 1:
        host = default(LOOPBACK)
    return RankLayout(
        mode=reading.mode,
        node_rank=None if reading.node_rank is None else reading.node_rank.value,
        nodes=reading.nodes.value,
        nproc_per_node=reading.nproc.value,
        world_size=world.value,
        master_addr=host.value,
        master_port=reading.port.value,
        sources={
            "node_rank": "rendezvous" if reading.node_rank is None else reading.node_rank.source,
            "nodes": reading.nodes.source,
            "nproc_per_node": reading.nproc.source,
            "world_size": world.source,
            "master_addr": host.source,
            "master_port": reading.port.source,
        },
        standalone=reading.standalone,
    )


def contradiction(what: str, where: str, fix: str = "") -> ConfigError:
    """Two variables that cannot both be true; refused here, since it would hang later."""
    return ConfigError(
        what,
        where=f"environment: {where}",
        fix=fix or "correct the one that is wrong, or unset both to run as one process",
    )


def placement_of_this_machine(nproc_per_node: int) -> RankLayout:
    """`nproc_per_node` processes on one machine, where nobody set a variable."""
    return placed(
        Reading(
            mode="static" if nproc_per_node > 1 else "single",
            node_rank=default(0),
            nodes=default(1),
            nproc=Found(nproc_per_node, "--nproc-per-node"),
            host=default(LOOPBACK),
            port=default(ANY_PORT),
        )
    )
