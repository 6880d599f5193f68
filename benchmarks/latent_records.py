"""What the records of a latent cache cost a run's start, on each of two processes of a node.

    python benchmarks/latent_records.py > benchmarks/results/latent_records_<machine>_<yyyymmdd>.md

The source has shards of 1000 samples in a bucket; its listing and the encoder's list of records are
of the real shape, and come from files on this machine, so that no network is timed. `before`
is how each process kept them: one object per entry, record and sample. `after` is the product:
two processes in a process group, of which the first one reads. Bytes are proportional set sizes
(a page that two processes map counts half for each), after every array was read once.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from app.data.latent_cache import (
    KEY_BYTES,
    CacheSettings,
    EncodePart,
    LatentCache,
    SampleRecord,
    dataset_folder,
    shard_key,
)
from app.data.sources.latents import LatentSource
from app.data.sources.protocols import Source, identity_of
from app.data.sources.settings import SourceSettings
from app.distributed.groups import process_groups
from app.distributed.rank import RankInfo, free_port
from app.run.attempt.latents import CachedClips
from app.run.attempt.node_table import NodePeers
from app.storage.local import LocalStorage
from app.storage.objects import Entry

ROOT = Path(__file__).parents[1]
COUNTS = (1_000, 10_000, 100_000, 1_000_000)
TARGET = 10_000_000
DATASET, PER_SHARD = "s3://bucket/clips", 1000
SETTINGS = CacheSettings({"frames": 49})


class Shards(Source):
    """Samples of shards: named and versioned as ShardSource does, without memory of its own."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def fingerprint(self) -> str:
        return f"{self._count} samples"

    def name(self, index: int) -> str:
        return f"{DATASET}/{index // PER_SHARD:05}.tar#{index % PER_SHARD}"

    def identity(self, index: int) -> str:
        content = f"{index // PER_SHARD:064x}"
        return identity_of(content, content[::-1], (), ("txt",))


class Bucket(LocalStorage):
    """Lists entries as S3 does, from a file of their sorted keys; reads lists of records."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._keys = root / "keys"
        self._bounds = json.loads((root / "bounds.json").read_text())

    def folders(self, prefix: str = "") -> list[str]:
        return [f"{first:02x}" for first in range(256)]

    def list(self, prefix: str = "") -> list[Entry]:
        if not prefix.startswith("shards/"):
            return super().list(prefix)
        within = prefix.removeprefix("shards/").rstrip("/")
        first, last = (int(within, 16), int(within, 16) + 1) if within else (0, 256)
        with self._keys.open("rb") as file:
            file.seek(self._bounds[first] * KEY_BYTES)
            count = self._bounds[last] - self._bounds[first]
            return [entry(file.read(KEY_BYTES).hex()) for _ in range(count)]


def entry(key: str) -> Entry:
    """One entry in a listing, with its own texts, as an answer of S3 gives."""
    return Entry(shard_key(key), size_of(key), key[:32], 1.7e9 + int(key[:6], 16))


def size_of(key: str) -> int:
    """6.3 MB and a caption."""
    return 6_300_000 + int(key[:2], 16)


def make(root: Path, count: int) -> None:
    """Write the keys and the list of records of a cache."""
    keys = np.random.default_rng(count).integers(0, 256, (count, 32), dtype=np.uint8)
    source = Shards(count)

    def records() -> Iterator[SampleRecord]:
        for index in range(count):
            key, shown = keys[index].tobytes().hex(), f"{index // PER_SHARD:05}.tar:{index:09}"
            name, identity = source.name(index), source.identity(index)
            yield SampleRecord(name, identity, key, size_of(key), shown)

    cache = LatentCache(lambda name: LocalStorage(root), SETTINGS)
    cache.write_records(DATASET, EncodePart(), sorted(records(), key=lambda one: one.name))
    keys = keys[np.lexsort(keys.T[::-1])]
    (root / "keys").write_bytes(keys.tobytes())
    bounds = np.searchsorted(keys[:, 0].astype(int), np.arange(257))
    (root / "bounds.json").write_text(json.dumps(bounds.tolist()))


class ObjectsBefore:
    """The records as every process kept them: copied from the version before, in short."""

    def __init__(self, cache: LatentCache, source: Source) -> None:
        # The listing, for the whole run.
        listed = cache.storage.list("shards/")
        self.present = {one.key[10:74]: one.size_bytes for one in listed}
        del listed
        known: dict[str, list[SampleRecord]] = {}
        for part in cache.storage.list(dataset_folder(DATASET)):
            lines = cache.storage.read_small(part.key).splitlines()
            for record in [SampleRecord(*json.loads(line)) for line in lines[1:]]:
                known.setdefault(record.name, []).append(record)
        found = []
        for index in range(len(source)):
            of_name, identity = known.get(source.name(index), ()), source.identity(index)
            fitting = [
                record
                for record in of_name
                if record.identity == identity
                and (not record.key or self.present.get(record.key) == record.size_bytes)
            ]
            found.append(max(fitting, key=lambda record: bool(record.key)))
        self.records = tuple(found)
        # Of LatentSource, for its files.
        self.entries = {
            shard_key(record.key): Entry(shard_key(record.key), record.size_bytes, None, None)
            for record in self.records
        }


def held_bytes() -> int:
    """Proportional set size of this process, without what was freed."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024


def resident_bytes(which: str) -> int:
    """`VmRSS`, or `VmHWM`: the most since it was reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{which}:")) * 1024


def child(kind: str, root: Path, count: int) -> dict[str, float]:
    """Measure one process; a rank of two for `after`."""
    source = Shards(count)
    cache = LatentCache(lambda name: Bucket(root), SETTINGS)
    if kind == "before":
        return measured(lambda: ObjectsBefore(cache, source), lambda: None)
    rank = RankInfo.from_environment(os.environ)
    with process_groups(rank, device=torch.device("cpu"), join_s=60):
        peers = NodePeers.of(rank)
        cached = CachedClips(cache, "cogvx encode", peers)

        def start() -> LatentSource:
            settings = SourceSettings(cache_dir=root)
            encoded = cached.cached_source(source, DATASET, settings)
            cached.forget_listing()
            assert isinstance(encoded, LatentSource)
            table = encoded._table
            for part in (table.keys, table.sizes, table.notes, table.text, table.ends):
                part.max(initial=0)
            return encoded

        found = measured(start, peers.ranks.barrier)
        peers.ranks.barrier()
    return found


def measured(start: Any, meet: Any) -> dict[str, float]:
    """CPU seconds of `start`, bytes that its result keeps, and the peak on the way."""
    meet()
    before = held_bytes()
    Path("/proc/self/clear_refs").write_text("5")
    resident, began = resident_bytes("VmRSS"), time.process_time()
    kept = start()
    seconds = time.process_time() - began
    peak = resident_bytes("VmHWM") - resident
    meet()
    bytes_kept = held_bytes() - before
    meet()  # whoever leaves earlier leaves its part of the shared pages to the others
    table = kept._table.nbytes if isinstance(kept, LatentSource) else 0
    return {"seconds": seconds, "bytes": bytes_kept, "peak": peak, "table": table}


def call(kind: str, root: Path, count: int) -> list[dict[str, float]]:
    """Run the processes of one case, and return what each found."""
    ranks = range(2 if kind == "after" else 1)
    port = str(free_port())
    gang = []
    for rank in ranks:
        variables = {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_PORT": port}
        variables |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **variables}
        words = [sys.executable, __file__, "--child", kind, str(root), str(count)]
        gang.append(
            subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, cwd=ROOT, text=True)
        )
    texts = [process.communicate()[0] for process in gang]
    if any(process.returncode for process in gang):
        raise SystemExit(f"{kind} with {count} samples failed")
    return [json.loads(text) for text in texts]


def exponent(smaller: float, larger: float) -> str:
    """Of the growth over the last factor of ten."""
    return f"{math.log10(larger / smaller):.2f}"


def main() -> None:
    """Measure and print a page of Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        kind, root, count = options.child
        print(json.dumps(child(kind, Path(root), int(count))))
        return
    rows: dict[tuple[str, int], list[dict[str, float]]] = {}
    for count in COUNTS:
        with tempfile.TemporaryDirectory() as name:
            make(Path(name), count)
            for kind in ("before", "after"):
                rows[kind, count] = call(kind, Path(name), count)
    report(rows)


def report(rows: dict[tuple[str, int], list[dict[str, float]]]) -> None:
    """Print the page."""
    print(f"# Records of a latent cache, {os.cpu_count()} cores, {platform.machine()}, no GPU\n")
    print(f"Python {platform.python_version()}, numpy {np.__version__}, torch {torch.__version__}.")
    print("Shards of 1000 samples, listing and records from local files, one start each.")
    print("Command: `python benchmarks/latent_records.py`.\n")
    print("| samples | process | CPU s | bytes kept per sample | peak bytes per sample |")
    print("|---|---|---|---|---|")
    names = ("after, the one that reads", "after, a second one of the node")
    for (kind, count), found in rows.items():
        for name, one in zip(("before, each",) if kind == "before" else names, found, strict=True):
            numbers = f"{one['bytes'] / count:.0f} | {one['peak'] / count:.0f}"
            print(f"| {count:,} | {name} | {one['seconds']:.2f} | {numbers} |")
    small, large = COUNTS[-2:]
    print("\n| from 10^5 to 10^6 samples | exponent of CPU s | of bytes kept | CPU s at 10^7 |")
    print("|---|---|---|---|")
    for kind, name in (("before", "before, each"), ("after", names[0])):
        less, more = rows[kind, small][0], rows[kind, large][0]
        power = math.log10(more["seconds"] / less["seconds"])
        growth = exponent(less["bytes"], more["bytes"])
        at_target = more["seconds"] * 10**power
        print(f"| {name} | {power:.2f} | {growth} | {at_target:.0f} (extrapolated) |")
    first, second = rows["after", large]
    node = (first["bytes"] + second["bytes"]) / large
    print(f"\nArrays at 10^6: {first['table'] / large:.1f} bytes per sample, in one file that both")
    print(f"processes map. Kept by both together: {node:.1f} bytes per sample. At 10^7 samples and")
    before = rows["before", large][0]["bytes"] / large * TARGET / 2**30
    print(f"8 processes: {before * 8:.0f} GiB before (in proportion), ", end="")
    print(f"{first['table'] / large * TARGET / 2**30:.2f} GiB after.")


if __name__ == "__main__":
    main()
