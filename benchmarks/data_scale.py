"""What the shard cache and a run's start cost with many shards.

    python benchmarks/data_scale.py > benchmarks/results/data_scale_<machine>_<yyyymmdd>.md

`before` is the code of the revision BEFORE in this repository. CPU seconds of this process; the
bucket is in memory, so that no network is timed, and its requests are counted. A million is
extrapolated by the growth from the sizes that are measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import math
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import app.data.object_cache
import app.data.shards.survey
from app.data.shards.manifest import DatasetManifest, ShardEntry, index_key
from app.data.shards.urls import ShardPattern
from app.storage.local import LocalStorage
from app.storage.objects import Entry, Receipt

BEFORE = "fcec79a"
ROOT = Path(__file__).parents[1]
COUNTS = (1_000, 10_000, 100_000)
MILLION = 1_000_000
GETS = 20
OBJECT_BYTES = 1024
LIST_PAGE = 1000
RANKS = 512


def module_before(path: str) -> ModuleType:
    """A module as it was at BEFORE."""
    shown = subprocess.run(
        ["git", "show", f"{BEFORE}:{path}"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    file = Path(tempfile.mkdtemp()) / Path(path).name
    file.write_text(shown.stdout)
    spec = importlib.util.spec_from_file_location(f"before_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Source(LocalStorage):
    """Objects of OBJECT_BYTES that need no network."""

    def download(self, key: str, path: Path, expect: Entry | Receipt | None = None) -> Receipt:
        path.write_bytes(bytes(OBJECT_BYTES))
        return Receipt(key, OBJECT_BYTES, OBJECT_BYTES, ())


def cost_of_get(module: Any, entries: int, *, full: bool) -> float:
    """CPU milliseconds of one download into a cache of `entries` files."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(entries):
            path = folder / f"{number:032x}.obj"
            path.write_bytes(bytes(OBJECT_BYTES))
            os.utime(path, (number + 1, number + 1))
        room = 0 if full else 2 * GETS
        cache = module.ObjectCache(folder, (entries + room) * OBJECT_BYTES)
        source = Source(folder / "source")

        def get(number: int) -> None:
            entry = Entry(f"x-{number}", OBJECT_BYTES, str(number), None)
            cache.get(module.CachedObject(source, entry))

        get(0)
        begun = time.process_time()
        for number in range(1, GETS + 1):
            get(number)
        spent = time.process_time() - begun
        cache.close()
    return 1000 * spent / GETS


class Bucket(LocalStorage):
    """Shards with their side files and a manifest, all in memory; requests are counted."""

    def __init__(self, count: int) -> None:
        super().__init__(Path("/nonexistent"))
        self.url = "s3://bucket/shards"
        self.requests: Counter[str] = Counter()
        names = [f"x-{number:07}.tar" for number in range(count)]
        sidecars = [f"x-{number:07}.meta.jsonl" for number in range(count)]
        self._entries = [Entry(name, 10_000, f"{i:032x}", None) for i, name in enumerate(names)]
        self._entries += [Entry(name, 100, f"{i:032x}", None) for i, name in enumerate(sidecars)]
        self._small: dict[str, bytes] = {}
        shards = [
            ShardEntry(e.key, 10_000, e.etag, None, None, 1000, index_key(e.key), "0" * 64)
            for e in self._entries[:count]
        ]
        self._small["dataset.manifest.json"] = DatasetManifest(tuple(shards), "x").to_json()

    def list(self, prefix: str = "") -> list[Entry]:
        self.requests["LIST"] += -(-len(self._entries) // LIST_PAGE)
        return list(self._entries)

    def read_small(self, key: str) -> bytes:
        self.requests["GET"] += 1
        return self._small.get(key, b'{"key": "a"}\n')

    def write_small(self, key: str, data: bytes) -> None:
        self._small[key] = data


def start(module: Any, bucket: Bucket, *, sidecars_apart: bool) -> tuple[float, Counter[str]]:
    """CPU seconds and requests of one rank's start, the manifest being there."""
    bucket.requests.clear()
    begun = time.process_time()
    with tempfile.TemporaryDirectory() as name:
        found = module.survey(
            bucket, [ShardPattern(bucket.url, "")], Path(name), module.SurveyRules()
        )
    if sidecars_apart:  # the source read them after the survey
        for shard in found.shards:
            bucket.read_small(shard.name.replace(".tar", ".meta.jsonl"))
    return time.process_time() - begun, Counter(bucket.requests)


def growth(costs: Mapping[int, float]) -> str:
    """The exponent of the cost between the smallest and the largest size."""
    (few, low), (many, high) = min(costs.items()), max(costs.items())
    return f"{math.log(max(high, 1e-9) / max(low, 1e-9)) / math.log(many / few):.2f}"


def row(cells: Sequence[object]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def cache_table(before: Any) -> list[str]:
    kinds: list[tuple[str, Any, bool]] = [
        ("before, room left", before, False),
        ("after, room left", app.data.object_cache, False),
        ("before, full", before, True),
        ("after, full", app.data.object_cache, True),
    ]
    lines = [row(["CPU ms per download", *(f"{n:,} files" for n in COUNTS), "growth", "1,000,000"])]
    lines.append(row(["---"] * (len(COUNTS) + 3)))
    for name, module, full in kinds:
        costs = {count: cost_of_get(module, count, full=full) for count in COUNTS}
        million = costs[COUNTS[-1]] * (MILLION / COUNTS[-1]) ** float(growth(costs))
        shown = [f"{cost:.2f}" for cost in costs.values()]
        lines.append(row([name, *shown, growth(costs), f"{million:.2f}"]))
    return lines


def start_table(before: Any) -> list[str]:
    lines = [
        row(["shards", "", "LIST, GET of rank 0", f"of {RANKS} ranks together", "CPU s of rank 0"]),
        row(["---"] * 5),
    ]
    costs: dict[str, dict[int, float]] = {"before": {}, "after": {}}
    for count in COUNTS:
        bucket = Bucket(count)
        kinds: list[tuple[str, Callable[[], tuple[float, Counter[str]]], int]] = [
            ("before", lambda b=bucket: start(before, b, sidecars_apart=True), RANKS),  # type: ignore[misc]
            ("after", lambda b=bucket: second_start(b), 1),  # type: ignore[misc]
        ]
        for name, run, ranks in kinds:
            seconds, requests = run()
            costs[name][count] = seconds
            one = f"{requests['LIST']:,}, {requests['GET']:,}"
            together = f"{ranks * requests['LIST']:,}, {ranks * requests['GET']:,}"
            lines.append(row([f"{count:,}", name, one, together, f"{seconds:.2f}"]))
    for name, found in costs.items():
        estimate = found[COUNTS[-1]] * MILLION / COUNTS[-1]
        pages = 2 * MILLION // LIST_PAGE
        gets = f"{MILLION + 1:,}" if name == "before" else "1"
        ranks = RANKS if name == "before" else 1
        lines.append(
            row(
                [
                    f"{MILLION:,} (extrapolated)",
                    name,
                    f"{pages:,}, {gets}",
                    f"{ranks * pages:,}, {ranks * int(gets.replace(',', '')):,}",
                    f"{estimate:.0f} (growth {growth(found)})",
                ]
            )
        )
    return lines


def second_start(bucket: Bucket) -> tuple[float, Counter[str]]:
    """The start after the first one, which noted the digests of the side files."""
    start(app.data.shards.survey, bucket, sidecars_apart=False)
    return start(app.data.shards.survey, bucket, sidecars_apart=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.parse_args()
    logging.disable(logging.CRITICAL)
    print("# Shard cache and start of a run against the number of shards\n")
    print(
        f"{os.cpu_count()} cores, {platform.machine()}; Python {platform.python_version()}; "
        f"{time.strftime('%Y-%m-%d')}; load average {os.getloadavg()[0]:.1f}; before: {BEFORE}.\n"
        "Command: `python benchmarks/data_scale.py`.\n"
    )
    print("## A download into the shard cache\n")
    print("\n".join(cache_table(module_before("app/data/object_cache.py"))))
    print("\n## A start with a complete manifest, each shard with a `.meta.jsonl`\n")
    print("\n".join(start_table(module_before("app/data/shards/survey.py"))))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\nPeak memory of the whole benchmark: {peak:.0f} MiB.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
