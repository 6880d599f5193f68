"""Start and end the process group, and make sure that every process has its own rank.

A wrong RANK must be one clear error within seconds, not a hang until a timeout. So before the
group starts, each process claims its rank twice: with a lock file, which finds two processes on one
machine immediately, and with a key in the TCP store, which finds them anywhere.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import IO

import torch
import torch.distributed as dist

from app.distributed.rank import RankInfo
from app.distributed.rank_group import ALONE, RankGroup
from app.errors import ConfigError, RetryableError

log = logging.getLogger(__name__)

POLL_S = 0.1
GRACE_S = 5.0  # time for rank 0 to appear, and for the others to read why this rank leaves
FAREWELL_S = 60.0  # time for the other ranks to finish as well
SETTLE_S = 0.25
CONNECT_S = 30.0  # a store that accepts connections also answers within this time
CLASH = "rank-clash"


@dataclass(frozen=True, slots=True)
class ProcessGroups:
    """This process and its peers, as the rest of the run needs them."""

    rank: RankInfo
    device: torch.device
    store: dist.Store  # small values by key, shared by all ranks
    tensor: RankGroup = ALONE  # the ranks that share our copy of the network
    clips: RankGroup = ALONE  # those that encode their clips together
    data: RankGroup | None = None  # those with our part in the other copies; None: all ranks

    @property
    def copies(self) -> RankGroup:
        """One rank of each copy of the network: who shares the batch, and our number in it."""
        return self.data or RankGroup(self.rank.rank, self.rank.world_size)


@contextlib.contextmanager
def process_groups(
    rank: RankInfo,
    *,
    device: torch.device,
    backend: str | None = None,
    timeout_s: float = 1800.0,
    join_s: float = 600.0,
) -> Iterator[ProcessGroups]:
    """Join the process group, and leave it at the end.

    Args:
        backend: nccl or gloo; default: nccl on a GPU. Always gloo on a CPU.
        timeout_s: a collective that takes longer fails.
        join_s: how long to wait for the other ranks.

    Raises:
        ConfigError: two processes have the same RANK, or they disagree about WORLD_SIZE.
        RetryableError: a rank did not come within `join_s`.
    """
    # DeepSpeed reads these from the environment, whoever started us.
    os.environ.update(rank.variables())
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store = claim_rank(rank, join_s=join_s, timeout_s=timeout_s)
    dist.init_process_group(
        backend=(backend or "nccl") if device.type == "cuda" else "gloo",
        store=dist.PrefixStore("group", store),
        rank=rank.rank,
        world_size=rank.world_size,
        timeout=timedelta(seconds=timeout_s),
        device_id=device if device.type == "cuda" else None,
    )
    linger_s = FAREWELL_S
    try:
        yield ProcessGroups(rank=rank, device=device, store=store)
    except BaseException:
        linger_s = GRACE_S  # a peer may hang in a collective that this rank left
        raise
    finally:
        _say_farewell(rank, store, linger_s)
        # Threads of gloo release their last tensors, for which they need the interpreter: one that
        # requests it while the process shuts down aborts it, after all work is done.
        time.sleep(SETTLE_S)
        dist.destroy_process_group()


def found_groups(rank: RankInfo, device: torch.device) -> ProcessGroups:
    """The process group that this process has already joined, by whatever means."""
    store = dist.distributed_c10d._get_default_store()
    return ProcessGroups(rank=rank, device=device, store=dist.PrefixStore("cogvx", store))


def claim_rank(rank: RankInfo, *, join_s: float, timeout_s: float = 1800.0) -> dist.Store:
    """Join the store under this rank and wait until every rank has joined; see the module text.

    Raises:
        ConfigError: the rank is taken, the port of rank 0 is taken, or WORLD_SIZE differs.
        RetryableError: a rank is missing after `join_s`.
    """
    if rank.world_size == 1:
        return dist.HashStore()
    deadline = time.monotonic() + join_s
    # The lock is held only until all have joined: data workers that are forked later would
    # inherit it and keep it after this process is killed, and a restart would see a clash.
    with _local_claim(rank) as lock:
        store = _open_store(rank, lock, deadline)
        store.set_timeout(timedelta(seconds=timeout_s))
        _claim_in_store(rank, store)
        _wait_for_all(rank, store, lock, deadline)
    return store


@contextlib.contextmanager
def _local_claim(rank: RankInfo) -> Iterator[IO[str] | None]:
    """Hold the lock file of this rank on this machine; None where there can be no such file."""
    name = f"cogvx-{os.getuid()}-{rank.master_addr}-{rank.master_port}-rank{rank.rank}.lock"
    path = Path(tempfile.gettempdir()) / name.replace("/", "_")
    try:
        lock = path.open("a+")
    except OSError:
        # Only the fast check on one machine is lost; the store still finds a clash.
        yield None
        return
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.write(f"pid {os.getpid()}\n")  # tells the holder, which polls this file
            lock.flush()
            raise _clash(rank, "another process of this machine") from None
        lock.truncate(0)
        try:
            yield lock
        finally:
            path.unlink(missing_ok=True)


def _local_clash(rank: RankInfo, lock: IO[str] | None) -> ConfigError | None:
    """The error to raise when another process of this machine claims our rank."""
    if lock is None:
        return None
    lock.seek(0)
    other = lock.read().strip()
    return _clash(rank, f"another process of this machine ({other})") if other else None


def _open_store(rank: RankInfo, lock: IO[str] | None, deadline: float) -> dist.Store:
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # torchrun holds the store, also across restarts of its children.
        agent = _connect(rank, lock, deadline)
        run = os.environ.get("TORCHELASTIC_RUN_ID", "none")
        restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return dist.PrefixStore(f"cogvx/{run}/{restart}", agent)
    if rank.rank == 0:
        return _host(rank)
    return _connect(rank, lock, deadline)


def _host(rank: RankInfo) -> dist.TCPStore:
    try:
        return dist.TCPStore(
            host_name=rank.master_addr,
            port=rank.master_port,
            world_size=rank.world_size,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=CONNECT_S),
        )
    except (dist.DistNetworkError, RuntimeError) as error:
        if "EADDRINUSE" not in str(error) and "address already in use" not in str(error):
            raise
        raise ConfigError(
            f"port {rank.master_port} is taken: rank 0 cannot listen on it",
            where=f"MASTER_PORT of rank 0 on {socket.gethostname()}",
            fix="another process has RANK=0, or another program uses the port: give each "
            "process its own RANK, or choose another MASTER_PORT",
        ) from None


def _connect(rank: RankInfo, lock: IO[str] | None, deadline: float) -> dist.TCPStore:
    last_chance = time.monotonic() + GRACE_S
    while (refused := _refusal(rank)) is not None:
        clash = _local_clash(rank, lock)
        if clash is not None and time.monotonic() > last_chance:
            raise clash  # rank 0 had time to come: nobody else will report the clash
        if time.monotonic() > deadline:
            raise RetryableError(
                f"rank 0 does not answer: {refused}",
                where=f"MASTER_ADDR={rank.master_addr} MASTER_PORT={rank.master_port}",
                fix="check that a process with RANK=0 runs on that host and that the port is open",
            )
        time.sleep(POLL_S)
    return dist.TCPStore(
        host_name=rank.master_addr,
        port=rank.master_port,
        world_size=rank.world_size,
        is_master=False,
        wait_for_workers=False,
        timeout=timedelta(seconds=CONNECT_S),
    )


def _refusal(rank: RankInfo) -> OSError | None:
    # A plain connection first keeps torch's own retries, and their warnings, out of the log.
    try:
        socket.create_connection((rank.master_addr, rank.master_port), timeout=2).close()
    except OSError as error:
        return error
    return None


def _claim_in_store(rank: RankInfo, store: dist.Store) -> None:
    claim = json.dumps(
        {"host": socket.gethostname(), "pid": os.getpid(), "token": os.urandom(8).hex()}
    )
    held = store.compare_set(_claim_key(rank.rank), "", claim).decode()
    if held != claim:
        other = json.loads(held)
        store.set(CLASH, json.dumps({"rank": rank.rank}))
        raise _clash(rank, f"pid {other['pid']} on {other['host']}")
    world = store.compare_set("world-size", "", str(rank.world_size)).decode()
    if int(world) != rank.world_size:
        store.set(CLASH, json.dumps({"world_size": [int(world), rank.world_size]}))
        raise _disagreement([int(world), rank.world_size])


def _wait_for_all(rank: RankInfo, store: dist.Store, lock: IO[str] | None, deadline: float) -> None:
    keys = {other: _claim_key(other) for other in range(rank.world_size)}
    while not store.check(list(keys.values())):
        clash = _local_clash(rank, lock)
        if clash is not None:
            store.set(CLASH, json.dumps({"rank": rank.rank}))
            _linger(rank)
            raise clash
        if store.check([CLASH]):
            report = json.loads(store.get(CLASH))
            _linger(rank)
            raise _reported(rank, report)
        if time.monotonic() > deadline:
            missing = [other for other, key in keys.items() if not store.check([key])]
            raise RetryableError(
                f"ranks {missing} of {rank.world_size} did not come",
                where=f"rank {rank.rank}, waiting on {rank.master_addr}:{rank.master_port}",
                fix="look at the logs of the missing ranks; they may have failed earlier",
            )
        time.sleep(POLL_S)


def _linger(rank: RankInfo) -> None:
    # The store lives in rank 0: the others need a moment to read what is in it.
    if rank.rank == 0:
        time.sleep(10 * POLL_S)


def _say_farewell(rank: RankInfo, store: dist.Store, linger_s: float) -> None:
    """Rank 0 holds the store, so it leaves last: its peers would fail without it."""
    if rank.world_size == 1:
        return
    try:
        store.set(f"farewell/{rank.rank}", "1")
        deadline = time.monotonic() + linger_s
        keys = [f"farewell/{other}" for other in range(rank.world_size)]
        while rank.rank == 0 and not store.check(keys) and time.monotonic() < deadline:
            time.sleep(POLL_S / 5)
    except (dist.DistError, RuntimeError) as error:
        log.debug("rank 0 has already left", extra={"problem": str(error)})


def _claim_key(rank: int) -> str:
    return f"rank-claim/{rank}"


def _reported(rank: RankInfo, report: dict[str, object]) -> ConfigError:
    sizes = report.get("world_size")
    if isinstance(sizes, list):
        return _disagreement(sizes)
    return _shared_rank(report["rank"], rank, f"reported to rank {rank.rank} by one of them")


def _clash(rank: RankInfo, other: str) -> ConfigError:
    where = f"RANK of pid {os.getpid()} on {socket.gethostname()}; it is also that of {other}"
    return _shared_rank(rank.rank, rank, where)


def _shared_rank(number: object, rank: RankInfo, where: str) -> ConfigError:
    fix = f"give each process its own RANK, 0 to {rank.world_size - 1}"
    return ConfigError(f"two processes have RANK={number}", where=where, fix=fix)


def _disagreement(sizes: list[int]) -> ConfigError:
    return ConfigError(
        f"the processes disagree about WORLD_SIZE: {sizes[0]} and {sizes[1]}",
        where="environment variable WORLD_SIZE",
        fix="start all processes with the same WORLD_SIZE",
    )
