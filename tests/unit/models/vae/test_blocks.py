"""Norms and resampling: first chunk and later ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from app.models.vae.blocks import (
    Downsample,
    ResidualBlock,
    SpatialNorm,
    Upsample,
    frame_by_frame,
    repeat_nearest,
)


def features(frames: int, channels: int = 32, size: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(channels + frames)
    return torch.randn(1, channels, frames, size, size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("frames", "repeats"), [(9, 4), (5, 2), (3, 1)])
def test_spatial_norm_of_a_first_chunk_gives_latent_0_one_frame(frames: int, repeats: int) -> None:
    torch.manual_seed(0)
    norm = SpatialNorm(32, 4).double()
    x, latents = features(frames, size=8), features(3, channels=4, size=2)

    result = norm(x, latents, is_first_chunk=True)

    index = [0, *(1 + i // repeats for i in range(frames - 1))]
    resized = latents[:, :, index].repeat_interleave(4, dim=3).repeat_interleave(4, dim=4)
    scale, shift = norm.conv_y.conv(resized), norm.conv_b.conv(resized)
    torch.testing.assert_close(result, norm.norm_layer(x) * scale + shift)


def test_spatial_norm_of_a_later_chunk_gives_every_latent_the_same_frames() -> None:
    torch.manual_seed(0)
    norm = SpatialNorm(32, 4).double()
    x, latents = features(6, size=4), features(3, channels=4, size=2)

    result = norm(x, latents, is_first_chunk=False)

    resized = nn.functional.interpolate(latents, size=(6, 4, 4), mode="nearest")
    scale, shift = norm.conv_y.conv(resized), norm.conv_b.conv(resized)
    torch.testing.assert_close(result, norm.norm_layer(x) * scale + shift)


def test_repeat_nearest_is_nearest_interpolation() -> None:
    x = features(3)

    result = repeat_nearest(x, 2, 3, 4)

    torch.testing.assert_close(result, nn.functional.interpolate(x, scale_factor=(2, 3, 4)))


@pytest.mark.parametrize(
    ("frames", "is_first_chunk", "expected"),
    [
        (1, True, 1),
        (9, True, 5),
        (8, True, 4),
        (5, True, 3),
        (8, False, 4),
        (7, False, 3),
        (1, False, 1),
    ],
)
def test_downsample_counts_frames(frames: int, is_first_chunk: bool, expected: int) -> None:
    step = Downsample(32, compress_time=True).double()

    result = step(features(frames), is_first_chunk=is_first_chunk)

    assert result.shape == (1, 32, expected, 2, 2)


def test_downsample_keeps_the_first_frame_and_averages_the_others_in_pairs() -> None:
    step = Downsample(32, compress_time=True).double()
    x = features(5)

    result = step(x, is_first_chunk=True)

    means = torch.stack([x[:, :, 0], x[:, :, 1:3].mean(2), x[:, :, 3:5].mean(2)], dim=2)
    bordered = nn.functional.pad(means, (0, 1, 0, 1))
    expected = torch.stack([step.conv(frame) for frame in bordered.unbind(2)], dim=2)
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize(
    ("frames", "is_first_chunk", "expected"),
    [(1, True, 1), (3, True, 5), (2, True, 3), (1, False, 2), (3, False, 6)],
)
def test_upsample_counts_frames(frames: int, is_first_chunk: bool, expected: int) -> None:
    step = Upsample(32, expand_time=True).double()

    result = step(features(frames), is_first_chunk=is_first_chunk)

    assert result.shape == (1, 32, expected, 8, 8)


def test_upsample_without_time_keeps_the_frames() -> None:
    step = Upsample(32, expand_time=False).double()

    assert step(features(3), is_first_chunk=True).shape == (1, 32, 3, 8, 8)


@pytest.mark.parametrize("frames_per_piece", [1, 2, 5])
def test_frame_by_frame_is_the_same_in_pieces(frames_per_piece: int) -> None:
    conv = nn.Conv2d(32, 8, 3).double()
    x = features(5).expand(2, -1, -1, -1, -1)
    frame_bytes = x[:, :, 0].numel() * x.element_size()

    result = frame_by_frame(conv, x, piece_bytes=frames_per_piece * frame_bytes)

    expected = torch.stack([conv(frame) for frame in x.unbind(2)], dim=2)
    torch.testing.assert_close(result, expected)


def test_residual_block_leaves_its_input_alone() -> None:
    block = ResidualBlock(32, 64).double()
    x = features(3)
    before = x.clone()

    result, _ = block(x, None, None, is_first_chunk=True)

    assert result.shape == (1, 64, 3, 4, 4)
    torch.testing.assert_close(x, before, rtol=0, atol=0)
