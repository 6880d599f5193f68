"""The network and the engine around it. Key names in comments are upstream's YAML keys."""

from __future__ import annotations

from dataclasses import dataclass

from app.config.schema.diffusion import DenoiserConfig, LossConfig, SamplerConfig
from app.config.schema.part import Part
from app.config.schema.text import ConditionerConfig
from app.config.schema.vae import VAEConfig


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


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig:
    """`modules.lora_config`: low-rank pairs on q, k, v and the output projection of attention."""

    rank: int  # r
    alpha: float = 1.0  # lora_alpha; the scale is alpha / rank
    dropout: float = 0.0  # lora_dropout
    layer_range: tuple[int, ...] | None = None  # indices of the wrapped layers; None: all


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
    checkpoint_activations: bool = False
    checkpoint_num_layers: int = 1
    checkpoint_skip_layers: int = 0
    model_parallel_size: int = 1
    lora: LoraConfig | None = None

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def grid(self) -> tuple[int, int, int]:
        """Size (frames, rows, columns) of the position table, in tokens; frames in latents."""
        frames = (self.num_frames - 1) // self.time_compressed_rate + 1
        rows = self.latent_height // self.patch.rows
        return frames, rows, self.latent_width // self.patch.columns


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Section `model:`: the network and everything around it."""

    network: Part[DiTConfig]
    denoiser: DenoiserConfig
    conditioner: ConditionerConfig
    first_stage: Part[VAEConfig]
    loss: LossConfig
    sampler: Part[SamplerConfig]
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
    log_keys: tuple[str, ...] = ()
