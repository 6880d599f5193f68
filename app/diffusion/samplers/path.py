"""The noise levels that a sampler visits, from pure noise to the clean sample."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from app.config.schema.diffusion import ScheduleConfig
from app.diffusion.scaling import noise_level
from app.diffusion.schedule import NoiseSchedule


@dataclass(frozen=True, slots=True)
class SamplingPath:
    """n steps between n + 1 noise levels. Step i goes from entry i to entry i + 1.

    Attributes:
        alpha_bar_sqrt: (n + 1,) fp32, ascending: 0 is pure noise, the appended last 1 is clean.
        noise_level: (n + 1,) fp32, sqrt(1 - alpha_bar_sqrt^2).
        timesteps: (n,) int64, descending.
    """

    alpha_bar_sqrt: Tensor
    noise_level: Tensor
    timesteps: Tensor

    @classmethod
    def of(cls, schedule: ScheduleConfig, num_steps: int) -> SamplingPath:
        """The path of `num_steps` steps; ConfigError if the schedule cannot give them."""
        alphas, timesteps = NoiseSchedule(schedule).subset(num_steps)
        alphas = torch.cat([alphas.flip(0), torch.ones(1)])
        return cls(alphas, noise_level(alphas), timesteps.flip(0))

    @property
    def num_steps(self) -> int:
        return self.timesteps.shape[0]

    def half_log_snr(self) -> Tensor:
        """(n + 1,) fp32: ln(a / noise_level); -inf first, +inf last."""
        return (self.alpha_bar_sqrt / self.noise_level).log()
