"""Which process of the gang this one is: rank, world size, local rank, master's address.

Read once, from the variables of torchrun, of OpenMPI, or plain ones, and passed on as a value.
What the PyTorchJob operator sets (RANK is a node rank there) is `app.launch`'s business.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass

from app.errors import ConfigError

DEFAULT_PORT = 6000  # upstream's port for more than one process without MASTER_PORT
GUESSED_LOCAL_WORLD = 8  # upstream's guess: at most eight processes on a node
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, kw_only=True, slots=True)
class RankInfo:
    """One process of the gang. `node_rank` counts machines, `local_rank` processes on one."""

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
            ConfigError: a variable is no number, or two of them contradict each other.
        """
        # mpirun may have started the torchrun that started us; then torchrun's word counts.
        inside_torchrun = "TORCHELASTIC_RUN_ID" in environment and "LOCAL_RANK" in environment
        if "OMPI_COMM_WORLD_LOCAL_RANK" in environment and not inside_torchrun:
            environment = {**environment, **_from_openmpi(environment)}
        world_size = _integer(environment, "WORLD_SIZE", 1)
        rank = _integer(environment, "RANK", 0)
        local_world_size = _integer(environment, "LOCAL_WORLD_SIZE", 0)
        if not local_world_size:
            given = "LOCAL_RANK" in environment
            local_world_size = min(world_size, GUESSED_LOCAL_WORLD) if given else 1
        local_rank = _integer(environment, "LOCAL_RANK", rank % local_world_size)
        _check(rank, world_size, local_rank, local_world_size)
        return cls(
            rank=rank,
            world_size=world_size,
            local_rank=local_rank,
            local_world_size=local_world_size,
            node_rank=_integer(environment, "GROUP_RANK", rank // local_world_size),
            master_addr=_address(environment, world_size, local_world_size),
            master_port=_port(environment, world_size),
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
        ConfigError: it is no multiple of `size`.
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


def _from_openmpi(environment: Mapping[str, str]) -> dict[str, str]:
    names = {
        "RANK": "OMPI_COMM_WORLD_RANK",
        "WORLD_SIZE": "OMPI_COMM_WORLD_SIZE",
        "LOCAL_RANK": "OMPI_COMM_WORLD_LOCAL_RANK",
        "LOCAL_WORLD_SIZE": "OMPI_COMM_WORLD_LOCAL_SIZE",
    }
    found = {ours: environment[theirs] for ours, theirs in names.items() if theirs in environment}
    missing = [names[ours] for ours in ("RANK", "WORLD_SIZE") if ours not in found]
    if missing:
        raise ConfigError(
            f"OMPI_COMM_WORLD_LOCAL_RANK is set but {missing[0]} is not",
            where="environment variables of OpenMPI",
            fix="start every process with mpirun, or unset OMPI_COMM_WORLD_LOCAL_RANK",
        )
    return found


def _integer(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, "").strip()
    if not text:
        return default
    try:
        return int(text)
    except ValueError:
        raise ConfigError(
            f"{name} is {text!r}, not a whole number",
            where=f"environment variable {name}",
            fix=f"set {name} to a number, or unset it",
        ) from None


def _check(rank: int, world_size: int, local_rank: int, local_world_size: int) -> None:
    pairs = (
        ("RANK", rank, "WORLD_SIZE", world_size),
        ("LOCAL_RANK", local_rank, "LOCAL_WORLD_SIZE", local_world_size),
    )
    for name, value, total_name, total in pairs:
        if total < 1:
            raise ConfigError(
                f"{total_name} is {total}",
                where=f"environment variable {total_name}",
                fix="count the processes: 1 or more",
            )
        if not 0 <= value < total:
            raise ConfigError(
                f"{name} is {value} but {total_name} is {total}",
                where=f"environment variables {name} and {total_name}",
                fix=f"{name} counts from 0 to {total - 1}; start the processes with torchrun",
            )
    if local_world_size > world_size:
        raise ConfigError(
            f"LOCAL_WORLD_SIZE is {local_world_size} but WORLD_SIZE is {world_size}",
            where="environment variables LOCAL_WORLD_SIZE and WORLD_SIZE",
            fix="one node cannot have more processes than the whole gang",
        )


def _address(environment: Mapping[str, str], world_size: int, local_world_size: int) -> str:
    address = environment.get("MASTER_ADDR", "").strip()
    if address:
        return address
    if world_size == local_world_size:
        return LOOPBACK  # one node: upstream's default
    raise ConfigError(
        f"WORLD_SIZE is {world_size} on more than one node, but MASTER_ADDR is not set",
        where="environment variable MASTER_ADDR",
        fix="set MASTER_ADDR to the host of rank 0; on one node set LOCAL_WORLD_SIZE "
        f"to {world_size}, or start with torchrun",
    )


def _port(environment: Mapping[str, str], world_size: int) -> int:
    port = _integer(environment, "MASTER_PORT", 0)
    if not port:
        return free_port() if world_size == 1 else DEFAULT_PORT
    if not 0 < port < 65536:
        raise ConfigError(
            f"MASTER_PORT is {port}",
            where="environment variable MASTER_PORT",
            fix="choose a free port between 1024 and 65535",
        )
    return port
