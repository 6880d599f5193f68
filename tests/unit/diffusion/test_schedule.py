from __future__ import annotations

import numpy as np
import pytest
import torch

from app.config.schema.diffusion import ScheduleConfig
from app.diffusion.schedule import NoiseSchedule
from app.errors import ConfigError


def schedule(**changes: object) -> NoiseSchedule:
    return NoiseSchedule(ScheduleConfig(**changes))  # type: ignore[arg-type]


def test_the_full_table_is_fp32_falls_and_ends_in_pure_noise() -> None:
    table = schedule().alpha_bar_sqrt

    assert table.dtype == torch.float32
    assert table.shape == (1000,)
    assert (table.diff() < 0).all()
    assert table[-1] == 0


@pytest.mark.parametrize(
    ("count", "expected"),
    [(50, [19, 39, 59]), (6, [166, 333, 499, 666, 832, 999]), (25, [39, 79]), (2, [499, 999])],
)
def test_a_subset_visits_trailing_timesteps(count: int, expected: list[int]) -> None:
    alphas, timesteps = schedule().subset(count)

    assert timesteps[: len(expected)].tolist() == expected
    assert timesteps.shape == alphas.shape == (count,)
    assert timesteps[-1] == 999
    assert alphas[-1] == 0


def test_a_subset_is_rescaled_on_its_own_entries() -> None:
    alphas, _ = schedule().subset(50)

    assert alphas[0].item() == pytest.approx(0.9910823, abs=2e-7)  # 0.9904597 in the full table
    assert alphas[0] != schedule().alpha_bar_sqrt[19]


def test_shift_scale_divides_the_signal_to_noise_ratio() -> None:
    plain, shifted = schedule().alpha_bar, schedule(shift_scale=3.0).alpha_bar

    snr, shifted_snr = plain / (1 - plain), shifted / (1 - shifted)
    torch.testing.assert_close(shifted_snr, snr / 3, rtol=1e-10, atol=0)


def test_post_shift_shifts_after_the_rescaling() -> None:
    plain = schedule().alpha_bar_sqrt.double()
    expected = (plain**2 / (3 - 2 * plain**2)).sqrt()

    shifted = schedule(shift_scale=3.0, post_shift=True)

    torch.testing.assert_close(shifted.alpha_bar_sqrt.double(), expected, rtol=0, atol=2e-7)
    assert torch.equal(shifted.alpha_bar, schedule().alpha_bar)


def test_keep_start_moves_the_first_beta_only_without_post_shift() -> None:
    start = 0.00085 / (3 + (1 - 3) * 0.00085)
    beta = np.linspace(np.sqrt(start), np.sqrt(0.0120), 1000) ** 2
    product = np.cumprod(1 - beta)
    expected = torch.from_numpy(product / (3 - 2 * product))

    kept = schedule(shift_scale=3.0, keep_start=True)

    torch.testing.assert_close(kept.alpha_bar, expected, rtol=1e-12, atol=0)
    both = schedule(shift_scale=3.0, keep_start=True, post_shift=True)
    assert torch.equal(both.alpha_bar, schedule().alpha_bar)


@pytest.mark.parametrize("count", [-1, 0, 1, 1001])
def test_an_impossible_number_of_timesteps_is_refused(count: int) -> None:
    with pytest.raises(ConfigError, match=f"{count} timesteps"):
        schedule().subset(count)
