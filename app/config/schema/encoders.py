"""The frozen encoders: the 3D causal VAE and the text conditioner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from app.errors import ConfigError

_WHERE = "model.first_stage_config.params"


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


@dataclass(frozen=True, kw_only=True, slots=True)
class VAEMemoryConfig:
    """How the VAE cuts its work so that it fits into memory.

    Pieces of time change no result. Tiles do, a little, near their seams.
    """

    encode_frames: int | None = None  # frames per piece of an encode; None: the whole clip
    parking: str = "host"  # where other pieces wait: device, host or disk
    tile_size: tuple[int, int] | None = None  # rows and columns of pixels; None: whole frames
    tile_overlap: int = 128  # pixels that neighbouring tiles share at least


@dataclass(frozen=True, kw_only=True, slots=True)
class VAEConfig:
    """`first_stage_config.params` (VideoAutoencoderInferenceWrapper)."""

    encoder: VAEPartConfig
    decoder: VAEPartConfig
    ckpt_path: str | None = None  # 3d-vae.pt, local or s3://
    ignore_keys: tuple[str, ...] = ()  # key prefixes of the file that are left out
    cp_size: int = 1  # ranks that encode their clips together, each a part of the time
    memory: VAEMemoryConfig = VAEMemoryConfig()
    sample_posterior: bool = True  # regularizer_config.params.sample

    def __post_init__(self) -> None:
        self._check_multiple(
            "encode_frames", self.memory.encode_frames, self.encoder.temporal_compress_times
        )
        pixels = 2 ** (len(self.encoder.ch_mult) - 1)
        for size in self.memory.tile_size or ():
            self._check_multiple("tile_size", size, pixels)
            if self.memory.tile_overlap >= size:
                raise ConfigError(
                    f"tiles of {size} pixels cannot overlap by {self.memory.tile_overlap}",
                    where=f"{_WHERE}.tile_overlap",
                    fix="make the overlap smaller than both sides of a tile",
                )
        if self.memory.tile_size is not None:
            self._check_multiple("tile_overlap", self.memory.tile_overlap, pixels, least=0)

    def _check_multiple(
        self, key: str, value: int | None, unit: int, *, least: int | None = None
    ) -> None:
        least = unit if least is None else least
        if value is None or (value >= least and value % unit == 0):
            return
        raise ConfigError(
            f"{key} is {value}, not a multiple of {unit}",
            where=f"{_WHERE}.{key}",
            fix=f"use {max(least, round(value / unit) * unit)}",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class T5Config:
    """`emb_models[0].params` (FrozenT5Embedder)."""

    model_dir: str  # folder with tokenizer and encoder, local or s3://
    max_length: int = 77  # tokens; captions are padded and cut to it


@dataclass(frozen=True, kw_only=True, slots=True)
class ConditionerConfig:
    """`conditioner_config.params` (GeneralConditioner with one text embedder)."""

    target: str  # registry name of the embedder
    implementation: str  # "app.models.text.t5:T5TextEncoder", or a registered class
    text: T5Config
    ucg_rate: float = 0.0  # probability that a caption's embedding becomes zeros in training
    params: Mapping[str, object] | None = None  # of a registered class, unchecked; else None
