"""One process of a gang: joins, exchanges small things, prints what it got as JSON."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time

import torch

from app.distributed.exchange import StoreExchange
from app.distributed.groups import claim_rank, process_groups
from app.distributed.rank import RankInfo
from app.distributed.rank_group import world
from app.errors import CogvxError


def sent_on(rank: int) -> list[float]:
    """Rank 0 sends two numbers of half precision to rank 1."""
    x = torch.tensor([0.5, -2.0], dtype=torch.bfloat16)
    if rank == 0:
        world().send(x, 1)
        return []
    return list(world().receive(torch.zeros_like(x), 0).tolist())


def exchange_everything(rank: RankInfo) -> dict[str, object]:
    with process_groups(rank, device=torch.device("cpu"), join_s=60) as groups:
        exchange = StoreExchange(groups.store, rank=rank.rank, world_size=rank.world_size)
        large = bytes([rank.rank, 255, 128]) * 1_000_000
        gathered = exchange.gather("large", large)
        exchange.barrier()
        report: dict[str, object] = {
            "sum": float(world().sum(torch.tensor(float(rank.rank + 1)))),
            "of one": world().broadcast(torch.tensor([rank.rank, 7]), source=1).tolist(),
            "json": world().broadcast_json({"rank": rank.rank, "list": [1, 2.5, None]}),
            "all": world().gathered_json(["x" * 5 * rank.rank, rank.rank]),
            "sent": sent_on(rank.rank),
            "gathered": [[*part[:3], len(part)] for part in gathered],
            "second": [part.decode() for part in exchange.gather("b", str(rank.rank).encode())],
        }
        exchange.barrier()
        world().barrier()
    return report


def leave_at_different_times(rank: RankInfo) -> dict[str, object]:
    """Rank 1 asks the store, which lives in rank 0, a second after rank 0 has nothing to do."""
    with process_groups(rank, device=torch.device("cpu"), join_s=60) as groups:
        if rank.rank == 1:
            time.sleep(1)
            groups.store.set("late", "1")
    return {"left": rank.rank}


def main() -> int:
    rank = RankInfo.from_environment(os.environ)
    try:
        if sys.argv[1] == "claim-elsewhere":
            # Its own folder for lock files, as on a machine of its own.
            tempfile.tempdir = tempfile.mkdtemp(dir=os.environ["FOLDERS"])
        if sys.argv[1].startswith("claim"):
            claim_rank(rank, join_s=float(sys.argv[2]))
            report: dict[str, object] = {"joined": rank.rank}
        elif sys.argv[1] == "leave":
            report = leave_at_different_times(rank)
        else:
            report = exchange_everything(rank)
    except CogvxError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
