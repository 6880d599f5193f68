"""Latents to video, chunk by chunk with carried frames.

Axes: B batch, C channels, T frames, H rows, W columns; c, t, h, w are those of the latents.
Source: CogVideoX, arXiv:2408.06072. Attribute names are the keys of 3d-vae.pt.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from app.config.schema.encoders import VAEPartConfig
from app.models.vae.blocks import BlockPast, ResidualBlock, SpatialNorm, Upsample, swish
from app.models.vae.causal_conv import CausalConv3d
from app.models.vae.encoder import Middle


@dataclass(frozen=True, slots=True)
class DecoderPast:
    """Frames that the convolutions of the decoder carry from one chunk to the next."""

    conv_in: Tensor
    blocks: tuple[BlockPast, ...]  # in the order in which they run
    conv_out: Tensor


class DecoderLevel(nn.Module):
    """Residual blocks at one resolution, then a step up (none after level 0)."""

    def __init__(
        self, channels: tuple[int, int, int], num_blocks: int, *, expand_time: bool | None
    ) -> None:
        """Build a level.

        Args:
            channels: in, out, latents.
            num_blocks: residual blocks.
            expand_time: whether the step up doubles the frames too; None: no step up.
        """
        super().__init__()
        widths = (channels[0], *(channels[1],) * num_blocks)
        self.block = nn.ModuleList(
            ResidualBlock(*pair, latent_channels=channels[2]) for pair in pairwise(widths)
        )
        self.upsample: Upsample | None = None
        if expand_time is not None:
            self.upsample = Upsample(channels[1], expand_time=expand_time)


class VAEDecoder(nn.Module):
    """One chunk of latents in, its frames out."""

    def __init__(self, config: VAEPartConfig) -> None:
        super().__init__()
        widths = tuple(config.ch * factor for factor in config.ch_mult)
        num_levels = len(widths)
        time_levels = config.temporal_compress_times.bit_length() - 1
        z = config.z_channels
        self.conv_in = CausalConv3d(z, widths[-1], 3)
        self.mid = Middle(widths[-1], latent_channels=z)
        # Listed by level, run from the last (lowest resolution) to level 0.
        self.up = nn.ModuleList(
            DecoderLevel(
                (widths[min(level + 1, num_levels - 1)], width, z),
                config.num_res_blocks + 1,
                expand_time=None if level == 0 else level >= num_levels - time_levels,
            )
            for level, width in enumerate(widths)
        )
        self.norm_out = SpatialNorm(widths[0], z)
        self.conv_out = CausalConv3d(widths[0], config.out_ch, 3)

    def forward(
        self, latents: Tensor, past: DecoderPast | None, *, is_first_chunk: bool
    ) -> tuple[Tensor, DecoderPast]:
        """Decode one chunk.

        Args:
            latents: (B, c, t, h, w), as the encoder gives them (not scaled).
            past: what the chunk before returned; None at the start of a clip.
            is_first_chunk: the first latent becomes one frame, the others four. Else all become
                four. Not derived from `past`, because upstream's HEAD decodes first chunks
                without it (upstream_differences.md).

        Returns:
            (B, 3, T, 8 h, 8 w), not clamped, T = 4 (t - 1) + 1 in the first chunk, else 4 t; and
            the past of the next chunk.
        """
        x, past_in = self.conv_in(latents, past.conv_in if past else None)
        pasts: list[BlockPast] = []

        def run(block: nn.Module, x: Tensor) -> Tensor:
            before = past.blocks[len(pasts)] if past else None
            x, after = block(x, latents, before, is_first_chunk=is_first_chunk)
            pasts.append(after)
            return x

        x = run(self.mid.block_2, run(self.mid.block_1, x))
        for level in reversed(self.up):
            assert isinstance(level, DecoderLevel)
            for block in level.block:
                x = run(block, x)
            if level.upsample is not None:
                x = level.upsample(x, is_first_chunk=is_first_chunk)
        x = swish(self.norm_out(x, latents, is_first_chunk=is_first_chunk))
        x, past_out = self.conv_out(x, past.conv_out if past else None)
        return x, DecoderPast(past_in, tuple(pasts), past_out)
