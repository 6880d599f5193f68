from __future__ import annotations

import torch

from app.diffusion.scaling import noise_level, per_sample, v_scaling


def test_the_scaling_recovers_the_clean_sample_from_the_true_v() -> None:
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 7, 3, 4, generator=generator, dtype=torch.float64)
    alphas = torch.tensor([0.0, 0.01, 0.3, 0.7, 0.9, 0.9995, 1.0], dtype=torch.float64)
    a = alphas[:, None, None]
    s = (1 - a**2).sqrt()

    scaling = v_scaling(alphas)

    noisy, v = a * clean + s * noise, a * noise - s * clean
    recovered = per_sample(scaling.skip, noisy) * noisy + per_sample(scaling.out, v) * v
    torch.testing.assert_close(recovered, clean)


def test_noise_level_and_alpha_lie_on_the_unit_circle() -> None:
    alphas = torch.linspace(0, 1, 11)

    torch.testing.assert_close(noise_level(alphas) ** 2 + alphas**2, torch.ones(11))


def test_per_sample_adds_axes_behind_the_batch() -> None:
    x = torch.zeros(3, 2, 4, 5, 6)

    assert per_sample(torch.arange(3.0), x).shape == (3, 1, 1, 1, 1)
