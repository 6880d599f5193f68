from __future__ import annotations

import pytest
import torch
from torch import Tensor

from app.config.schema.diffusion import DenoiserConfig, ScheduleConfig
from app.diffusion.denoiser import Denoiser
from app.diffusion.schedule import NoiseSchedule


def test_every_entry_of_the_table_is_its_own_nearest() -> None:
    denoiser = Denoiser(DenoiserConfig())

    nearest = denoiser.nearest(denoiser.alpha_bar_sqrt)

    assert nearest.tolist() == list(range(1000))


@pytest.mark.parametrize(("shift", "last_equal", "first_below"), [(1.0, 239, 219), (3.0, 179, 159)])
def test_a_50_step_table_is_quantised_to_the_timestep_or_the_one_before(
    shift: float, last_equal: int, first_below: int
) -> None:
    schedule = ScheduleConfig(shift_scale=shift)
    denoiser = Denoiser(DenoiserConfig(schedule=schedule))
    alphas, timesteps = NoiseSchedule(schedule).subset(50)
    nearest = denoiser.nearest(alphas)

    above = timesteps >= last_equal
    assert torch.equal(nearest[above], timesteps[above])
    assert torch.equal(nearest[~above], timesteps[~above] - 1)
    assert timesteps[~above].max() == first_below


def test_quantised_values_are_entries_of_the_table() -> None:
    denoiser = Denoiser(DenoiserConfig())
    table = denoiser.alpha_bar_sqrt
    between = table[300] * 0.6 + table[301] * 0.4

    quantised = denoiser.quantise(torch.stack([between, torch.tensor(2.0), torch.tensor(-1.0)]))

    assert torch.equal(quantised, table[[300, 0, 999]])


def test_denoise_hands_on_the_raw_input_and_answers_in_fp32() -> None:
    denoiser = Denoiser(DenoiserConfig())
    seen: list[Tensor] = []

    def network(x: Tensor, timesteps: Tensor, conditioning: str) -> Tensor:
        seen.extend([x, timesteps])
        assert conditioning == "as it is"
        return torch.ones_like(x, dtype=torch.bfloat16)

    noisy = torch.full((2, 1, 1, 1, 1), 3.0)
    timesteps = torch.tensor([999.0, 500.0])
    alphas = denoiser.alpha_bar_sqrt[[999, 500]]
    clean = denoiser.denoise(network, noisy, alphas, timesteps, "as it is")

    assert torch.equal(seen[0], noisy)
    assert torch.equal(seen[1], timesteps)
    assert clean.dtype == torch.float32
    a = alphas[1].item()
    expected = [-1.0, 3 * a - (1 - a**2) ** 0.5]
    assert clean.flatten().tolist() == pytest.approx(expected, abs=1e-6)
