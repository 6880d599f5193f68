"""One rank that is told what rank 0 found, and what it raised; prints both as JSON."""

from __future__ import annotations

import json
import os

import torch

from app.distributed.agreement import on_rank_zero
from app.distributed.groups import process_groups
from app.distributed.rank import RankInfo
from app.errors import CogvxError
from app.storage.objects import ObjectMissingError


def missing() -> None:
    raise ObjectMissingError("x", where="y", fix="z")


def main() -> None:
    rank = RankInfo.from_environment(os.environ)
    told: list[list[object]] = []
    with process_groups(rank, device=torch.device("cpu"), join_s=60):
        told.append(["answer", on_rank_zero(rank.rank, lambda: {"a": 1})])
        try:
            on_rank_zero(rank.rank, missing)
        except CogvxError as error:
            told.append([type(error).__name__, error.exit_code, error.what])
    print(json.dumps(told))


if __name__ == "__main__":
    main()
