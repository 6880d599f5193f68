"""One of the ranks that survey a folder of shards together: `survey_peer.py FOLDER CACHE`.

The folder stands for a bucket, and the requests of this rank are counted. Prints JSON.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path

import torch

from app.data.shards.survey import SurveyRules, survey
from app.data.shards.urls import ShardPattern
from app.distributed.groups import process_groups
from app.distributed.rank import RankInfo
from app.distributed.rank_group import world
from app.distributed.shared_work import SharedWork
from app.errors import CogvxError
from app.storage.local import LocalStorage
from app.storage.objects import Entry


class CountedBucket(LocalStorage):
    """A folder with the address of a bucket."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.url = "s3://bucket/shards"
        self.requests: Counter[str] = Counter()

    def list(self, prefix: str = "") -> list[Entry]:
        self.requests["list"] += 1
        return super().list(prefix)

    def read_small(self, key: str) -> bytes:
        self.requests["read"] += 1
        return super().read_small(key)

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        self.requests["range"] += 1
        return super().read_range(key, start, stop)

    def write_small(self, key: str, data: bytes) -> None:
        self.requests["write"] += 1
        super().write_small(key, data)


def main() -> int:
    bucket = CountedBucket(Path(sys.argv[1]))
    rank = RankInfo.from_environment(os.environ)
    with process_groups(rank, device=torch.device("cpu"), join_s=60):
        try:
            found = survey(
                bucket,
                [ShardPattern(bucket.url, "")],
                Path(sys.argv[2]) / str(rank.rank),
                SurveyRules(),
                SharedWork(world()),
            )
        except CogvxError as error:
            print(json.dumps({"error": str(error), "requests": bucket.requests}))
            return 0
    report = {
        "shards": [[shard.name, shard.samples] for shard in found.shards],
        "sidecars": dict(found.sidecars),
        "entries": sorted(found.entries),
        "requests": bucket.requests,
    }
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
