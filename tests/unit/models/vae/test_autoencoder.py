"""The autoencoder as a whole: sizes, plans, refusals, weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from app.config.schema.encoders import VAEConfig, VAEPartConfig
from app.errors import ConfigError, ShapeError
from app.models.vae.autoencoder import VideoAutoencoder, decode_plan

TINY = VAEPartConfig(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1, z_channels=4)
RELEASED = Path(__file__).with_name("released_tensors.txt")  # our key, diffusers' key, shape


@pytest.fixture(scope="module")
def vae() -> VideoAutoencoder:
    torch.manual_seed(0)
    module = VideoAutoencoder(VAEConfig(encoder=TINY, decoder=TINY, ignore_keys=("loss",)))
    return module.eval().requires_grad_(False)


def video(frames: int, height: int = 16, width: int = 24) -> Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.rand(1, frames, 3, height, width, generator=generator) * 2 - 1


def test_released_sizes_have_the_released_tensors() -> None:
    config = VAEConfig(encoder=VAEPartConfig(), decoder=VAEPartConfig())
    rows = [line.split() for line in RELEASED.read_text().splitlines()]
    released = {key: tuple(int(n) for n in shape.strip("(),").split(",")) for key, _, shape in rows}

    with torch.device("meta"):
        state = VideoAutoencoder(config).state_dict()

    assert {key: tuple(tensor.shape) for key, tensor in state.items()} == released
    assert len(state) == 436
    assert sum(tensor.numel() for tensor in state.values()) == 215_583_907


@pytest.mark.parametrize(("frames", "latents"), [(1, 1), (5, 2), (9, 3), (13, 4), (17, 5)])
def test_4k_plus_1_frames_become_k_plus_1_latents_and_come_back(
    vae: VideoAutoencoder, frames: int, latents: int
) -> None:
    posterior = vae.encode(video(frames))

    assert posterior.mean.shape == posterior.logvar.shape == (1, latents, 4, 2, 3)
    assert vae.decode(posterior.mode()).shape == (1, frames, 3, 16, 24)


@pytest.mark.parametrize("frames", [0, 2, 3, 4, 6, 8, 48])
def test_other_frame_counts_are_refused_with_the_nearest_good_ones(
    vae: VideoAutoencoder, frames: int
) -> None:
    with pytest.raises(ShapeError) as caught:
        vae.encode(torch.zeros(1, frames, 3, 16, 16))

    shorter = max(1, (frames - 1) // 4 * 4 + 1)
    assert caught.value.what == f"{frames} frames are not 4k + 1"
    assert caught.value.fix == f"cut the clip to {shorter} frames or take {shorter + 4}"


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 5, 3, 20, 16), "axis H has 20 pixels"),
        ((1, 5, 3, 16, 4), "axis W has 4 pixels"),
        ((1, 3, 5, 16, 16), "3 channels third"),
        ((5, 3, 16, 16), "5 axes"),
    ],
)
def test_pixels_that_do_not_fit_are_refused(
    vae: VideoAutoencoder, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ShapeError, match=message):
        vae.encode(torch.zeros(shape))


@pytest.mark.parametrize(
    ("count", "plan"),
    [
        (1, [1]),
        (2, [2]),
        (3, [3]),
        (4, [2, 2]),
        (5, [3, 2]),
        (13, [3, 2, 2, 2, 2, 2]),
        (22, [2] * 11),
        (41, [3] + [2] * 19),
    ],
)
def test_plan_starts_with_three_latents_or_with_two_if_even(count: int, plan: list[int]) -> None:
    assert decode_plan(count) == plan


@pytest.mark.parametrize("count", [2, 4, 6])
def test_even_counts_lose_no_frames(vae: VideoAutoencoder, count: int) -> None:
    latents = torch.randn(1, count, 4, 2, 3, generator=torch.Generator().manual_seed(count))

    assert vae.decode(latents).shape[1] == 4 * (count - 1) + 1


def test_later_chunks_of_one_latent_give_four_frames(vae: VideoAutoencoder) -> None:
    latents = torch.randn(1, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0))

    assert vae.decode(latents, [1, 1, 1]).shape[1] == 9


@pytest.mark.parametrize("plan", [[], [2, 2], [3, 0], [4, -1]])
def test_plans_that_do_not_add_up_are_refused(vae: VideoAutoencoder, plan: list[int]) -> None:
    with pytest.raises(ShapeError, match="do not add up to 3"):
        vae.decode(torch.zeros(1, 3, 4, 2, 2), plan)


def test_latents_with_the_wrong_channels_are_refused(vae: VideoAutoencoder) -> None:
    with pytest.raises(ShapeError, match="4 channels third"):
        vae.decode(torch.zeros(1, 3, 16, 2, 2))


def test_passes_over_fewer_samples_change_nothing(vae: VideoAutoencoder) -> None:
    clips = torch.cat([video(5), video(5).flip(0, 1), -video(5)])

    whole, split = vae.encode(clips), vae.encode(clips, samples_at_a_time=2)
    pixels = vae.decode(whole.mode())

    torch.testing.assert_close(split.mean, whole.mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        vae.decode(whole.mode(), samples_at_a_time=1), pixels, rtol=1e-4, atol=1e-4
    )


def test_works_in_bf16_and_casts_its_input(vae: VideoAutoencoder) -> None:
    half = VideoAutoencoder(vae.config).to(torch.bfloat16)
    half.load_state_dict(vae.state_dict())

    latents = half.encode(video(5)).mode()
    pixels = half.decode(latents)

    assert latents.dtype == pixels.dtype == torch.bfloat16
    expected = vae.encode(video(5)).mode()
    assert (latents.float() - expected).norm() < 0.05 * expected.norm()


def test_no_state_is_left_behind_by_a_decode(vae: VideoAutoencoder) -> None:
    latents = torch.randn(1, 4, 4, 2, 2, generator=torch.Generator().manual_seed(0))

    once = vae.decode(latents)
    vae.decode(-latents)

    torch.testing.assert_close(vae.decode(latents), once, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("encoder", "decoder", "message"),
    [
        (VAEPartConfig(ch=48), VAEPartConfig(), "48 channels"),
        (VAEPartConfig(), VAEPartConfig(temporal_compress_times=3), "temporal_compress_times is 3"),
        (VAEPartConfig(), VAEPartConfig(temporal_compress_times=16), "is 16"),
        (VAEPartConfig(), VAEPartConfig(z_channels=4), "makes 16 channels, decoder reads 4"),
    ],
)
def test_sizes_that_cannot_be_are_refused(
    encoder: VAEPartConfig, decoder: VAEPartConfig, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        VideoAutoencoder(VAEConfig(encoder=encoder, decoder=decoder))
