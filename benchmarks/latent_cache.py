"""Time of a training step that encodes its clips, and of one that reads them from the cache.

    python benchmarks/latent_cache.py > benchmarks/results/latent_cache_<machine>_<yyyymmdd>.md

The tiny network with its VAE and text encoder (random weights), fp32, one process: reading,
encoding, forward, backward and a step of gradient descent, without DeepSpeed. A cached step saves
the decoding, the VAE and the text encoder, whatever the network costs: for a real model, compare
the time of the network's step with that of `vae_encode` in train_step.py.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from app.config.schema.run import RunConfig
from app.data.opening import LoaderRequest, open_loader
from app.data.order.share import Share
from app.distributed.seeding import KeyedDraws
from app.rehearsal.clips import make_clips
from app.run.attempt.latents import CachedClips
from app.run.build import InitialWeights, LoadOptions, build_modules, build_network
from app.run.encode.job import EncodeReport
from app.training.step import DiffusionModel, Randomness
from tests.support.encoding import Inputs, write_weights

CLIPS, MICRO_BATCH, WARM_UPS = 8, 2, 2
I2V = ("model.noised_image_input=true", "model.network_config.params.in_channels=8")
SIZES = ((9, 32, 64), (17, 64, 96), (17, 96, 160))  # frames, rows, columns


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    kind: str
    size: tuple[int, int, int]
    live: tuple[float, float]  # shortest step and CPU of the mean one, in seconds
    cached: tuple[float, float]
    encoder_s: float  # of `cogvx encode`, per clip
    clip_bytes: float


def words_of(size: tuple[int, int, int], kind: str) -> list[str]:
    frames, rows, columns = size
    network = "model.network_config.params"
    return [
        f"data.params.max_num_frames={frames}",
        f"data.params.video_size=[{rows}, {columns}]",
        f"{network}.num_frames={frames}",
        f"{network}.latent_height={rows // 8}",
        f"{network}.latent_width={columns // 8}",
        *(I2V if kind == "image-to-video" else ()),
    ]


def step_seconds(config: RunConfig, cached: CachedClips | None, steps: int) -> tuple[float, float]:
    """Seconds of the shortest step, and CPU seconds of the mean step of this process.

    The second excludes the CPU seconds of the decoder, which is a separate process.
    """
    assert config.model is not None
    assert config.data is not None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    scratch = InitialWeights(None, is_resumed=False, force=False, seed=1, cache_dir=Path("unused"))
    network, _ = build_network(config.model, torch.float32, scratch)
    place = LoadOptions(device, torch.float32, Path("unused"))
    parts = build_modules(config.model, network.to(device), place, from_cache=cached is not None)
    randomness = Randomness(partial(KeyedDraws, 3))
    model = DiffusionModel(parts, config.model, randomness, device=device, dtype=torch.float32)
    descent = torch.optim.SGD(network.parameters(), lr=1e-3)
    request = LoaderRequest(
        paths=config.data.train,
        share=Share(0, 1, MICRO_BATCH),
        seed=3,
        replace=cached.in_place_of if cached is not None else None,
    )
    seconds = []
    with open_loader(config.data, request) as loader:
        began = time.perf_counter()
        for batch in loader.batches(0, WARM_UPS + steps):
            loss, _ = model.shared_step(batch)
            loss.backward()
            descent.step()
            descent.zero_grad()
            float(loss)
            seconds.append(time.perf_counter() - began)
            if len(seconds) == WARM_UPS:
                cpu_began = time.process_time()
            began = time.perf_counter()
        cpu_s = (time.process_time() - cpu_began) / steps
    return min(seconds[WARM_UPS:]), cpu_s


def measured(folder: Path, size: tuple[int, int, int], kind: str, steps: int) -> Row:
    frames, rows, columns = size
    inputs = Inputs(folder)
    if not inputs.clips.exists():
        make_clips(inputs.clips, CLIPS, (rows, columns), 8, frames / 8 + 0.5, 1)
        write_weights(folder, seed=5)
    words = words_of(size, kind)
    report: EncodeReport = inputs.encode(*words)
    assert report.computed == CLIPS
    config = inputs.config("--latent-cache", str(inputs.cache), *words)
    cached = CachedClips.of_run(config)
    assert cached is not None
    return Row(
        kind,
        size,
        live=step_seconds(config, None, steps),
        cached=step_seconds(config, cached, steps),
        encoder_s=report.seconds / CLIPS,
        clip_bytes=statistics.mean(cached.present.values()),
    )


def page(rows: Sequence[Row], steps: int) -> str:
    """The result file."""
    on_gpu = torch.cuda.is_available()
    where = torch.cuda.get_device_name() if on_gpu else f"{os.cpu_count()} cores, no GPU"
    lines = [
        "# Steps with live encoding and from the latent cache",
        "",
        f"{where}, {platform.machine()}; Python {platform.python_version()}, torch "
        f"{torch.__version__}, {torch.get_num_threads()} thread(s); {time.strftime('%Y-%m-%d')}; "
        f"load average {os.getloadavg()[0]:.1f}.",
        f"Tiny network (2 blocks of 64) and VAE, fp32, batch {MICRO_BATCH}; shortest of {steps} "
        "steps, CPU of the mean one. Command: `python benchmarks/latent_cache.py`.",
        "",
        "| training | frames x rows x columns | live step, s (CPU s) | cached step, s (CPU s) "
        "| live / cached (CPU) | encode, s per clip (start included) | kB per clip |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        size = "x".join(str(number) for number in row.size)
        (live_s, live_cpu_s), (cached_s, cached_cpu_s) = row.live, row.cached
        lines.append(
            f"| {row.kind} | {size} | {live_s:.3f} ({live_cpu_s:.3f}) "
            f"| {cached_s:.3f} ({cached_cpu_s:.3f}) "
            f"| {live_s / cached_s:.1f} ({live_cpu_s / cached_cpu_s:.1f}) "
            f"| {row.encoder_s:.2f} | {row.clip_bytes / 1e3:.0f} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--steps", type=int, default=12)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            for kind in ("text-to-video", "image-to-video"):
                own = Path(folder) / "x".join(str(number) for number in size)
                own.mkdir(exist_ok=True)
                rows.append(measured(own, size, kind, steps))
    sys.stdout.write(page(rows, steps))


if __name__ == "__main__":
    main()
