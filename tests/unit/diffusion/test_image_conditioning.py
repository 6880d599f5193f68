from __future__ import annotations

import torch

from app.diffusion.image_conditioning import noised_image, placed_image_latent
from app.distributed.seeding import GlobalDraws, KeyedDraws

LATENT = torch.randn(3, 1, 4, 2, 2, generator=torch.Generator().manual_seed(0)) + 5


def test_noise_strength_is_log_normal_and_one_per_sample() -> None:
    image = torch.zeros(2, 1, 3, 64, 64)
    draws = KeyedDraws(0, [4, 9])

    noise = noised_image(image, draws)

    expected = torch.exp(-3 + 0.5 * draws.normal("image_noise_level", 2))
    torch.testing.assert_close(noise.flatten(1).std(dim=1), expected, rtol=0.05, atol=0)


def test_draws_come_in_upstream_s_order_and_axes() -> None:
    image = torch.rand(2, 1, 3, 4, 6)
    torch.manual_seed(3)
    levels = torch.normal(mean=-3.0, std=0.5, size=(2,))
    noise = torch.randn_like(image.transpose(1, 2))
    expected = image + (noise * levels.exp()[:, None, None, None, None]).transpose(1, 2)

    torch.manual_seed(3)
    result = noised_image(image, GlobalDraws())

    torch.testing.assert_close(result, expected)


def test_the_image_s_dtype_is_kept() -> None:
    image = torch.zeros(1, 1, 3, 4, 4, dtype=torch.bfloat16)

    assert noised_image(image, KeyedDraws(0, [0])).dtype == torch.bfloat16


def test_the_latent_lies_on_the_first_frame_only() -> None:
    placed = placed_image_latent(LATENT, 4)

    assert placed.shape == (3, 4, 4, 2, 2)
    assert torch.equal(placed[:, :1], LATENT)
    assert not placed[:, 1:].any()


def test_the_latent_can_be_repeated_on_all_frames() -> None:
    placed = placed_image_latent(LATENT, 3, all_frames=True)

    assert all(torch.equal(placed[:, t : t + 1], LATENT) for t in range(3))


def test_a_dropped_image_is_all_zeros() -> None:
    placed = placed_image_latent(LATENT, 2, torch.tensor([1.0, 0.0, 1.0]))

    assert not placed[1].any()
    assert torch.equal(placed[[0, 2], :1], LATENT[[0, 2]])
