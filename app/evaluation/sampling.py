"""Sample latents from a network.

Used by validation and by `cogvx sample`. Which prompts a rank does follows from their positions,
and with keyed draws so does their noise: the same seed gives the same videos at any world size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from app.diffusion.denoiser import Network
from app.diffusion.frames_padding import drop_padding, padding_count
from app.diffusion.samplers.loop import Progress, Sampler
from app.distributed.seeding import Draws
from app.models.conditioning import Conditioning


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentShape:
    """Size of one sample's latents, without padding."""

    frames: int
    channels: int
    rows: int
    columns: int
    patch_frames: int = 1  # latent frames of one patch: 2 for CogVideoX1.5

    @property
    def padding(self) -> int:
        """Latent frames put in front while sampling and dropped before decoding."""
        return padding_count(self.frames, self.patch_frames)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingJob:
    """What one batch of samples is made from.

    Attributes:
        conditioning: of B samples; image latents cover frames and padding.
        shape: size of the latents.
        scale_factor: latents that the network sees = scale_factor * latents of the VAE.
        device: of the network.
        dtype: dtype of the latents given to the VAE; the sampling itself is fp32.
        prefix: (B, f, C, h, w) clean scaled latents for the first frames, with `fixed_frames`.
    """

    conditioning: Conditioning
    shape: LatentShape
    scale_factor: float
    device: torch.device
    dtype: torch.dtype = torch.float32
    prefix: Tensor | None = None


def positions_of_rank(count: int, rank: int, world_size: int) -> range:
    """Positions 0..count-1 that a rank samples: every world_size-th, so that shares are even."""
    return range(rank, count, world_size)


def sample_latents(
    sampler: Sampler,
    network: Network,
    job: SamplingJob,
    draws: Draws,
    progress: Progress | None = None,
) -> Tensor:
    """Sample latents as the VAE knows them: not scaled, padding dropped.

    Draws initial_noise and what the sampler needs.

    Returns:
        (B, t, C, h, w) in `job.dtype`.
    """
    shape = job.shape
    frames = shape.frames + shape.padding
    size = (len(job.conditioning.text), frames, shape.channels, shape.rows, shape.columns)
    # On the CPU, whatever the device: the same seed gives the same start everywhere.
    noise = draws.normal_like("initial_noise", torch.zeros(size)).to(job.device)
    if job.prefix is not None:
        noise = torch.cat([job.prefix.to(noise), noise[:, job.prefix.shape[1] :]], dim=1)
    latents = sampler.sample(network, noise, job.conditioning.for_guidance(), draws, progress)
    return drop_padding(latents.to(job.dtype), shape.padding) / job.scale_factor


def to_unit_range(pixels: Tensor) -> Tensor:
    """Pixels in [-1, 1], any dtype, as fp32 in [0, 1]; values outside are clamped."""
    return ((pixels.float() + 1) / 2).clamp(0, 1)
