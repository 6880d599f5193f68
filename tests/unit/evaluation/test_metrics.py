from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from app.config.schema.diffusion import DenoiserConfig, LossConfig, TimestepConfig
from app.diffusion.denoiser import Denoiser
from app.diffusion.loss import VideoDiffusionLoss
from app.distributed.seeding import KeyedDraws
from app.evaluation.metrics import (
    LossSums,
    ValidationBatch,
    fixed_timesteps,
    validation_loss,
)

LATENTS = torch.randn(5, 2, 4, 2, 3, generator=torch.Generator().manual_seed(0))


def loss_of(num_idx: int = 1000) -> VideoDiffusionLoss:
    return VideoDiffusionLoss(
        LossConfig(timesteps=TimestepConfig(num_idx=num_idx)),
        Denoiser(DenoiserConfig(num_idx=num_idx)),
    )


def network(x: Tensor, timesteps: Tensor, conditioning: Tensor) -> Tensor:
    return 0.3 * x + conditioning[:, None, None, None, None]


def batch(positions: list[int], counted: list[bool] | None = None) -> ValidationBatch:
    return ValidationBatch(
        latents=LATENTS[positions],
        conditioning=torch.tensor(positions) / 10,
        positions=positions,
        counted=counted,
    )


def test_fixed_timesteps_lie_in_the_middle_of_equal_ranges() -> None:
    assert fixed_timesteps(1) == [500]
    assert fixed_timesteps(4) == [125, 375, 625, 875]
    assert fixed_timesteps(1000) == list(range(1000))


def test_the_sums_are_the_losses_at_the_fixed_timesteps_with_the_samples_own_noise() -> None:
    loss = loss_of()

    sums = validation_loss(loss, network, [batch([0, 3])], seed=8, timesteps_per_sample=2)

    for i, timestep in enumerate((250, 750)):
        noise = KeyedDraws(8, [0, 3]).normal_like(f"validation_noise/{i}", LATENTS[[0, 3]])
        a = loss.alpha_bar_sqrt[timestep]
        x = a * LATENTS[[0, 3]] + (1 - a**2).sqrt() * noise
        true_v = a * noise - (1 - a**2).sqrt() * LATENTS[[0, 3]]
        v = 0.3 * x + torch.tensor([0.0, 0.3])[:, None, None, None, None]
        expected = ((v - true_v) ** 2).flatten(1).mean(dim=1).sum()
        assert sums.totals[i] == pytest.approx(expected.item(), rel=1e-4)
    assert sums.count == 2


@pytest.mark.parametrize("cut", [[[0], [1], [2], [3], [4]], [[0, 1, 2], [3, 4]], [[4, 2, 0, 3, 1]]])
def test_the_sums_do_not_depend_on_batches_or_ranks(cut: list[list[int]]) -> None:
    whole = validation_loss(loss_of(), network, [batch([0, 1, 2, 3, 4])]).to_tensor()

    per_rank = [validation_loss(loss_of(), network, [batch(part)]).to_tensor() for part in cut]

    torch.testing.assert_close(torch.stack(per_rank).sum(dim=0), whole, rtol=1e-6, atol=0)


def test_the_value_is_the_same_every_time_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()

    first = validation_loss(loss_of(), network, [batch([0, 1])])
    second = validation_loss(loss_of(), network, [batch([0, 1])])

    assert first == second
    assert torch.equal(torch.get_rng_state(), state)


def test_fillers_are_not_counted() -> None:
    with_filler = validation_loss(loss_of(), network, [batch([1, 4], [True, False])])

    alone = validation_loss(loss_of(), network, [batch([1])])
    assert with_filler.count == 1
    assert with_filler.totals == pytest.approx(alone.totals, rel=1e-6)


def test_the_timesteps_follow_the_length_of_the_table() -> None:
    seen: list[int] = []

    def spying(x: Tensor, timesteps: Tensor, conditioning: Tensor) -> Tensor:
        seen.extend(timesteps.tolist())
        return x

    validation_loss(loss_of(100), spying, [batch([0])], timesteps_per_sample=2)

    assert seen == [25, 75]


def test_sums_survive_the_way_through_a_tensor() -> None:
    sums = LossSums((1.5, 2.25), 3)

    assert LossSums.from_tensor(sums.to_tensor()) == sums
    assert sums.means == (0.5, 0.75)
    assert sums.mean == 0.625


def test_without_samples_the_mean_is_nan() -> None:
    sums = validation_loss(loss_of(), network, [])

    assert sums.count == 0
    assert math.isnan(sums.mean)
