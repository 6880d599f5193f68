"""A VAE of ours, written as a diffusers folder, in the real AutoencoderKLCogVideoX, and back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from torch import Tensor

from app.config.schema.encoders import VAEConfig, VAEMemoryConfig, VAEPartConfig
from app.conversion.vae import LatentScale, VaeWeights, export_vae_diffusers, read_vae
from app.models.vae.autoencoder import VideoAutoencoder, decode_plan

PART = VAEPartConfig(ch=32, ch_mult=(1, 1, 2, 2), num_res_blocks=2, z_channels=8)
CONFIG = VAEConfig(encoder=PART, decoder=PART)
SCALE = 0.7

Pair = tuple[VideoAutoencoder, AutoencoderKLCogVideoX, Path]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    torch.manual_seed(3)
    ours = VideoAutoencoder(CONFIG).eval().requires_grad_(False)
    folder = tmp_path_factory.mktemp("vae")
    export_vae_diffusers(folder, VaeWeights(ours.state_dict(), CONFIG), LatentScale(SCALE))
    theirs = AutoencoderKLCogVideoX.from_pretrained(folder).eval().requires_grad_(False)
    return ours, theirs, folder


def video(frames: int) -> Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.rand(2, frames, 3, 16, 24, generator=generator) * 2 - 1


@pytest.mark.parametrize("frames", [1, 5, 9])
def test_encode_of_at_most_9_frames_is_the_same(pair: Pair, frames: int) -> None:
    ours, theirs, _ = pair

    posterior = ours.encode(video(frames))

    other = theirs.encode(video(frames).transpose(1, 2)).latent_dist
    torch.testing.assert_close(posterior.mode(), other.mean.transpose(1, 2), rtol=0, atol=1e-5)
    torch.testing.assert_close(posterior.logvar, other.logvar.transpose(1, 2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("count", [3, 5, 7])
def test_decode_in_chunks_of_3_2_2_is_the_same(pair: Pair, count: int) -> None:
    ours, theirs, _ = pair
    latents = ours.encode(video(4 * count - 3)).mode()
    assert decode_plan(count) == [3] + [2] * ((count - 3) // 2)

    pixels = ours.decode(latents)

    other = theirs.decode(latents.transpose(1, 2)).sample.transpose(1, 2)
    assert pixels.shape == (2, 4 * count - 3, 3, 16, 24)
    torch.testing.assert_close(pixels, other, rtol=0, atol=5e-5)


def test_a_longer_encode_differs_there_and_is_our_own_whole_clip(pair: Pair) -> None:
    ours, theirs, _ = pair
    clip = video(25)
    whole = ours.encode(clip).mode()

    ours.memory = VAEMemoryConfig(encode_frames=8)
    streamed = ours.encode(clip).mode()
    ours.memory = VAEMemoryConfig()

    theirs_whole = theirs.encoder(clip.transpose(1, 2))[0].transpose(1, 2)[:, :, :8]
    by_pieces = theirs.encode(clip.transpose(1, 2)).latent_dist.mean.transpose(1, 2)
    torch.testing.assert_close(streamed, whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(theirs_whole, whole, rtol=0, atol=1e-5)
    assert (by_pieces - whole).abs().max() > 1e-2


def test_every_tensor_comes_back_bit_for_bit(pair: Pair, tmp_path: Path) -> None:
    ours, theirs, folder = pair
    theirs.save_pretrained(tmp_path)  # what diffusers writes, not only what we wrote

    for source in (folder, tmp_path):
        read = read_vae(source)
        assert read.config.encoder == PART
        assert read.scale == LatentScale(SCALE)
        assert read.tensors.keys() == ours.state_dict().keys()
        for name, tensor in ours.state_dict().items():
            assert torch.equal(read.tensors[name], tensor), name
