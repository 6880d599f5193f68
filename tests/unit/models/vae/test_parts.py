"""Pieces of time change no result; tiles change little, and nothing where they overlap enough."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from app.config.schema.encoders import VAEConfig, VAEMemoryConfig, VAEPartConfig
from app.errors import ConfigError
from app.models.vae.autoencoder import VideoAutoencoder
from app.models.vae.gaussian import Gaussian
from benchmarks.vae_memory import in_process

PART = VAEPartConfig(ch=32, ch_mult=(1, 1, 2, 2), num_res_blocks=1, z_channels=4)
CONFIG = VAEConfig(encoder=PART, decoder=PART)
REACH = 10  # latents around one that its pixels depend on, in the encoder or decoder of PART


@pytest.fixture
def vae() -> VideoAutoencoder:
    torch.manual_seed(0)
    return VideoAutoencoder(CONFIG).eval().requires_grad_(False)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "cogvx" / "vae"


def video(frames: int, rows: int = 16, columns: int = 24, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.rand(batch, frames, 3, rows, columns, generator=generator) * 2 - 1


def moments(posterior: Gaussian) -> Tensor:
    return torch.cat([posterior.mean, posterior.logvar], dim=2)


def relative_rms(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).square().mean().sqrt() / expected.std())


@pytest.mark.parametrize("pieces", [4, 8, 12, 40])
@pytest.mark.parametrize("frames", [1, 5, 9, 33])
def test_pieces_of_time_have_the_statistics_of_the_whole_clip(
    vae: VideoAutoencoder, frames: int, pieces: int
) -> None:
    whole = moments(vae.encode(video(frames, batch=2)))

    vae.memory = VAEMemoryConfig(encode_frames=pieces)

    found = moments(vae.encode(video(frames, batch=2)))
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-5)


def test_a_clip_far_from_zero_loses_no_digits(vae: VideoAutoencoder) -> None:
    # A mean of 100 standard deviations: sums of squares would leave little of the variance.
    bright = video(17) * 0.01 + 1
    whole = moments(vae.encode(bright))

    vae.memory = VAEMemoryConfig(encode_frames=4)

    torch.testing.assert_close(moments(vae.encode(bright)), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("place", ["device", "host", "disk"])
def test_where_pieces_wait_changes_no_bit(vae: VideoAutoencoder, place: str, scratch: Path) -> None:
    vae.memory = VAEMemoryConfig(encode_frames=4, parking="device")
    expected = moments(vae.encode(video(13)))

    vae.memory = replace(vae.memory, parking=place)

    assert torch.equal(moments(vae.encode(video(13))), expected)
    assert scratch.exists() == (place == "disk")
    assert not scratch.exists() or list(scratch.iterdir()) == []  # nothing is left behind


def test_bf16_by_pieces_is_as_near_to_fp32_as_the_whole_clip(vae: VideoAutoencoder) -> None:
    exact = moments(vae.encode(video(17)))
    half = vae.to(torch.bfloat16)
    of_whole = relative_rms(moments(half.encode(video(17))).float(), exact)

    half.memory = VAEMemoryConfig(encode_frames=4, parking="disk")

    found = moments(half.encode(video(17)))
    assert found.dtype == torch.bfloat16
    assert relative_rms(found.float(), exact) < 1.2 * of_whole < 0.05


def test_a_tile_that_covers_all_changes_no_bit(vae: VideoAutoencoder) -> None:
    latents = moments(vae.encode(video(5)))[:, :, :4]
    pixels = vae.decode(latents)

    vae.memory = VAEMemoryConfig(tile_size=(16, 32), tile_overlap=8)

    assert torch.equal(moments(vae.encode(video(5)))[:, :, :4], latents)
    assert torch.equal(vae.decode(latents), pixels)


def test_tiles_that_overlap_by_more_than_the_layers_reach_give_the_untiled_values(
    vae: VideoAutoencoder,
) -> None:
    clip = video(5, rows=16, columns=8 * 44)
    latents = vae.encode(clip)
    pixels = vae.decode(latents.mode())
    overlap = -(-REACH * 8 // 3)  # 3 of 8 parts on either side do not count

    vae.memory = VAEMemoryConfig(tile_size=(16, 8 * 36), tile_overlap=8 * overlap)

    torch.testing.assert_close(moments(vae.encode(clip)), moments(latents), rtol=0, atol=1e-5)
    torch.testing.assert_close(vae.decode(latents.mode()), pixels, rtol=0, atol=5e-5)


def test_tiles_of_a_smooth_clip_are_close(vae: VideoAutoencoder) -> None:
    # A picture of waves, not noise. Of 8 latents of overlap 3 on either side do not count: of the
    # 10 that the layers reach, the nearest 3.
    y, x = torch.meshgrid(torch.linspace(0, 9, 80), torch.linspace(0, 13, 128), indexing="ij")
    t = torch.arange(9.0)[:, None, None, None]
    clip = torch.sin(y + x * torch.tensor([0.5, 1.0, 1.5])[:, None, None] + 0.3 * t)[None]
    posterior = vae.encode(clip)
    pixels = vae.decode(posterior.mode())

    vae.memory = VAEMemoryConfig(tile_size=(80, 96), tile_overlap=64, encode_frames=4)

    assert 0 < relative_rms(vae.encode(clip).mode(), posterior.mode()) < 0.1
    assert 0 < relative_rms(vae.decode(posterior.mode()), pixels) < 0.03


def test_tiles_carry_frames_from_chunk_to_chunk(vae: VideoAutoencoder) -> None:
    # One value everywhere in space: a tile lacks nothing but the zeros at the border.
    latents = torch.randn(1, 7, 4, 1, 1, generator=torch.Generator().manual_seed(0))
    latents = latents.expand(-1, -1, -1, 2, 44).contiguous()
    pixels = vae.decode(latents)

    vae.memory = VAEMemoryConfig(tile_size=(16, 8 * 36), tile_overlap=8 * 27)

    assert pixels.shape[1] == 25
    torch.testing.assert_close(vae.decode(latents), pixels, rtol=0, atol=5e-5)


@pytest.mark.parametrize(
    ("memory", "where"),
    [
        ({"encode_frames": 6}, "encode_frames"),
        ({"encode_frames": 0}, "encode_frames"),
        ({"tile_size": (256, 100)}, "tile_size"),
        ({"tile_size": (128, 256)}, "tile_overlap"),
        ({"tile_size": (256, 256), "tile_overlap": 20}, "tile_overlap"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(memory: dict[str, object], where: str) -> None:
    with pytest.raises(ConfigError, match=r"not a multiple|cannot overlap") as caught:
        replace(CONFIG, memory=VAEMemoryConfig(**memory))  # type: ignore[arg-type]

    assert caught.value.where.endswith(where)


@pytest.mark.slow
def test_memory_of_an_encode_by_pieces_does_not_grow_with_the_clip() -> None:
    size = {"rows": 48, "columns": 64, "ch": 32}

    try:
        short = in_process("encode, pieces on disk", {"frames": 17, **size})
        long = in_process("encode, pieces on disk", {"frames": 57, **size})
        whole = in_process("encode, whole clip", {"frames": 57, **size})
    except subprocess.CalledProcessError as error:
        raise AssertionError(error.stderr) from error

    feature_map = 57 * 48 * 64 * 32 * 4  # bytes, of the widest kind: the whole clip needs several
    assert whole["peak_bytes"] > 4 * feature_map
    assert long["peak_bytes"] < whole["peak_bytes"] / 4
    assert long["peak_bytes"] - short["peak_bytes"] < feature_map / 8
