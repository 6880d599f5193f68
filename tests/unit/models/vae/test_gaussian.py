"""The posterior: clamp, sample, the layout in which noise is drawn."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from app.models.vae.gaussian import Gaussian


class CountedDraws:
    """Draws that give 0, 1, 2, ... in the order in which memory is filled."""

    like_upstream = True

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[int, ...]]] = []

    def normal_like(self, purpose: str, x: Tensor) -> Tensor:
        self.asked.append((purpose, tuple(x.shape)))
        return torch.arange(x.numel(), dtype=x.dtype).view(x.shape)


def moments() -> Tensor:
    return torch.randn(2, 3, 8, 2, 5, generator=torch.Generator().manual_seed(0))


def test_log_variance_is_clamped() -> None:
    values = torch.tensor([[-100.0], [100.0]]).reshape(1, 1, 2, 1, 1).repeat(1, 1, 2, 1, 1)

    posterior = Gaussian.from_moments(values)

    assert posterior.mean.flatten().tolist() == [-100.0, 100.0]
    assert posterior.logvar.flatten().tolist() == [-30.0, 20.0]


def test_sample_is_mean_plus_deviation_times_noise() -> None:
    posterior = Gaussian(mean=torch.tensor([2.0]), logvar=torch.tensor([2 * math.log(3.0)]))

    assert torch.allclose(posterior.sample(torch.tensor([-1.0])), torch.tensor([-1.0]))


def test_noise_is_drawn_channels_first() -> None:
    posterior = Gaussian.from_moments(moments())
    draws = CountedDraws()

    latents = posterior.draw(draws, "posterior")  # type: ignore[arg-type]

    assert draws.asked == [("posterior", (2, 4, 3, 2, 5))]
    noise = torch.arange(2 * 4 * 3 * 2 * 5, dtype=torch.float32).view(2, 4, 3, 2, 5)
    torch.testing.assert_close(latents, posterior.sample(noise.permute(0, 2, 1, 3, 4)))


def test_draw_gives_the_mean_when_sampling_is_off() -> None:
    posterior = Gaussian.from_moments(moments(), is_sampled=False)
    draws = CountedDraws()

    latents = posterior.draw(draws, "posterior")  # type: ignore[arg-type]

    torch.testing.assert_close(latents, moments()[:, :, :4])
    assert draws.asked == []
