"""The network and the engine around it. Key names in comments are upstream's YAML keys."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from app.config.argument import OPTIMIZER, Disposition, argument, default_of
from app.config.kinds import boolean, integer
from app.config.schema.diffusion import DenoiserConfig, LossConfig, SamplerConfig
from app.config.schema.encoders import ConditionerConfig, VAEConfig
from app.config.schema.training import TrainingConfig
from app.config.target import Component
from app.errors import ConfigError

_NETWORK = "model.network_config.params"
_OVER_MODEL = f"{_NETWORK}.transformer_args"
_LORA = f"{_NETWORK}.modules.lora_config.params"
_PIXELS_PER_LATENT = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchSize:
    """Size of one patch of latents. YAML `patch_size`: an int p means (1, p, p)."""

    frames: int
    rows: int
    columns: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PositionConfig:
    """`modules.pos_embed_config`: how tokens know where they are."""

    kind: str  # "sincos3d" (2B), "rope3d" (5B, 1.5), "sincos2d"
    text_length: int  # text rows of the added table; only tables use it
    learnable: bool = False  # 5B-I2V: a trained joint table on top of RoPE
    height_interpolation: float = 1.0  # divides row positions of the sin-cos table
    width_interpolation: float = 1.0
    time_interpolation: float = 1.0
    fits_size: bool = False  # `rotary_positions: diffusers`: other sizes are fitted into this one
    first_rows: bool = False  # `position_rows: sat`: other sizes read a table from its start


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig:
    """`modules.lora_config`: low-rank pairs on q, k, v and the output projection of attention."""

    rank: int  # r
    alpha: float = 1.0  # lora_alpha; the scale is alpha / rank
    dropout: float = 0.0  # lora_dropout
    layer_range: tuple[int, ...] | None = None  # indices of the wrapped layers; None: all

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(
                f"the rank of LoRA is {self.rank}", where=f"{_LORA}.r", fix="use 1 or more"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class DiTConfig:
    """`network_config.params`: the diffusion transformer."""

    num_layers: int
    hidden_size: int
    num_attention_heads: int
    in_channels: int  # 16, or 32 with an image latent
    out_channels: int
    patch: PatchSize
    position: PositionConfig
    num_frames: int  # pixel frames that the position table is sized for
    time_compressed_rate: int
    latent_height: int
    latent_width: int
    time_embed_dim: int
    text_hidden_size: int
    inner_hidden_size: int  # width of the MLP; 4 * hidden_size unless given
    ofs_embed_dim: int | None = None
    qk_norm: bool = True  # adaln_layer_config.params.qk_ln
    elementwise_affine: bool = True
    swiglu: bool = False  # use_SwiGLU
    rms_norm: bool = False  # use_RMSNorm
    checkpoint_activations: bool = argument(
        boolean(),
        False,
        "recompute activations of the network in the backward pass",
        note=f"{_OVER_MODEL}.checkpoint_activations, when it is given",
        group=OPTIMIZER,
        disposition=Disposition.MAPPED,
    )
    checkpoint_num_layers: int = argument(
        integer(1),
        1,
        "blocks recomputed as one segment",
        unit="blocks",
        note=f"{_OVER_MODEL}.checkpoint_num_layers, when it is given",
        group=OPTIMIZER,
        disposition=Disposition.MAPPED,
    )
    checkpoint_skip_layers: int = argument(
        integer(0),
        0,
        "last blocks that are not recomputed",
        unit="blocks",
        note=f"{_OVER_MODEL}.checkpoint_skip_layers, when it is given",
        group=OPTIMIZER,
        disposition=Disposition.MAPPED,
    )
    # Ranks that share the network.
    model_parallel_size: int = default_of(TrainingConfig, "model_parallel_size")
    lora: LoraConfig | None = None

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{self.num_attention_heads}",
                where=f"{_NETWORK}.hidden_size",
                fix="change one of them",
            )
        # The head is cut 1/4 : 3/8 : 3/8 into time, rows and columns, each of pairs.
        if self.position.kind == "rope3d" and self.head_dim % 16:
            raise ConfigError(
                f"rotary positions need a head size that is a multiple of 16, not {self.head_dim}",
                where=f"{_NETWORK}.num_attention_heads",
                fix="change hidden_size or num_attention_heads",
            )
        if self.ofs_embed_dim is not None and self.ofs_embed_dim != self.time_embed_dim:
            raise ConfigError(
                f"ofs_embed_dim is {self.ofs_embed_dim}, but the embedding it is added to has "
                f"{self.time_embed_dim} features",
                where=f"{_NETWORK}.ofs_embed_dim",
                fix=f"use {self.time_embed_dim}, the time_embed_dim",
            )
        self._check_degree()
        wrapped = self.lora.layer_range if self.lora is not None else None
        if wrapped is not None and not all(0 <= layer < self.num_layers for layer in wrapped):
            raise ConfigError(
                f"layer_range {list(wrapped)} goes beyond the {self.num_layers} layers",
                where=f"{_LORA}.layer_range",
                fix=f"use indices from 0 to {self.num_layers - 1}",
            )

    def _check_degree(self) -> None:
        if self.model_parallel_size in self.degrees:
            return
        valid = ", ".join(str(degree) for degree in self.degrees)
        raise ConfigError(
            f"model_parallel_size is {self.model_parallel_size}, but {self.num_attention_heads} "
            f"heads and an MLP of width {self.inner_hidden_size} cannot be shared by as many",
            where=f"{_NETWORK}.transformer_args.model_parallel_size",
            fix=f"use one of {valid}",
        )

    @property
    def degrees(self) -> tuple[int, ...]:
        """Numbers of ranks that can share the network: divisors of the heads, 1 included."""
        counts = range(1, self.num_attention_heads + 1)
        shared = (self.num_attention_heads, self.inner_hidden_size)
        return tuple(n for n in counts if not any(count % n for count in shared))

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def can_fit_size(self) -> bool:
        """Whether diffusers gives other sizes other rotary positions: 1.0 without a learned table.

        It refuses other sizes where there is a learned table, and counts tokens in 1.5.
        """
        position = self.position
        return position.kind == "rope3d" and not position.learnable and self.patch.frames == 1

    def in_diffusers(self, sizes: Iterable[tuple[int, int]]) -> str | None:
        """What to say of clips whose positions diffusers takes otherwise; None: they agree.

        Args:
            sizes: rows and columns of the clips, in pixels.
        """
        native = (_PIXELS_PER_LATENT * self.latent_height, _PIXELS_PER_LATENT * self.latent_width)
        others = sorted({size for size in sizes if tuple(size) != native})
        if not others or self.position.fits_size:
            return None
        named = ", ".join(f"{rows}x{columns}" for rows, columns in others[:3])
        made_for = f"{named}, and the network is made for {native[0]}x{native[1]}"
        if self.position.kind == "rope3d" and self.position.learnable:
            return (
                f"clips of {made_for}: diffusers takes no other size with a learned position "
                "table, so cogvx sample alone makes videos of them"
            )
        if not self.can_fit_size:
            return None
        return (
            f"clips of {made_for}: diffusers gives them other rotary positions than "
            "rotary_positions: sat; with rotary_positions: diffusers both agree"
        )

    @property
    def grid(self) -> tuple[int, int, int]:
        """Size (frames, rows, columns) of the position table, in tokens; frames in latents."""
        frames = (self.num_frames - 1) // self.time_compressed_rate + 1
        rows = self.latent_height // self.patch.rows
        return frames, rows, self.latent_width // self.patch.columns


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Section `model:`: the network and everything around it."""

    network: Component[DiTConfig]
    denoiser: DenoiserConfig
    conditioner: ConditionerConfig
    first_stage: Component[VAEConfig]
    loss: LossConfig
    sampler: Component[SamplerConfig]
    scale_factor: float = 1.0  # latents seen by the network = scale_factor * VAE latents
    latent_input: bool = False  # batches hold unscaled latents instead of pixels
    noised_image_input: bool = False  # image-to-video
    noised_image_all_concat: bool = False  # the image latent on every latent frame
    noised_image_dropout: float = 0.0
    image_latent_scale: float | None = None  # ours; None: scale_factor, or 1.0 with ofs (1.5-I2V)
    ofs: float = 2.0  # constant given to networks with ofs_embed_dim
    not_trainable_prefixes: tuple[str, ...] = ("first_stage_model", "conditioner")
    lora_train: bool = False  # train exactly the LoRA matrices
    encode_batch: int | None = None  # en_and_decode_n_samples_a_time
    compile_model: bool = False
    input_key: str = "mp4"
