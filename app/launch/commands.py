"""The command line and environment of what PID 1 starts, for each mode of the table."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from app.launch.placement import LOOPBACK, RankLayout

# These start one process per GPU; every other command is one process, wherever it runs.
DISTRIBUTED = ("train", "sample")

# Time that PID 1 keeps for itself at the end of the pod's grace period: killing, reaping, writing.
RESERVE_S = 30


PROGRAM = ("-m", "app")  # what `cogvx` is to the interpreter


@dataclass(frozen=True, slots=True)
class Start:
    """What to start, and the master that has to be there first.

    `wait_for_port`: it has to listen, not only to have an address.
    """

    argv: tuple[str, ...]
    environ: Mapping[str, str]
    wait_for: tuple[str, int] | None = None
    wait_for_port: bool = True


def plan_start(
    placement: RankLayout,
    command: Sequence[str],
    environ: Mapping[str, str],
    grace_s: float,
    program: Sequence[str] = PROGRAM,
) -> Start:
    """The process to start for `cogvx <command>` at this place.

    Args:
        placement: the resolved table.
        command: words after `cogvx`, e.g. ("train", "--base", "a.yaml").
        environ: of this process; the child's is made from it.
        grace_s: the pod's grace period; torchrun gives its workers a little less.
        program: words that make the interpreter run `cogvx`.
    """
    alone = (sys.executable, *program, *command)
    if command[0] not in DISTRIBUTED or placement.mode in ("inside", "single"):
        return Start(alone, environ)
    if placement.mode == "plain":
        # The trainer itself waits for rank 0 to listen, so that both import torch meanwhile;
        # here we wait for what takes long: the master's node and image.
        variables = _plain_environment(placement, environ)
        return Start(alone, variables, _master(placement), wait_for_port=False)
    shutdown_s = max(1, round(grace_s) - RESERVE_S)
    flags = _static_flags(placement) if placement.mode == "static" else _elastic_flags(placement)
    agent = (
        *(sys.executable, "-m", "app.distributed.torchrun", *flags),
        f"--nproc-per-node={placement.nproc_per_node}",
        *(*program, *command),
    )
    variables = {key: value for key, value in environ.items() if key != "PET_STANDALONE"}
    variables.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(shutdown_s))
    if placement.mode == "elastic":
        # With the shared store a second node never gets in: pytorch#135712.
        variables.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
        return Start(agent, variables)
    return Start(agent, variables, _master(placement))


def _master(placement: RankLayout) -> tuple[str, int] | None:
    if not placement.node_rank:
        return None
    return placement.master_addr, placement.master_port


def _plain_environment(placement: RankLayout, environ: Mapping[str, str]) -> dict[str, str]:
    variables = dict(environ)
    variables.setdefault("LOCAL_RANK", "0")
    variables.setdefault("LOCAL_WORLD_SIZE", str(placement.nproc_per_node))
    variables["MASTER_ADDR"] = _reachable(placement)
    variables["MASTER_PORT"] = str(placement.master_port)
    return variables


def _static_flags(placement: RankLayout) -> tuple[str, ...]:
    if placement.nodes == 1 and placement.master_port == 0:
        return ("--standalone", "--nnodes=1")
    return (
        f"--nnodes={placement.nodes}",
        f"--node-rank={placement.node_rank}",
        f"--master-addr={_reachable(placement)}",
        f"--master-port={placement.master_port}",
        "--max-restarts=0",  # a pod is restarted as a whole, by the operator
    )


def _elastic_flags(placement: RankLayout) -> tuple[str, ...]:
    # Everything else comes from PET_*, which torchrun reads by itself.
    return ("--standalone", "--nnodes=1") if placement.standalone else ()


def _reachable(placement: RankLayout) -> str:
    # A lone pod need not find its own name in the DNS, which lists it only once it is ready.
    return LOOPBACK if placement.nodes == 1 else placement.master_addr
