"""Start the processes of several ranks, wait for them, and end those that are left."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.ports import reserved_port
from tests.support.warm_python import warm_python

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Ended:
    """One process after its end."""

    code: int
    out: str
    err: str


def run_processes(
    command: Sequence[str],
    ranks: Sequence[int],
    world_size: int,
    *,
    extra: Mapping[str, str] | None = None,
    timeout_s: float = 120.0,
    python: Callable[..., list[str]] = warm_python,
) -> list[Ended]:
    """Run `python *command` once per entry of `ranks`, with the variables of a rank.

    Every process that is alive at the time-out is killed and has the code -9.
    """
    port = reserved_port()
    started = [
        subprocess.Popen(
            python(*command),
            cwd=ROOT,
            env=environment(rank, world_size, port) | dict(extra or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ranks
    ]
    deadline = time.monotonic() + timeout_s
    ended = []
    for process in started:
        try:
            out, err = process.communicate(timeout=max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
        ended.append(Ended(process.returncode, out, err))
    return ended


def environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    """This process's environment with the variables of one rank, all on one machine."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }


def outputs(ended: Sequence[Ended]) -> list[str]:
    """Standard output of each process, after asserting that all ended well."""
    for rank, process in enumerate(ended):
        assert process.code == 0, f"process {rank}: code {process.code}\n{process.err[-4000:]}"
    return [process.out for process in ended]
