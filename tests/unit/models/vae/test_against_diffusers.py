"""Equality with the autoencoder of diffusers under the key map, and its limits."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from torch import Tensor

from app.config.schema.encoders import VAEConfig, VAEMemoryConfig, VAEPartConfig
from app.models.vae.autoencoder import VideoAutoencoder

PART = VAEPartConfig(ch=32, ch_mult=(1, 1, 2, 2), num_res_blocks=1, z_channels=4)
RELEASED = Path(__file__).with_name("released_tensors.txt")  # our key, diffusers' key, shape


def diffusers_vae(part: VAEPartConfig) -> AutoencoderKLCogVideoX:
    levels = len(part.ch_mult)
    return AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * levels,
        up_block_types=("CogVideoXUpBlock3D",) * levels,
        block_out_channels=tuple(part.ch * factor for factor in part.ch_mult),
        latent_channels=part.z_channels,
        layers_per_block=part.num_res_blocks,
    ).eval()


def diffusers_key(key: str, levels: int = 4) -> str:
    """The name of a tensor there."""
    for ours, theirs in (
        ("block.", "resnets."),
        ("down.", "down_blocks."),
        ("downsample", "downsamplers.0"),
        ("upsample", "upsamplers.0"),
        ("nin_shortcut", "conv_shortcut"),
        ("mid.block_1", "mid_block.resnets.0"),
        ("mid.block_2", "mid_block.resnets.1"),
    ):
        key = key.replace(ours, theirs)
    return re.sub(r"\.up\.(\d)\.", lambda match: f".up_blocks.{levels - 1 - int(match[1])}.", key)


@pytest.fixture(scope="module")
def pair() -> tuple[VideoAutoencoder, AutoencoderKLCogVideoX]:
    torch.manual_seed(0)
    theirs = diffusers_vae(PART).requires_grad_(False)
    ours = VideoAutoencoder(VAEConfig(encoder=PART, decoder=PART)).eval().requires_grad_(False)
    state = theirs.state_dict()
    ours.load_state_dict({key: state[diffusers_key(key)] for key in ours.state_dict()})
    return ours, theirs


def video(frames: int) -> Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.rand(1, frames, 3, 16, 24, generator=generator) * 2 - 1


def test_key_map_is_that_of_the_released_files() -> None:
    rows = [line.split() for line in RELEASED.read_text().splitlines()]

    with torch.device("meta"):
        theirs = set(diffusers_vae(VAEPartConfig()).state_dict())

    assert {diffusers_key(ours) for ours, _, _ in rows} == theirs
    assert [diffusers_key(ours) for ours, _, _ in rows] == [theirs for _, theirs, _ in rows]


@pytest.mark.parametrize("frames", [1, 5, 9])
def test_encode_of_a_short_clip_is_the_same(
    pair: tuple[VideoAutoencoder, AutoencoderKLCogVideoX], frames: int
) -> None:
    ours, theirs = pair

    posterior = ours.encode(video(frames))

    other = theirs._encode(video(frames).transpose(1, 2)).transpose(1, 2)
    moments = torch.cat([posterior.mean, posterior.logvar], dim=2)
    torch.testing.assert_close(moments, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("frames", [17, 25])
def test_encode_of_a_long_clip_is_that_of_diffusers_without_its_pieces(
    pair: tuple[VideoAutoencoder, AutoencoderKLCogVideoX], frames: int
) -> None:
    """diffusers cuts an encode into 8 frames, each with statistics of its own; we never do."""
    ours, theirs = pair
    clip = video(frames)
    whole, _ = theirs.encoder(clip.transpose(1, 2))
    cut = theirs._encode(clip.transpose(1, 2))

    found = ours.encode(clip)
    ours.memory = VAEMemoryConfig(encode_frames=8)
    streamed = ours.encode(clip)
    ours.memory = VAEMemoryConfig()

    for posterior in (found, streamed):
        moments = torch.cat([posterior.mean, posterior.logvar], dim=2).transpose(1, 2)
        torch.testing.assert_close(moments, whole, rtol=0, atol=1e-5)
        assert (moments - cut).abs().max() > 1e-2


def test_whole_clip_decode_is_the_same(
    pair: tuple[VideoAutoencoder, AutoencoderKLCogVideoX],
) -> None:
    ours, theirs = pair
    latents = torch.randn(1, 3, 4, 2, 3, generator=torch.Generator().manual_seed(1))

    pixels = ours.decode(latents, [3])

    other, _ = theirs.decoder(latents.transpose(1, 2))
    assert pixels.shape == (1, 9, 3, 16, 24)
    torch.testing.assert_close(pixels, other.transpose(1, 2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("count", [3, 5, 7])
def test_decode_in_chunks_is_the_same(
    pair: tuple[VideoAutoencoder, AutoencoderKLCogVideoX], count: int
) -> None:
    ours, theirs = pair
    latents = torch.randn(1, count, 4, 2, 3, generator=torch.Generator().manual_seed(count))

    pixels = ours.decode(latents)

    other = theirs.decode(latents.transpose(1, 2)).sample.transpose(1, 2)
    torch.testing.assert_close(pixels, other, rtol=0, atol=1e-5)
