"""Peak host memory of a node while the ranks of a run load the network.

    python benchmarks/loading_memory.py [--layers 12] [--ranks 2] \\
        > benchmarks/results/loading_memory_<cpu>_<date>.md

Several ranks on this machine's CPU load a network of the 2B width in bf16 from a safetensors file:
each for itself, rank 0 for all, and rank 0 for ranks that share the network. The figure is the peak
of anonymous memory, which the kernel cannot drop, summed over the ranks, minus what the processes
hold before; pages of the file are shared and can be dropped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from app.config.load import load_config
from app.config.schema.model import DiTConfig
from app.conversion.export import export_safetensors
from app.conversion.loading import load_network_weights
from app.distributed.groups import process_groups
from app.distributed.rank import RankInfo, free_port
from app.distributed.rank_group import ALONE
from app.distributed.sharing import split_ranks
from app.models.dit.parallel import split_network
from app.models.dit.transformer import DiffusionTransformer
from app.registry import TARGETS

ROOT = Path(__file__).parents[1]
WAYS = ("each rank reads", "rank 0 reads for all", "rank 0 reads, the network is shared")
MIB = 2**20
POLL_S = 0.005


def network_of(layers: int) -> DiffusionTransformer:
    base = ["--base", str(ROOT / "configs/cogvideox_2b.yaml"), "--mode", "inference"]
    model = load_config(base, TARGETS).model
    assert model is not None
    config: DiTConfig = replace(model.network.params, num_layers=layers)
    return DiffusionTransformer(config, device="meta", dtype=torch.bfloat16)


def load(path: Path, layers: int, way: str) -> None:
    """One rank: wait for the start, load, wait to be measured."""
    torch.set_num_threads(1)
    rank = RankInfo.from_environment(os.environ)
    with process_groups(rank, device=torch.device("cpu"), join_s=120) as groups:
        shared = way == WAYS[2]
        group = split_ranks(groups, rank.world_size).tensor if shared else ALONE
        network = network_of(layers)
        split_network(network, group)
        print("ready", flush=True)
        sys.stdin.readline()
        started = time.perf_counter()
        load_network_weights(network, path if way == WAYS[0] else lambda: path)
        seconds = time.perf_counter() - started
        held = sum(p.numel() * p.element_size() for p in network.parameters())
        print(json.dumps({"seconds": seconds, "held_mib": held / MIB}), flush=True)
        sys.stdin.readline()


def anonymous_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


def measure(path: Path, layers: int, way: str, ranks: int) -> dict[str, Any]:
    port = str(free_port())
    names = ("RANK", "LOCAL_RANK"), ("WORLD_SIZE", "LOCAL_WORLD_SIZE")
    words = [sys.executable, __file__, "--rank-of", str(path), "--layers", str(layers)]
    processes = [
        subprocess.Popen(
            [*words, "--way", way],
            env={**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            | dict.fromkeys(names[0], str(rank))
            | dict.fromkeys(names[1], str(ranks)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    before = [anonymous_mib(process.pid) for process in processes]
    peaks, peak = list(before), sum(before)
    for process in processes:
        assert process.stdin is not None
        print(file=process.stdin, flush=True)
    reports = []
    os.set_blocking(processes[0].stdout.fileno(), False)  # type: ignore[union-attr]
    while not (line := processes[0].stdout.readline()):  # type: ignore[union-attr]
        now = [anonymous_mib(process.pid) for process in processes]
        peak = max(peak, sum(now))
        peaks = [max(pair) for pair in zip(peaks, now, strict=True)]
        time.sleep(POLL_S)
    reports.append(json.loads(line))
    reports += [json.loads(p.stdout.readline()) for p in processes[1:] if p.stdout is not None]
    for process in processes:  # all of them, before waiting for any
        print(file=process.stdin, flush=True)
    for process in processes:
        process.wait(timeout=120)
    return {
        "way": way,
        "node_mib": peak - sum(before),
        "rank_mib": max(a - b for a, b in zip(peaks, before, strict=True)),
        "held_mib": sum(report["held_mib"] for report in reports),
        "seconds": max(report["seconds"] for report in reports),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rank-of", type=Path)
    parser.add_argument("--way", choices=WAYS)
    asked = parser.parse_args()
    if asked.rank_of is not None:
        load(asked.rank_of, asked.layers, asked.way)
        return
    with tempfile.TemporaryDirectory() as folder:
        network = network_of(asked.layers).to_empty(device="cpu")
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.fill_(0.01)
        path = Path(folder) / "model.safetensors"
        export_safetensors(path, dict(network.named_parameters()), network.config)
        largest = max(p.numel() * p.element_size() for p in network.parameters()) / MIB
        del network
        size_mib = path.stat().st_size / MIB
        print(
            f"# Peak host memory while {asked.ranks} ranks load a network of {size_mib:.0f} MiB\n"
        )
        print(
            f"{platform.processor() or platform.machine()}, torch {torch.__version__}, CPU, bf16."
        )
        print(f"Largest tensor: {largest:.0f} MiB. MiB of anonymous memory above the start:\n")
        print("| way | node, peak | of it the weights | a rank, peak | seconds |")
        print("|---|---|---|---|---|")
        for way in WAYS:
            row = measure(path, asked.layers, way, asked.ranks)
            print(
                f"| {way} | {row['node_mib']:.0f} | {row['held_mib']:.0f} | "
                f"{row['rank_mib']:.0f} | {row['seconds']:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
