"""Resident memory while many samples are read: shards in a bucket, two decoder workers.

    python benchmarks/data_soak.py [--samples 20000] > benchmarks/results/data_soak_<cpu>_<date>.md
    python benchmarks/data_soak.py --samples 60 --clips 6 --size 49x480x720    # memory of one rank

Reads clips from an S3 server on this machine, in the global order, epoch after epoch. The clips are
1.5 times as large as what is cropped from them. The reading process and its decoders are measured;
the server is a separate process and is not.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from app.config.load import load_config
from app.data.opening import LoaderRequest, open_loader
from app.data.order.share import Share
from app.data.pack import PackRules, pack
from app.registry import TARGETS
from app.rehearsal.clips import make_clips
from app.rehearsal.embedded_s3 import EmbeddedS3

ROOT = Path(__file__).parents[1]
ROWS = 20  # of the table
FPS = 8
WORDS = [
    *("--base", str(ROOT / "configs/tiny/tiny.yaml"), str(ROOT / "configs/tiny/tiny_train.yaml")),
    *("args.train_data=[s3://clips/train]", "args.valid_data=[]", "args.eval_interval=null"),
]


def resident_mib(pid: int) -> float:
    """Resident memory of a process and its children."""
    total = 0
    for name in [str(pid), *children(pid)]:
        try:
            pages = int(Path(f"/proc/{name}/statm").read_text().split()[1])
        except FileNotFoundError:
            continue
        total += pages * os.sysconf("SC_PAGE_SIZE")
    return total / 2**20


def children(pid: int) -> list[str]:
    """Processes started by any thread of the process."""
    found: list[str] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += (task / "children").read_text().split()
    return found


@dataclass(frozen=True, slots=True)
class Work:
    """The samples to read."""

    samples: int
    clips: int
    size: str  # frames x rows x columns
    workers: int

    def words(self) -> list[str]:
        frames, rows, columns = self.size.split("x")
        size = [f"data.params.num_frames={frames}", f"data.params.image_size=[{rows},{columns}]"]
        return [*WORDS, *size, "--num-workers", str(self.workers)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--size", default="17x64x96")
    parser.add_argument("--workers", type=int, default=2)
    work = Work(**vars(parser.parse_args()))
    frames, rows, columns = (int(part) for part in work.size.split("x"))
    with tempfile.TemporaryDirectory() as scratch, EmbeddedS3(Path(scratch) / "s3") as server:
        os.environ.update(server.environment(), TMPDIR=scratch)
        tempfile.tempdir = None
        server.create_bucket("clips")
        size = (rows * 3 // 2, columns * 3 // 2 // 2 * 2)
        make_clips(Path(scratch) / "clips", work.clips, size, FPS, (frames + 4) / FPS, 1)
        pack(str(Path(scratch) / "clips"), "s3://clips/train", PackRules(shard_bytes=1 << 20))
        soak(work)


def soak(work: Work) -> None:
    """Read and print the table."""
    config = load_config(work.words(), TARGETS)
    assert config.data is not None
    samples = work.samples
    request = LoaderRequest(paths=["s3://clips/train"], share=Share(0, 1, 1, 1), seed=1)
    print(f"# {samples} samples of {work.size} through {work.workers} workers")
    print(f"\n{platform.machine()}, {os.cpu_count()} cores\n")
    print("| samples | seconds | resident, reader and decoders (MiB) |\n|---|---|---|")
    known = children(os.getpid())  # the server
    began = time.monotonic()
    seen: list[float] = []
    with open_loader(config.data, request) as loader:
        for number, _ in enumerate(loader.batches(0, samples), 1):
            if number % max(1, samples // ROWS) == 0:
                own = resident_mib(os.getpid())
                own -= sum(resident_mib(int(pid)) for pid in known)
                seen.append(own)
                print(f"| {number} | {time.monotonic() - began:.0f} | {own:.1f} |", flush=True)
    half = len(seen) // 2
    print(f"\nHighest of the first half {max(seen[:half]):.1f} MiB, ", end="")
    print(f"of the second half {max(seen[half:]):.1f} MiB.")


if __name__ == "__main__":
    main()
