"""Video to the moments of its latents.

Axes: B batch, C channels, T frames, H rows, W columns; t = (T - 1) / 4 + 1, h = H / 8, w = W / 8
with the released sizes.
Source: CogVideoX, arXiv:2408.06072. Attribute names are the keys of 3d-vae.pt.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from app.config.schema.encoders import VAEPartConfig
from app.models.vae.blocks import Downsample, ResidualBlock, group_norm, swish
from app.models.vae.causal_conv import CausalConv3d


class EncoderLevel(nn.Module):
    """Residual blocks at one resolution, then a step down (none after the last level)."""

    def __init__(
        self, channels: tuple[int, int], num_blocks: int, *, compress_time: bool | None
    ) -> None:
        """Build a level.

        Args:
            channels: in, out.
            num_blocks: residual blocks.
            compress_time: whether the step down halves the frames too; None: no step down.
        """
        super().__init__()
        widths = (channels[0], *(channels[1],) * num_blocks)
        self.block = nn.ModuleList(ResidualBlock(*pair) for pair in pairwise(widths))
        self.downsample: Downsample | None = None
        if compress_time is not None:
            self.downsample = Downsample(channels[1], compress_time=compress_time)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) of a whole clip -> (B, C_out, T', H', W')."""
        for block in self.block:
            x, _ = block(x, None, None, is_first_chunk=True)
        if self.downsample is not None:
            x = self.downsample(x, is_first_chunk=True)
        return x


class Middle(nn.Module):
    """Two residual blocks at the lowest resolution."""

    def __init__(self, channels: int, *, latent_channels: int | None = None) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels, latent_channels=latent_channels)
        self.block_2 = ResidualBlock(channels, channels, latent_channels=latent_channels)


class VAEEncoder(nn.Module):
    """Whole clips in, moments out. Group norms see the whole clip: there is no chunked encode."""

    def __init__(self, config: VAEPartConfig) -> None:
        super().__init__()
        widths = tuple(config.ch * factor for factor in config.ch_mult)
        last = len(widths) - 1
        time_levels = config.temporal_compress_times.bit_length() - 1
        self.conv_in = CausalConv3d(config.in_channels, config.ch, 3)
        self.down = nn.ModuleList(
            EncoderLevel(
                (widths[level - 1] if level else config.ch, width),
                config.num_res_blocks,
                compress_time=None if level == last else level < time_levels,
            )
            for level, width in enumerate(widths)
        )
        self.mid = Middle(widths[-1])
        self.norm_out = group_norm(widths[-1])
        self.conv_out = CausalConv3d(widths[-1], 2 * config.z_channels, 3)

    def forward(self, video: Tensor) -> Tensor:
        """Compute mean and log-variance, one after the other on the channel axis.

        Args:
            video: (B, 3, T, H, W), T = 4k + 1, values about -1 to 1.

        Returns:
            (B, 2 * z_channels, t, h, w).
        """
        x, _ = self.conv_in(video, None)
        for level in self.down:
            x = level(x)
        x, _ = self.mid.block_1(x, None, None, is_first_chunk=True)
        x, _ = self.mid.block_2(x, None, None, is_first_chunk=True)
        moments: Tensor = self.conv_out(swish(self.norm_out(x)), None)[0]
        return moments
