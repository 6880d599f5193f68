from __future__ import annotations

import pytest
import torch
from torch import Tensor

from app.config.schema.diffusion import DenoiserConfig, LossConfig, TimestepConfig
from app.diffusion.denoiser import Denoiser
from app.diffusion.loss import VideoDiffusionLoss
from app.diffusion.timesteps import Strata
from app.distributed.seeding import GlobalDraws, KeyedDraws
from app.errors import ConfigError

LATENTS = torch.randn(4, 2, 3, 4, 5, generator=torch.Generator().manual_seed(0))


def loss_of(**changes: object) -> VideoDiffusionLoss:
    return VideoDiffusionLoss(LossConfig(**changes), Denoiser(DenoiserConfig()))  # type: ignore[arg-type]


def network(x: Tensor, timesteps: Tensor, conditioning: None) -> Tensor:
    return 0.3 * x


def test_the_loss_equals_the_plain_error_of_v() -> None:
    loss = loss_of()
    timesteps = torch.tensor([5, 300, 700, 999])
    noise = torch.randn_like(LATENTS)

    per_sample = loss.at(network, LATENTS, None, timesteps, noise)

    a = loss.alpha_bar_sqrt[timesteps].double()[:, None, None, None, None]
    s = (1 - a**2).sqrt()
    v, true_v = 0.3 * (a * LATENTS + s * noise), a * noise - s * LATENTS
    expected = ((v - true_v) ** 2).flatten(1).mean(dim=1)
    torch.testing.assert_close(per_sample.double(), expected, rtol=1e-4, atol=0)


def test_l1_weighs_the_absolute_error() -> None:
    loss = loss_of(kind="l1")
    noise = torch.randn_like(LATENTS)
    timesteps = torch.tensor([100, 300, 700, 999])

    per_sample = loss.at(network, LATENTS, None, timesteps, noise)

    a = loss.alpha_bar_sqrt[timesteps][:, None, None, None, None]
    s = (1 - a**2).sqrt()
    x = a * LATENTS + s * noise
    error = (a * x - s * 0.3 * x - LATENTS).abs() / (1 - a**2)
    torch.testing.assert_close(per_sample, error.flatten(1).mean(dim=1), rtol=1e-3, atol=0)


def test_min_snr_limits_the_weight_of_each_sample_of_a_batch() -> None:
    noise = torch.randn_like(LATENTS)
    timesteps = torch.tensor([0, 10, 500, 999])

    plain = loss_of()
    limited = loss_of(min_snr_value=5.0)

    weights = plain.weights(plain.alpha_bar_sqrt[timesteps])
    assert weights[0] > 1000
    ratio = limited.at(network, LATENTS, None, timesteps, noise) / plain.at(
        network, LATENTS, None, timesteps, noise
    )
    torch.testing.assert_close(ratio, weights.clamp(max=5.0) / weights)


def test_draws_are_asked_in_upstream_s_order() -> None:
    torch.manual_seed(3)
    timesteps = torch.randint(0, 1000, (4,))
    noise = torch.randn_like(LATENTS)
    offset = torch.randn(4)
    expected = loss_of().at(
        network, LATENTS, None, timesteps, noise + 0.1 * offset[:, None, None, None, None]
    )

    torch.manual_seed(3)
    result = loss_of(offset_noise_level=0.1)(network, LATENTS, None, GlobalDraws())

    assert torch.equal(result.timesteps, timesteps)
    torch.testing.assert_close(result.per_sample, expected)


def test_no_offset_is_drawn_when_its_level_is_zero() -> None:
    torch.manual_seed(3)
    loss_of()(network, LATENTS, None, GlobalDraws())
    after = torch.rand(1)

    torch.manual_seed(3)
    torch.randint(0, 1000, (4,))
    torch.randn_like(LATENTS)
    assert torch.equal(after, torch.rand(1))


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_keyed_losses_do_not_depend_on_the_micro_batch(cut: int) -> None:
    loss = loss_of(offset_noise_level=0.1, timesteps=TimestepConfig(uniform_sampling=True))
    positions = [8, 9, 10, 11]

    def losses(rows: slice) -> Tensor:
        strata = Strata.from_positions(positions[rows], 4, seed=1)
        draws = KeyedDraws(1, positions[rows])
        return loss(network, LATENTS[rows], None, draws, strata).per_sample

    parts = torch.cat([losses(slice(0, cut)), losses(slice(cut, 4))])
    torch.testing.assert_close(parts, losses(slice(0, 4)), rtol=1e-6, atol=0)


def test_bf16_latents_get_bf16_noise_and_an_fp32_loss() -> None:
    seen: list[torch.dtype] = []

    def spying(x: Tensor, timesteps: Tensor, conditioning: None) -> Tensor:
        seen.append(x.dtype)
        return x.bfloat16()

    result = loss_of()(spying, LATENTS.bfloat16(), None, KeyedDraws(0, range(4)))

    noise = KeyedDraws(0, range(4)).normal_like("noise", LATENTS).bfloat16().float()
    a = loss_of().alpha_bar_sqrt[result.timesteps][:, None, None, None, None]
    expected = LATENTS.bfloat16().float() * a + noise * (1 - a**2).sqrt()
    torch.testing.assert_close(result.noisy, expected, rtol=0, atol=0)
    assert seen == [torch.float32]
    assert result.per_sample.dtype == torch.float32


def test_the_gradient_reaches_the_network() -> None:
    scale = torch.tensor(0.3, requires_grad=True)

    result = loss_of()(lambda x, t, c: scale * x, LATENTS, None, KeyedDraws(0, range(4)))
    result.per_sample.mean().backward()

    assert scale.grad is not None
    assert scale.grad != 0
    assert not result.denoised.requires_grad


def test_a_loss_that_needs_another_network_is_refused() -> None:
    with pytest.raises(ConfigError, match="lpips"):
        loss_of(kind="lpips")
