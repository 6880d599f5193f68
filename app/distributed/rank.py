"""Which process of the job this one is: rank, world size, local rank, master's address.

Made once, from the resolved environment (environment.py), and passed on as a value.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass

from app.distributed.environment import resolve_layout
from app.distributed.layout import LOOPBACK, RankLayout
from app.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class RankInfo:
    """One process of the job. `node_rank` counts machines, `local_rank` processes on one."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node_rank: int
    master_addr: str
    master_port: int

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> RankInfo:
        """Resolve the variables; one process without any of them is rank 0 of 1.

        Raises:
            ConfigError: a variable cannot be read, or two of them contradict each other.
        """
        return cls.of(resolve_layout(environment))

    @classmethod
    def of(cls, layout: RankLayout) -> RankInfo:
        """This process in a resolved table; where no port is given, a free one.

        On a node on which torchrun has to be started, a process that torchrun did not start is
        the node's first one; in an elastic job, where only the rendezvous gives ranks, it is alone.
        """
        alone = layout.node_rank is None or layout.standalone
        return cls(
            rank=0 if alone else layout.rank,
            world_size=1 if alone else layout.world_size,
            local_rank=layout.local_rank,
            local_world_size=1 if alone else layout.nproc_per_node,
            node_rank=layout.node_rank or 0,
            master_addr=LOOPBACK if alone else layout.master_addr,
            master_port=free_port() if alone else layout.master_port or free_port(),
        )

    def variables(self) -> dict[str, str]:
        """The same as environment variables, for third-party code that reads those."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_world_size),
            "MASTER_ADDR": self.master_addr,
            "MASTER_PORT": str(self.master_port),
        }


def free_port() -> int:
    """A TCP port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def check_copies(world_size: int, size: int) -> None:
    """Refuse a number of processes that networks shared by `size` each cannot use up.

    Raises:
        ConfigError: it is not a multiple of `size`.
    """
    if world_size % size:
        below = world_size // size * size
        counts = f"{below} or {below + size}" if below else str(size)
        raise ConfigError(
            f"{world_size} processes cannot share networks by {size} each",
            where="args.model_parallel_size and the number of processes (WORLD_SIZE)",
            fix=f"start {counts} processes, or change model_parallel_size",
        )


def check_clip_groups(world_size: int, size: int) -> None:
    """Refuse a number of processes that does not divide into groups of `size`.

    Raises:
        ConfigError: with the sizes that it divides into.
    """
    if world_size % size:
        valid = ", ".join(str(n) for n in range(1, world_size + 1) if world_size % n == 0)
        raise ConfigError(
            f"{world_size} processes cannot encode clips in groups of {size}",
            where="model.first_stage_config.params.cp_size and the number of processes "
            "(WORLD_SIZE)",
            fix=f"use cp_size {valid}",
        )
