"""Time, peak memory and MFU of the network's forward and backward, and of one VAE encode.

    python benchmarks/train_step.py [--runs 5] > benchmarks/results/train_step_<gpu>_<yyyymmdd>.md

Stock sizes with random weights in bf16, one clip of 49x480x720, every block recomputed. Needs torch
and a GPU; DeepSpeed, the optimizer and the data are not included. MFU is model FLOPs (counted by
torch on the meta device, without recomputation and, with LoRA, without gradients of frozen weights)
divided by the dense bf16 peak of the GPU.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))

from app.config.schema.encoders import VAEConfig, VAEPartConfig
from app.config.schema.model import DiTConfig, LoraConfig
from app.models.conditioning import Conditioning
from app.models.dit.transformer import DiffusionTransformer
from app.models.vae.autoencoder import VideoAutoencoder

PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0}  # dense bf16, from the data sheets
WARM_UPS = 2
PIXELS = 8  # per latent row and column


@dataclass(frozen=True, slots=True)
class Clip:
    """Size of the clip, in pixels."""

    frames: int = 49
    rows: int = 480
    columns: int = 720

    @property
    def latents(self) -> tuple[int, int, int]:
        return (self.frames - 1) // 4 + 1, self.rows // PIXELS, self.columns // PIXELS


@dataclass(frozen=True, slots=True)
class Measurement:
    """One row of the table."""

    name: str
    seconds: float  # median of the runs
    spread_s: float  # slowest - fastest
    peak_bytes: int  # 0 where the device does not report it
    model_flops: float

    def mfu(self, peak_tflops: float | None) -> float | None:
        return None if peak_tflops is None else self.model_flops / self.seconds / peak_tflops / 1e12


def peak_of(device: torch.device) -> float | None:
    """TFLOP/s of the device in dense bf16; None if unknown."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for short, peak in PEAK_TFLOPS.items() if short in name), None)


def network_step(
    name: str, config: DiTConfig, clip: Clip, device: torch.device, runs: int
) -> Measurement:
    """Forward and backward of the network with random weights, in bf16 on one clip."""
    config = replace(config, checkpoint_activations=True)
    with torch.device(device):
        network = DiffusionTransformer(config, dtype=torch.bfloat16)
    if config.lora is not None:
        for parameter_name, parameter in network.named_parameters():
            parameter.requires_grad_(parameter_name.endswith((".lora_a", ".lora_b")))
    network.train()
    inputs = inputs_of(config, clip, device)

    def step() -> None:
        network(*inputs).float().square().mean().backward()
        network.zero_grad(set_to_none=True)

    seconds, peak = timed(step, device, runs)
    flops = model_flops(config, clip)
    return Measurement(name, statistics.median(seconds), spread(seconds), peak, flops)


def vae_encode(
    name: str, part: VAEPartConfig, clip: Clip, device: torch.device, runs: int
) -> Measurement:
    """Encode one clip in bf16."""
    config = VAEConfig(encoder=part, decoder=part)
    with torch.device(device):
        vae = VideoAutoencoder(config).bfloat16().eval().requires_grad_(False)
    shape = (1, clip.frames, 3, clip.rows, clip.columns)
    video = torch.rand(shape, device=device, dtype=torch.bfloat16) * 2 - 1
    seconds, peak = timed(lambda: vae.encode(video), device, runs)
    with torch.device("meta"):
        outline = VideoAutoencoder(config).eval()
        flops = counted(lambda: outline.encode(torch.empty(shape)))
    return Measurement(name, statistics.median(seconds), spread(seconds), peak, flops)


def inputs_of(
    config: DiTConfig, clip: Clip, device: torch.device | str
) -> tuple[Tensor, Tensor, Conditioning]:
    """Random latents (1, t, C, h, w) of the clip, a timestep and a caption."""
    frames, rows, columns = clip.latents
    frames += -frames % config.patch.frames
    bf16 = torch.bfloat16
    latents = torch.randn(1, frames, 16, rows, columns, device=device, dtype=bf16)
    text = torch.randn(
        1, config.position.text_length, config.text_hidden_size, device=device, dtype=bf16
    )
    image = torch.randn_like(latents) if config.in_channels > 16 else None
    ofs = torch.full((1,), 2.0, device=device) if config.ofs_embed_dim else None
    timesteps = torch.full((1,), 500, device=device)
    return latents, timesteps, Conditioning(text, image, ofs)


def model_flops(config: DiTConfig, clip: Clip) -> float:
    """FLOPs of forward and backward: 3 x forward, or 2 x linear + 3 x attention with LoRA."""
    outline = replace(config, checkpoint_activations=False)
    network = DiffusionTransformer(outline, device="meta", dtype=torch.bfloat16)
    inputs = inputs_of(config, clip, "meta")
    total = counted(lambda: network(*inputs))
    frames, rows, columns = inputs[0].shape[1], *clip.latents[1:]
    patch = config.patch
    tokens = frames // patch.frames * (rows // patch.rows) * (columns // patch.columns)
    tokens += config.position.text_length
    attention = config.num_layers * 4 * tokens**2 * config.hidden_size
    linear = total - attention
    return (2 if config.lora is not None else 3) * linear + 3 * attention


def counted(call: Callable[[], object]) -> float:
    """FLOPs of a call."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def timed(call: Callable[[], object], device: torch.device, runs: int) -> tuple[list[float], int]:
    """Seconds of each run after warming up, and the peak of bytes in use."""
    on_gpu = device.type == "cuda"
    for _ in range(WARM_UPS):
        call()
    if on_gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    seconds = []
    for _ in range(runs):
        began = time.perf_counter()
        call()
        if on_gpu:
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return seconds, torch.cuda.max_memory_allocated(device) if on_gpu else 0


def spread(seconds: Sequence[float]) -> float:
    return max(seconds) - min(seconds)


def page(rows: Sequence[Measurement], device: torch.device, clip: Clip, runs: int) -> str:
    """The result file."""
    peak = peak_of(device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    lines = [
        f"# Forward and backward at {clip.frames}x{clip.rows}x{clip.columns}, batch 1, bf16",
        "",
        f"{where}; torch {torch.__version__}; {time.strftime('%Y-%m-%d')}; median of {runs} runs.",
        f"Peak taken for MFU: {f'{peak:g} TFLOP/s' if peak else 'not known'}.",
        "",
        "| what | seconds | spread | peak memory, GiB | model TFLOP | MFU |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        mfu = row.mfu(peak)
        share = "-" if mfu is None else f"{100 * mfu:.1f} %"
        lines.append(
            f"| {row.name} | {row.seconds:.3f} | {row.spread_s:.3f} | {row.peak_bytes / 2**30:.1f} "
            f"| {row.model_flops / 1e12:.1f} | {share} |"
        )
    return "\n".join([*lines, ""])


def freed(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


def measure_all(
    networks: Sequence[tuple[str, DiTConfig]],
    part: VAEPartConfig,
    clip: Clip,
    device: torch.device,
    runs: int,
) -> list[Measurement]:
    """A row per network and one for the VAE, one after the other to keep their memory apart."""
    rows = []
    for name, config in networks:
        rows.append(network_step(name, config, clip, device, runs))
        freed(device)
    rows.append(vae_encode("VAE encode", part, clip, device, runs))
    freed(device)
    return rows


def stock_networks() -> list[tuple[str, DiTConfig]]:
    """2B in full and 5B with LoRA of rank 128, in the released sizes."""
    from tests.support.networks import stock

    lora = replace(stock("5b"), lora=LoraConfig(rank=128))
    return [("2B, all weights", stock("2b")), ("5B, LoRA of rank 128", lora)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    if not torch.cuda.is_available():
        raise SystemExit("error: no GPU\n  where: this machine\n  fix:   run it where CUDA works")
    device, clip = torch.device("cuda"), Clip()
    part = VAEPartConfig(ch=128, num_res_blocks=3)
    rows = measure_all(stock_networks(), part, clip, device, runs)
    sys.stdout.write(page(rows, device, clip, runs))


if __name__ == "__main__":
    main()
