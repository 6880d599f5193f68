"""The CogVideoX diffusion transformer: noisy latents, a timestep and text in, a prediction out.

Axes: B batch, T latent frames, C channels, H rows, W columns, n text tokens, N image tokens,
h hidden width, e width of the time embedding.
Source: CogVideoX, arXiv:2408.06072.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from app.config.schema.model import DiTConfig
from app.distributed.rank_group import ALONE
from app.errors import ShapeError
from app.models.conditioning import Conditioning
from app.models.dit.block import Block, BlockContext, TensorOptions, layer_norm, make_norm, modulate
from app.models.dit.input_shapes import check_sizes, checked_grid
from app.models.dit.position import PositionTable, has_table
from app.models.dit.recompute import RecomputePlan, run_blocks
from app.models.dit.rotary import Rotation, after_text, rotation_for
from app.models.dit.timestep import ScalarEmbedding
from app.models.dit.tokens import PatchGrid, patchify, unpatchify
from app.models.lora.inject import inject_lora

FINAL_NORM_EPS = 1e-6


class PatchEmbedding(nn.Module):
    """Linear maps of latent patches and of text embeddings to the hidden width."""

    def __init__(self, config: DiTConfig, place: TensorOptions) -> None:
        super().__init__()
        patch = config.patch
        features = config.in_channels * patch.frames * patch.rows * patch.columns
        self.patch = patch
        self.video = nn.Linear(features, config.hidden_size, **place.options())
        self.text = nn.Linear(config.text_hidden_size, config.hidden_size, **place.options())

    def forward(self, latents: Tensor, text: Tensor) -> Tensor:
        """(B, T, C, H, W) and (B, n, D) -> (B, n + N, h), text first."""
        return torch.cat([self.text(text), self.video(patchify(latents, self.patch))], dim=1)


class FinalLayer(nn.Module):
    """Norm, modulate by the time embedding, project to the features of a patch."""

    def __init__(self, config: DiTConfig, place: TensorOptions) -> None:
        super().__init__()
        patch, width = config.patch, config.hidden_size
        features = config.out_channels * patch.frames * patch.rows * patch.columns
        self.norm = layer_norm(width, FINAL_NORM_EPS, config, place)
        self.modulation = nn.Linear(config.time_embed_dim, 2 * width, **place.options())
        self.linear = nn.Linear(width, features, **place.options())

    def forward(self, image_tokens: Tensor, embedding: Tensor) -> Tensor:
        """(B, N, h) and (B, e) -> (B, N, features of a patch)."""
        shift, scale = self.modulation(embedding).chunk(2, dim=1)
        return self.linear(modulate(self.norm(image_tokens), shift, scale))


class DiffusionTransformer(nn.Module):
    """The denoising network. Built on the meta device, it allocates nothing.

    Linear layers start with torch's default values; `initialization.init_from_scratch` gives the
    values for training without a checkpoint. LoRA pairs are part of it if the config has them.
    """

    def __init__(
        self,
        config: DiTConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(config)
        place = TensorOptions(device, dtype)
        self.config = config
        self.group = ALONE  # the ranks that share this network
        self.patch = PatchEmbedding(config, place)
        self.position: PositionTable | None = None
        if has_table(config.position):
            self.position = PositionTable(config, **place.options())
        self.time_embed = ScalarEmbedding(
            config.hidden_size, config.time_embed_dim, **place.options()
        )
        self.ofs_embed: ScalarEmbedding | None = None
        if config.ofs_embed_dim is not None:
            self.ofs_embed = ScalarEmbedding(
                config.ofs_embed_dim, config.ofs_embed_dim, **place.options()
            )
        blocks = [Block(config, place) for _ in range(config.num_layers)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = make_norm(config, place)
        self.final = FinalLayer(config, place)
        if config.lora is not None:
            inject_lora([block.attention for block in blocks], config.lora)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, which inputs are cast to."""
        return self.patch.video.weight.dtype

    def forward(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict v for noisy latents.

        Args:
            latents: (B, T, C, H, W), noisy; C is in_channels minus those of conditioning.image.
            timesteps: (B,), 0..999, int or float.
            conditioning: text (B, n, D); image and ofs where the network takes them.

        Returns:
            (B, T, out_channels, H, W), in the dtype of the weights.

        Raises:
            ShapeError: something does not fit; raised before any computation.
        """
        grid = self._checked_grid(latents, timesteps, conditioning)
        dtype = self.dtype
        latents = latents.to(dtype)
        if conditioning.image is not None:
            latents = torch.cat([latents, conditioning.image.to(dtype)], dim=2)

        tokens = self.patch(latents, conditioning.text.to(dtype))
        if self.position is not None:
            tokens = tokens + self.position(grid).to(dtype)
        context = BlockContext(
            embedding=nn.functional.silu(self._embedding(timesteps, conditioning.ofs)),
            rotation=self._rotation(grid, tokens),
            text_length=tokens.shape[1] - grid.num_tokens,
        )

        tokens = run_blocks(list(self.blocks), tokens, context, self._recompute_plan())
        image_tokens = self.norm(tokens)[:, context.text_length :]
        return unpatchify(self.final(image_tokens, context.embedding), grid, self.config.patch)

    def compile_blocks(self) -> None:
        """Let torch compile every block at its first call; parameters keep their names."""
        for block in self.blocks:
            block.compile()

    def computed_parameters(self) -> dict[str, Tensor]:
        """Parameters that follow from the config, in fp32 on the CPU: the fixed position table."""
        if self.position is None or self.config.position.learnable:
            return {}
        return {"position.table": self.position.computed()}

    def _checked_grid(
        self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning
    ) -> PatchGrid:
        grid = checked_grid(self.config, latents, timesteps, conditioning)
        if self.position is not None:
            self.position.check(grid, conditioning.text.shape[1])
        if self.ofs_embed is not None and conditioning.ofs is None:
            raise ShapeError(
                "the network has an ofs embedding, but no ofs was given",
                where="conditioning.ofs",
                fix="give the constant of the released 1.5 image-to-video model, 2.0",
            )
        return grid

    def _embedding(self, timesteps: Tensor, ofs: Tensor | None) -> Tensor:
        """(B, e): of the timesteps, plus that of ofs (a value of shape (1,) serves all samples)."""
        embedding = self.time_embed(timesteps)
        if self.ofs_embed is not None and ofs is not None:
            embedding = embedding + self.ofs_embed(ofs)
        return embedding

    def _rotation(self, grid: PatchGrid, tokens: Tensor) -> Rotation | None:
        if self.config.position.kind != "rope3d":
            return None
        native = self.config.grid[1:] if self.config.position.fits_size else None
        image = rotation_for(grid, self.config.head_dim, tokens, native)
        return after_text(image, tokens.shape[1] - grid.num_tokens)

    def _recompute_plan(self) -> RecomputePlan:
        config = self.config
        draws = config.lora is not None and config.lora.dropout > 0
        return RecomputePlan(
            enabled=config.checkpoint_activations and self.training and torch.is_grad_enabled(),
            blocks_per_segment=config.checkpoint_num_layers,
            kept_blocks=config.checkpoint_skip_layers,
            keeps_random_state=draws,
        )
