"""Network configs of the five kinds, in stock size and tiny."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from app.config.schema.model import DiTConfig, LoraConfig, PatchSize, PositionConfig
from app.models.conditioning import Conditioning

KINDS = ("2b", "5b", "5b_i2v", "1.5", "1.5_i2v")


def stock(kind: str) -> DiTConfig:
    """The released sizes."""
    is_2b, is_1p5, is_i2v = kind == "2b", kind.startswith("1.5"), kind.endswith("i2v")
    return DiTConfig(
        num_layers=30 if is_2b else 42,
        hidden_size=1920 if is_2b else 3072,
        num_attention_heads=30 if is_2b else 48,
        in_channels=32 if is_i2v else 16,
        out_channels=16,
        patch=PatchSize(frames=2 if is_1p5 else 1, rows=2, columns=2),
        position=PositionConfig(
            kind="sincos3d" if is_2b else "rope3d",
            text_length=224 if is_1p5 else 226,
            learnable=kind == "5b_i2v",
            height_interpolation=1.875 if is_2b else 1.0,
            width_interpolation=1.875 if is_2b else 1.0,
        ),
        num_frames=81 if is_1p5 else 49,
        time_compressed_rate=4,
        latent_height=300 if is_1p5 else 60,
        latent_width=300 if is_1p5 else 90,
        time_embed_dim=512,
        text_hidden_size=4096,
        inner_hidden_size=4 * (1920 if is_2b else 3072),
        ofs_embed_dim=512 if kind == "1.5_i2v" else None,
    )


def tiny(kind: str, *, lora: LoraConfig | None = None) -> DiTConfig:
    """The same architecture with 2 layers of width 32: 2 heads of 16."""
    config = stock(kind)
    return replace(
        config,
        num_layers=2,
        hidden_size=32,
        num_attention_heads=2,
        position=replace(config.position, text_length=5),
        num_frames=13 if config.patch.frames == 2 else 9,
        latent_height=8,
        latent_width=12,
        time_embed_dim=16,
        ofs_embed_dim=None if config.ofs_embed_dim is None else 16,
        text_hidden_size=24,
        inner_hidden_size=128,
        lora=lora,
    )


def inputs(
    config: DiTConfig, *, batch: int = 2, frames: int | None = None
) -> tuple[Tensor, Tensor, Conditioning]:
    """Latents, timesteps and conditioning that fit a tiny config, from a fixed generator."""
    generator = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    T = frames or (4 if config.patch.frames == 2 else 3)
    image_channels = config.in_channels - config.out_channels
    conditioning = Conditioning(
        text=normal(batch, config.position.text_length, config.text_hidden_size),
        image=normal(batch, T, image_channels, 8, 12) if image_channels else None,
        ofs=torch.tensor([2.0]) if config.ofs_embed_dim else None,
    )
    timesteps = torch.tensor([999, 123, 0, 500])[:batch]
    return normal(batch, T, config.out_channels, 8, 12), timesteps, conditioning
