"""Start-up time: `cogvx config check`, and a run up to its first step.

    python benchmarks/start_up.py [--runs 5] > benchmarks/results/start_up_<machine>_<yyyymmdd>.md

The check is compared with `import torch` in the same run, because a checker that imports torch
could not be faster. The first step is that of the tiny model in two processes on this machine, from
the start of the processes to the end of optimizer step 1, without an S3 server or validation.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
BASE = ["--base", "configs/tiny/tiny.yaml", "configs/tiny/tiny_sft.yaml"]


def call(words: Sequence[str]) -> str:
    """Run python with arguments, and return its standard error; exit with it on a failure."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return done.stderr


def seconds(words: Sequence[str]) -> float:
    """Wall seconds of one call."""
    began = time.perf_counter()
    call(words)
    return time.perf_counter() - began


def first_step(folder: Path, number: int) -> float:
    """Seconds until the log says that step 1 is done, by the log's own clock."""
    words = ["-m", "app", "train", *BASE, "--save", str(folder / "runs"), "--run-id", f"r{number}"]
    words += ["--nproc-per-node", "2", "--train-iters", "1", "args.eval_interval=null"]
    words += [f"args.train_data=[{folder}/clips]", "args.valid_data=[]"]
    words += [f"model.first_stage_config.params.ckpt_path={folder}/tiny/vae/3d-vae.pt"]
    t5 = "model.conditioner_config.params.emb_models[0].params.model_dir"
    words += [f"{t5}={folder}/tiny/t5", f"args.load={folder}/tiny/transformer"]
    began = time.time()
    lines = [json.loads(line) for line in call(words).splitlines() if line.startswith("{")]
    stamp = next(line["time"] for line in lines if line.get("event") == "training")
    clock, fraction = stamp.rstrip("Z").split(".")
    at = time.mktime(time.strptime(clock, "%Y-%m-%dT%H:%M:%S")) - time.timezone
    return at + float(f"0.{fraction}") - began


def row(name: str, values: Sequence[float]) -> str:
    """One line of the table: median, minimum, maximum."""
    return f"| {name} | {statistics.median(values):.2f} | {min(values):.2f} | {max(values):.2f} |"


def main() -> None:
    """Measure and print a page of Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    stock = ["--base", "configs/cogvideox_2b_lora.yaml", "configs/sft.yaml"]
    checks, torches, steps = [], [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        call(["-m", "app.rehearsal.tiny_parts", str(folder / "tiny"), *BASE, "--seed", "1"])
        make = "from pathlib import Path; from app.rehearsal.clips import make_clips; "
        call(["-c", f"{make}make_clips(Path('{folder}/clips'), 8, (32, 64), 8, 2.0, 1)"])
        for number in range(runs):  # interleaved, so that all see the same load of the machine
            checks.append(seconds(["-m", "app", "config", "check", *stock]))
            torches.append(seconds(["-c", "import torch"]))
            steps.append(first_step(folder, number))
    versions = ", ".join(f"{n} {metadata.version(n)}" for n in ("torch", "deepspeed", "omegaconf"))
    ratio = statistics.median(c / t for c, t in zip(checks, torches, strict=True))
    print(f"# Start-up, {os.cpu_count()} cores, {platform.machine()}, no GPU\n")
    print(f"Python {platform.python_version()}, {versions}. {runs} runs, interleaved.")
    print("Command: `python benchmarks/start_up.py`.\n")
    print("| seconds | median | minimum | maximum |\n|---|---|---|---|")
    print(row("`cogvx config check`, stock files", checks))
    print(row("`python -c 'import torch'`", torches))
    print(row("first step of the tiny model, 2 processes", steps))
    print(f"\nconfig check / import torch, pair by pair: {ratio:.2f} (median)")


if __name__ == "__main__":
    main()
