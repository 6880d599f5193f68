"""Pieces of the autoencoder: residual block, spatial norm, resampling.

Axes: B batch, C channels, T frames, H rows, W columns; t, h, w are those of the latents.
Source: CogVideoX, arXiv:2408.06072. The first frame of a clip is alone and the others come in
groups; `is_first_chunk` says whether a tensor holds the start of a clip. It is never guessed from
the number of frames.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from app.models.vae.causal_conv import PIECE_BYTES, CausalConv3d, conv_in_pieces

NORM_GROUPS = 32  # released weights depend on it
NORM_EPS = 1e-6  # likewise; the default of torch is 1e-5

BlockPast = tuple[Tensor, Tensor]  # past frames of the two convolutions of a residual block


def group_norm(
    channels: int,
) -> nn.GroupNorm:
    """Norm over (channels / 32, T, H, W) of the tensor it is given."""
    return nn.GroupNorm(NORM_GROUPS, channels, eps=NORM_EPS)


def frame_by_frame(conv: nn.Conv2d, x: Tensor, piece_bytes: int = PIECE_BYTES) -> Tensor:
    """Apply a 2D convolution to every frame of `x` (B, C, T, H, W), in pieces where it is huge."""
    num_pieces = min(x.shape[2], -(-x.numel() * x.element_size() // piece_bytes))
    done = []
    for piece in torch.chunk(x, max(1, num_pieces), dim=2):
        flat = conv(piece.transpose(1, 2).flatten(0, 1))
        done.append(flat.unflatten(0, (x.shape[0], piece.shape[2])).transpose(1, 2))
    return done[0].contiguous() if len(done) == 1 else torch.cat(done, dim=2)


class SpatialNorm(nn.Module):
    """GroupNorm whose scale and shift, at every position, come from the latents there."""

    def __init__(self, channels: int, latent_channels: int) -> None:
        super().__init__()
        self.norm_layer = group_norm(channels)
        self.conv_y = CausalConv3d(latent_channels, channels, 1)
        self.conv_b = CausalConv3d(latent_channels, channels, 1)

    def forward(self, x: Tensor, latents: Tensor, *, is_first_chunk: bool) -> Tensor:
        """Norm `x` and modulate it by the latents that it was decoded from.

        Args:
            x: (B, C, T, H, W); H and W are multiples of h and w.
            latents: (B, c, t, h, w). T is a multiple of t; in the first chunk, T - 1 of t - 1.
        """
        return self.modulate(self.norm_layer(x), latents, is_first_chunk=is_first_chunk)

    def modulate(self, normed: Tensor, latents: Tensor, *, is_first_chunk: bool) -> Tensor:
        """Scale and shift `normed`, which is what the norm made of `x`; else as `forward`."""
        # Upstream resizes the latents and convolves then. The kernel is a single point, so the
        # order makes no difference to the values, and this way costs (T H W) / (t h w) times less.
        scale, _ = self.conv_y(latents, None)
        shift, _ = self.conv_b(latents, None)
        if not is_first_chunk or normed.shape[2] == 1:
            return _modulate(normed, scale, shift)
        first = _modulate(normed[:, :, :1], scale[:, :, :1], shift[:, :, :1])
        rest = _modulate(normed[:, :, 1:], scale[:, :, 1:], shift[:, :, 1:])
        return torch.cat([first, rest], dim=2)


def _modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x (B, C, T, H, W) * scale + shift, both (B, C, t, h, w) repeated to the size of `x`."""
    t, h, w = scale.shape[2:]
    blocks = x.unflatten(4, (w, -1)).unflatten(3, (h, -1)).unflatten(2, (t, -1))
    # Broadcast over the repeats instead of writing two more feature maps of the size of x.
    done = torch.addcmul(_spread(shift), blocks, _spread(scale))
    return done.reshape(x.shape)


def _spread(x: Tensor) -> Tensor:
    """(B, C, t, h, w) -> (B, C, t, 1, h, 1, w, 1)."""
    return x.unsqueeze(3).unsqueeze(5).unsqueeze(7)


def repeat_nearest(x: Tensor, frames: int, rows: int, columns: int) -> Tensor:
    """Enlarge (B, C, T, H, W) by whole factors, repeating the nearest value."""
    B, C, T, H, W = x.shape
    # Not torch's interpolate: on CUDA it refuses results of more than 2**31 elements.
    spread = _spread(x).expand(-1, -1, -1, frames, -1, rows, -1, columns)
    return spread.reshape(B, C, T * frames, H * rows, W * columns)


class Downsample(nn.Module):
    """Half the rows and columns; with `compress_time` half the frames too."""

    def __init__(self, channels: int, *, compress_time: bool) -> None:
        super().__init__()
        self.compress_time = compress_time
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor, *, is_first_chunk: bool) -> Tensor:
        """(B, C, T, H, W) -> (B, C, T', H // 2, W // 2).

        T' = 1 + (T - 1) // 2 in the first chunk, T // 2 in others, T without `compress_time`. A
        frame without a partner is dropped; a single frame stays.
        """
        if self.compress_time and x.shape[2] > 1:
            if is_first_chunk:
                x = torch.cat([x[:, :, :1], _mean_of_pairs(x[:, :, 1:])], dim=2)
            else:
                x = _mean_of_pairs(x)
        # The border is on the right and the bottom only; released weights depend on it.
        return frame_by_frame(self.conv, functional.pad(x, (0, 1, 0, 1)))


def _mean_of_pairs(x: Tensor) -> Tensor:
    """Average frames 0 and 1, 2 and 3, ... of (B, C, T, H, W)."""
    pairs = x.shape[2] // 2
    return (x[:, :, 0 : 2 * pairs : 2] + x[:, :, 1 : 2 * pairs : 2]) * 0.5


class Upsample(nn.Module):
    """Double the rows and columns; with `expand_time` the frames too."""

    def __init__(self, channels: int, *, expand_time: bool) -> None:
        super().__init__()
        self.expand_time = expand_time
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, *, is_first_chunk: bool) -> Tensor:
        """(B, C, T, H, W) -> (B, C, T', 2 H, 2 W).

        T' = 1 + 2 (T - 1) in the first chunk, 2 T in others, T without `expand_time`.
        """
        frames = 2 if self.expand_time else 1
        if frames == 2 and is_first_chunk:
            first = repeat_nearest(x[:, :, :1], 1, 2, 2)
            x = torch.cat([first, repeat_nearest(x[:, :, 1:], 2, 2, 2)], dim=2)
        else:
            x = repeat_nearest(x, frames, 2, 2)
        return frame_by_frame(self.conv, x)


class ResidualBlock(nn.Module):
    """norm, swish, conv, twice, plus the input. Norms of the decoder see the latents."""

    def __init__(
        self, in_channels: int, out_channels: int, *, latent_channels: int | None = None
    ) -> None:
        """Build a block.

        Args:
            in_channels: C.
            out_channels: C_out.
            latent_channels: c, in the decoder; None in the encoder, which has plain norms.
        """
        super().__init__()
        self.norm1 = _norm(in_channels, latent_channels)
        self.conv1 = CausalConv3d(in_channels, out_channels, 3)
        self.norm2 = _norm(out_channels, latent_channels)
        self.conv2 = CausalConv3d(out_channels, out_channels, 3)
        self.nin_shortcut: nn.Conv3d | None = None
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv3d(in_channels, out_channels, 1)

    def forward(
        self, x: Tensor, latents: Tensor | None, past: BlockPast | None, *, is_first_chunk: bool
    ) -> tuple[Tensor, BlockPast]:
        """Run one chunk.

        Args:
            x: (B, C, T, H, W).
            latents: (B, c, t, h, w) of this chunk in the decoder, None in the encoder.
            past: what the chunk before returned, None at the start of a clip.
            is_first_chunk: `x` begins with the first frame of the clip.

        Returns:
            (B, C_out, T, H, W), and the past of the next chunk.
        """
        past1, past2 = past if past is not None else (None, None)
        h = swish(_normed(self.norm1, x, latents, is_first_chunk=is_first_chunk))
        h, past1 = self.conv1(h, past1)
        h = swish(_normed(self.norm2, h, latents, is_first_chunk=is_first_chunk))
        h, past2 = self.conv2(h, past2)
        if self.nin_shortcut is not None:
            x = conv_in_pieces(self.nin_shortcut, x, None)
        return x + h, (past1, past2)


def _norm(channels: int, latent_channels: int | None) -> nn.GroupNorm | SpatialNorm:
    if latent_channels is None:
        return group_norm(channels)
    return SpatialNorm(channels, latent_channels)


def _normed(
    norm: nn.GroupNorm | SpatialNorm, x: Tensor, latents: Tensor | None, *, is_first_chunk: bool
) -> Tensor:
    """Apply a norm of either kind to `x` (B, C, T, H, W)."""
    if isinstance(norm, SpatialNorm):
        assert latents is not None, "a norm of the decoder needs the latents"
        spatial: Tensor = norm(x, latents, is_first_chunk=is_first_chunk)
        return spatial
    plain: Tensor = norm(x)
    return plain


def swish(x: Tensor) -> Tensor:
    """x * sigmoid(x), written over `x`: it is always the fresh result of a norm."""
    return functional.silu(x, inplace=True)
