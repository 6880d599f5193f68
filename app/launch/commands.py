"""The command line and environment of what PID 1 starts, for each mode."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from app.distributed.layout import ANY_PORT, LOOPBACK, RankLayout

# These run one process per GPU; every other command is one process, wherever it runs.
DISTRIBUTED = ("train", "sample")

# Time that PID 1 keeps for itself at the end of the pod's grace period: killing, reaping, writing.
RESERVE_S = 30


PROGRAM = ("-m", "app")  # `cogvx`, as arguments of the interpreter


@dataclass(frozen=True, slots=True)
class Start:
    """What to start, and the master that must be up first.

    `wait_for_port`: it must listen, not only have an address.
    """

    argv: tuple[str, ...]
    environ: Mapping[str, str]
    wait_for: tuple[str, int] | None = None
    wait_for_port: bool = True


def plan_start(
    layout: RankLayout,
    command: Sequence[str],
    environ: Mapping[str, str],
    grace_s: float,
    program: Sequence[str] = PROGRAM,
) -> Start:
    """The process to start for `cogvx <command>` here.

    `command` is what follows `cogvx`, `environ` that of this process (the child's is made from it),
    `grace_s` the grace period of the pod, of which torchrun gives its workers a little less, and
    `program` the arguments with which the interpreter runs `cogvx`.
    """
    alone = (sys.executable, *program, *command)
    if command[0] not in DISTRIBUTED or layout.mode in ("inside", "single"):
        return Start(alone, environ)
    if layout.mode == "plain":
        # The trainer itself waits for rank 0 to listen, so that both import torch meanwhile.
        # Here PID 1 waits for what takes longer: the node and image of the master.
        variables = _plain_environment(layout, environ)
        return Start(alone, variables, _master(layout), wait_for_port=False)
    shutdown_s = max(1, round(grace_s) - RESERVE_S)
    agent = (
        *(sys.executable, "-m", "app.distributed.torchrun", *_torchrun_flags(layout)),
        f"--nproc-per-node={layout.nproc_per_node}",
        *(*program, *command),
    )
    variables = {key: value for key, value in environ.items() if key != "PET_STANDALONE"}
    variables.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(shutdown_s))
    if layout.mode == "elastic":
        # With the shared store a second node cannot join: pytorch#135712.
        variables.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
        return Start(agent, variables)
    return Start(agent, variables, _master(layout))


def _master(layout: RankLayout) -> tuple[str, int] | None:
    return (layout.master_addr, layout.master_port) if layout.node_rank else None


def _plain_environment(layout: RankLayout, environ: Mapping[str, str]) -> dict[str, str]:
    # A stray one, with the local rank that follows, would make the trainer a child of torchrun.
    variables = {key: value for key, value in environ.items() if key != "TORCHELASTIC_RUN_ID"}
    variables["LOCAL_RANK"] = str(layout.local_rank)
    variables["LOCAL_WORLD_SIZE"] = str(layout.nproc_per_node)
    variables["MASTER_ADDR"] = _reachable(layout)
    if layout.master_port != ANY_PORT:
        variables["MASTER_PORT"] = str(layout.master_port)
    return variables


def _torchrun_flags(layout: RankLayout) -> tuple[str, ...]:
    if layout.standalone or (layout.mode == "static" and layout.master_port == ANY_PORT):
        return ("--standalone", "--nnodes=1")
    if layout.mode == "elastic":
        return ()  # torchrun itself reads PET_*
    return (
        f"--nnodes={layout.nodes}",
        f"--node-rank={layout.node_rank}",
        f"--master-addr={_reachable(layout)}",
        f"--master-port={layout.master_port}",
        "--max-restarts=0",  # a pod is restarted as a whole, by the operator
    )


def _reachable(layout: RankLayout) -> str:
    # A single pod need not resolve its own name, which the DNS lists only once it is ready.
    # A number of processes that was only guessed must not move a master that was named.
    is_guess = layout.world_size > 1 and layout.sources.get("nproc_per_node") == "default"
    return LOOPBACK if layout.nodes == 1 and not is_guess else layout.master_addr
