"""The 3D causal VAE."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class VAEPartConfig:
    """`encoder_config.params` / `decoder_config.params`."""

    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 2, 4)
    num_res_blocks: int = 3
    z_channels: int = 16
    in_channels: int = 3
    out_ch: int = 3
    temporal_compress_times: int = 4
    dropout: float = 0.0
    gather_norm: bool = True  # group-norm statistics over all context-parallel ranks


@dataclass(frozen=True, kw_only=True, slots=True)
class VAEConfig:
    """`first_stage_config.params` (VideoAutoencoderInferenceWrapper)."""

    encoder: VAEPartConfig
    decoder: VAEPartConfig
    ckpt_path: str | None = None  # 3d-vae.pt, local or s3://
    ignore_keys: tuple[str, ...] = ()  # key prefixes of the file that are left out
    cp_size: int = 1
    sample_posterior: bool = True  # regularizer_config.params.sample
