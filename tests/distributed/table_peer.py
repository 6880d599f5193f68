"""One of two ranks that read samples from a latent cache; prints who listed and read as JSON."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from app.data.latent_cache import CacheSettings, LatentCache
from app.data.sources.registered import MapSource
from app.data.sources.settings import SourceSettings
from app.distributed.groups import process_groups
from app.distributed.rank import RankInfo
from app.errors import CogvxError
from app.run.attempt.latents import CachedClips
from app.run.attempt.node_table import NodePeers
from app.storage.local import LocalStorage
from app.storage.objects import Entry

DATASET, SAMPLES = "clips", 1000
SETTINGS = CacheSettings({"frames": 9})


class CountingStorage(LocalStorage):
    """A folder that counts what is asked of it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.asked = 0

    def list(self, prefix: str = "") -> list[Entry]:
        self.asked += 1
        return super().list(prefix)

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        self.asked += 1
        return super().read_range(key, start, stop)


class Samples(MapSource):
    """As many samples as the cache has, unless this rank sees another folder."""

    def __init__(self, data: str) -> None:
        super().__init__([{}] * SAMPLES, data)

    def identity(self, index: int) -> str:
        return "now"


def mapped_files() -> set[str]:
    """Files without a name that this process has in its memory, by their numbers on the disk."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {line.split()[4] for line in lines if line.endswith("(deleted)")}


def shared(rank: RankInfo, folder: Path, case: str) -> dict[str, object]:
    storage = CountingStorage(folder / "cache" / SETTINGS.digest)
    cache = LatentCache(lambda name: storage, SETTINGS)
    before = mapped_files()
    with process_groups(rank, device=torch.device("cpu"), join_s=60):
        cached = CachedClips(cache, "cogvx encode", NodePeers.of(rank))
        settings = SourceSettings(cache_dir=folder / f"node-{case}")
        source = Samples(f"clips of {rank.rank}" if case == "other data" else "clips")
        try:
            encoded = cached.cached_source(source, DATASET, settings)
        except CogvxError as error:
            return {"asked": storage.asked, "code": error.exit_code, "what": error.what}
        items = [encoded.read(index, index) for index in (0, SAMPLES - 1)]
        return {
            "asked": storage.asked,
            "keys": [item["key"] for item in items],
            "num_frames": [item["num_frames"] for item in items],
            "files": sorted(mapped_files() - before),
            "left": os.listdir(settings.cache_dir),
        }


def main() -> None:
    rank = RankInfo.from_environment(os.environ)
    print(json.dumps(shared(rank, Path(sys.argv[1]), sys.argv[2])))


if __name__ == "__main__":
    main()
