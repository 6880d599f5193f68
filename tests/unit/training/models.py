"""A tiny engine of every kind, with an autoencoder and a text encoder that are plain formulas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from app.config.schema.diffusion import (
    DenoiserConfig,
    GuidanceConfig,
    LossConfig,
    SamplerConfig,
    TimestepConfig,
)
from app.config.schema.encoders import ConditionerConfig, T5Config, VAEConfig, VAEPartConfig
from app.config.schema.model import ModelConfig
from app.config.target import Component
from app.diffusion.denoiser import Denoiser
from app.diffusion.guidance import ConstantGuidance
from app.diffusion.loss import VideoDiffusionLoss
from app.diffusion.samplers.ddim import DdimSampler
from app.distributed.seeding import Draws, KeyedDraws
from app.models.dit.transformer import DiffusionTransformer
from app.models.text.conditioner import Conditioner
from app.training.step import DiffusionModel, Randomness
from tests.support.networks import tiny

ROWS, COLUMNS = 64, 96  # pixels; latents are 8 x 12
SCALE = 0.5


class PlainVae:
    """Latent channel c of a frame: the mean pixel plus c / 100, and noise if it is asked for."""

    def __init__(self) -> None:
        self.encoded: list[Tensor] = []

    def encode(self, video: Tensor, samples_at_a_time: int | None = None) -> PlainPosterior:
        self.encoded.append(video)
        frames = video[:, ::4].mean(dim=2, keepdim=True)[..., ::8, ::8]
        offsets = torch.arange(16, dtype=video.dtype)[None, None, :, None, None] / 100
        return PlainPosterior(frames + offsets)

    def decode(self, latents: Tensor) -> Tensor:
        frames = 4 * (latents.shape[1] - 1) + 1
        return latents.new_zeros(latents.shape[0], frames, 3, ROWS, COLUMNS)


@dataclass(frozen=True)
class PlainPosterior:
    mean: Tensor

    def draw(self, draws: Draws, purpose: str) -> Tensor:
        return self.mean + 0.1 * draws.normal_like(purpose, self.mean)


class PlainEncoder:
    """Every token of a caption is its length."""

    def __init__(self, length: int, width: int) -> None:
        self.shape = (length, width)

    def encode(self, captions: Sequence[str]) -> Tensor:
        return torch.stack([torch.full(self.shape, 0.1 * len(text)) for text in captions])


@dataclass(frozen=True)
class TinyParts:
    network: Any
    vae: PlainVae
    conditioner: Conditioner
    loss: VideoDiffusionLoss
    sampler: DdimSampler


def model_config(kind: str, **fields: Any) -> ModelConfig:
    part = VAEPartConfig(ch=32, num_res_blocks=1)
    settings: dict[str, Any] = {
        "network": Component("net", "app:Net", tiny(kind)),
        "denoiser": DenoiserConfig(),
        "conditioner": ConditionerConfig(
            target="text", implementation="app:Text", text=T5Config(model_dir="t5"), ucg_rate=0.5
        ),
        "first_stage": Component("vae", "app:Vae", VAEConfig(encoder=part, decoder=part)),
        "loss": LossConfig(timesteps=TimestepConfig(uniform_sampling=True)),
        "sampler": Component(
            "sampler",
            "app:Sampler",
            SamplerConfig(num_steps=2, guidance=Component("cfg", "app:Cfg", GuidanceConfig())),
        ),
        "scale_factor": SCALE,
        "noised_image_input": kind.endswith("i2v"),
        "noised_image_dropout": 0.5 if kind.endswith("i2v") else 0.0,
    }
    return ModelConfig(**{**settings, **fields})


def tiny_model(
    kind: str = "5b",
    *,
    at_once: bool = False,
    strata: Any = None,
    dtype: torch.dtype = torch.float32,
    **fields: Any,
) -> DiffusionModel:
    config = model_config(kind, **fields)
    net = config.network.params
    torch.manual_seed(3)
    network = DiffusionTransformer(net, dtype=dtype)
    for parameter in network.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    denoiser = Denoiser(config.denoiser)
    encoder = PlainEncoder(net.position.text_length, net.text_hidden_size)
    parts = TinyParts(
        network=network,
        vae=PlainVae(),
        conditioner=Conditioner(encoder, config.conditioner.ucg_rate),
        loss=VideoDiffusionLoss(config.loss, denoiser),
        sampler=DdimSampler(
            config.sampler.params, denoiser, ConstantGuidance(GuidanceConfig(scale=2.0))
        ),
    )
    randomness = Randomness(draws=lambda positions: KeyedDraws(7, positions))
    if strata is not None:
        randomness = replace(randomness, strata=strata)
    return DiffusionModel(
        parts,
        config,
        replace(randomness, shared_image_dropout=at_once),
        device=torch.device("cpu"),
        dtype=dtype,
    )


def batch_of(count: int = 2, frames: int = 9, first: int = 0) -> dict[str, Any]:
    """Clips of bytes; sample i of the run is the same whatever batch it comes in."""
    clips = []
    for position in range(first, first + count):
        generator = torch.Generator().manual_seed(position)
        shape = (frames, 3, ROWS, COLUMNS)
        clips.append(torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8))
    return {
        "mp4": torch.stack(clips),
        "txt": ["x" * (position + 1) for position in range(first, first + count)],
        "positions": list(range(first, first + count)),
        "fps": torch.full((count,), 8),
    }
