"""Peak memory of VAE encodes and decodes, for each way to split a clip.

    python benchmarks/vae_memory.py > benchmarks/results/vae_memory_<machine>_<yyyymmdd>.md
    python benchmarks/vae_memory.py --ch 128 --rows 480 --columns 720 --frames 49 81   # a GPU

Random weights; on a GPU in bf16, otherwise in fp32 with a small VAE. Every measurement runs in its
own process: on a GPU it is the allocator's peak, on a CPU the growth of the resident set during the
call. It excludes the weights and the input, and includes the result.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from app.config.schema.encoders import VAEConfig, VAEMemoryConfig, VAEPartConfig
from app.models.vae.autoencoder import VideoAutoencoder

ROOT = Path(__file__).parents[1]
MIB = 2**20
PIECE = 8  # frames
ENCODES = {
    "encode, whole clip": VAEMemoryConfig(),
    "encode, pieces on the device": VAEMemoryConfig(encode_frames=PIECE, parking="device"),
    "encode, pieces on the host": VAEMemoryConfig(encode_frames=PIECE, parking="host"),
    "encode, pieces on disk": VAEMemoryConfig(encode_frames=PIECE, parking="disk"),
}


def ways(rows: int, columns: int) -> dict[str, VAEMemoryConfig]:
    """Every way by its name; a tile has 5/8 of the frame's height and width."""
    size = (rows * 5 // 8 // 8 * 8, columns * 5 // 8 // 8 * 8)
    overlap = min(size) // 5 // 8 * 8
    tiled = VAEMemoryConfig(tile_size=size, tile_overlap=overlap, parking="disk")
    return {**ENCODES, "decode, chunks": VAEMemoryConfig(), "decode, chunks and tiles": tiled}


def measure(way: str, frames: int, rows: int, columns: int, ch: int) -> dict[str, float]:
    """Peak bytes above the memory in use before, and seconds."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    blocks = 3 if ch == 128 else 1
    part = VAEPartConfig(ch=ch, num_res_blocks=blocks)
    config = VAEConfig(encoder=part, decoder=part, memory=ways(rows, columns)[way])
    with torch.device(device):
        vae = VideoAutoencoder(config).to(dtype).eval().requires_grad_(False)
    video = torch.rand(1, frames, 3, rows, columns, device=device, dtype=dtype) * 2 - 1
    latents = torch.randn(1, (frames - 1) // 4 + 1, 16, rows // 8, columns // 8).to(device, dtype)
    vae.encode(video[:, :5, :, :32, :32])  # makes the libraries load their code
    before = _start_counting(device)
    started = time.perf_counter()
    if way.startswith("encode"):
        vae.encode(video)
    else:
        vae.decode(latents)
    peak = _peak_bytes(device) - before
    return {"peak_bytes": peak, "seconds": time.perf_counter() - started}


def _start_counting(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the current value
    return _status_bytes("VmRSS")


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    return _status_bytes("VmHWM")


def _status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def in_process(way: str, size: Mapping[str, int]) -> dict[str, float]:
    """`measure` in its own process."""
    flags = [word for name, value in size.items() for word in (f"--{name}", str(value))]
    # Memory of a freed tensor goes back to the system immediately.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, __file__, "--way", way, *flags],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Write the table, or with `--way` one figure as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, nargs="+", default=[33, 97])
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--columns", type=int, default=192)
    parser.add_argument("--ch", type=int, default=32, help="width; the released VAE has 128")
    parser.add_argument("--way", choices=list(ways(64, 64)))
    args = parser.parse_args(argv)
    if args.way is not None:
        print(json.dumps(measure(args.way, args.frames[0], args.rows, args.columns, args.ch)))
        return 0
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(f"# Memory of the VAE, {platform.machine()}, {gpu}\n")
    print(f"torch {torch.__version__}. Command: `python benchmarks/vae_memory.py`; ch {args.ch},")
    print(f"{args.rows} x {args.columns} pixels, pieces of {PIECE} frames (the first of 9).\n")
    heads = [f"{frames} frames, MiB | s" for frames in args.frames]
    print(f"| way | {' | '.join(heads)} |\n|---|{'---|---|' * len(heads)}")
    for way in ways(args.rows, args.columns):
        cells = []
        for frames in args.frames:
            size = {"frames": frames, "rows": args.rows, "columns": args.columns, "ch": args.ch}
            found = in_process(way, size)
            cells.append(f"{found['peak_bytes'] / MIB:.0f} | {found['seconds']:.1f}")
        print(f"| {way} | {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
