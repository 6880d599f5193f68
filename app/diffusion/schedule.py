"""How much of the clean signal is left at each timestep: the table of alpha_bar_sqrt.

Scaled-linear betas, signal-to-noise ratio divided by `shift_scale`, and rescaled so that the last
timestep is pure noise (arXiv:2305.08891). Released weights were trained with exactly these
numbers, so the order of the fp32 operations matters.
Source: sat/sgm/modules/diffusionmodules/discretizer.py, ZeroSNRDDPMDiscretization.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from app.config.schema.diffusion import ScheduleConfig
from app.errors import ConfigError


class NoiseSchedule:
    """The table for every timestep, and the tables of samplers that visit a part of them.

    Attributes:
        alpha_bar: (num_timesteps,) fp64, cumulative products after the shift, before rescaling.
        alpha_bar_sqrt: (num_timesteps,) fp32, ascending timestep: nearly 1 first, exactly 0 last.
    """

    def __init__(self, config: ScheduleConfig) -> None:
        self.config = config
        self.alpha_bar = _shifted_alpha_bar(config)
        self.alpha_bar_sqrt, _ = self.subset(config.num_timesteps)

    def subset(self, count: int) -> tuple[Tensor, Tensor]:
        """The table of `count` timesteps, spread evenly from the noisiest one down.

        The rescaling is done on the picked entries, so a value differs a little from the full
        table's at the same timestep; samplers use it so.

        Returns:
            alpha_bar_sqrt (count,) fp32 and timesteps (count,) int64, both ascending in timestep.

        Raises:
            ConfigError: `count` is below 2 or above num_timesteps.
        """
        total = self.config.num_timesteps
        if not 2 <= count <= total:
            raise ConfigError(
                f"a noise table of {count} timesteps was requested",
                where="discretization_config.params.num_timesteps, num_idx or num_steps",
                fix=f"use 2 to {total} (one timestep alone cannot be rescaled to zero signal)",
            )
        timesteps = np.arange(total)
        if count < total:
            timesteps = np.linspace(total - 1, 0, count, endpoint=False).astype(np.int64)[::-1]
        picked = torch.from_numpy(timesteps.copy())
        alphas = self.alpha_bar[picked].to(torch.float32).sqrt()
        # The scalar quotient first: multiplying by the first entry first is up to 3 ulp off.
        first, last = alphas[0].clone(), alphas[-1].clone()
        alphas = (alphas - last) * (first / (first - last))
        if self.config.post_shift:
            shift = self.config.shift_scale
            squares = alphas**2
            alphas = (squares / (shift + (1 - shift) * squares)).sqrt()
        return alphas, picked


def _shifted_alpha_bar(config: ScheduleConfig) -> Tensor:
    """(num_timesteps,) fp64: products of 1 - beta, with the signal-to-noise ratio shifted."""
    shift = config.shift_scale
    start = config.linear_start
    if config.keep_start and not config.post_shift:
        start = start / (shift + (1 - shift) * start)
    roots = torch.linspace(
        start**0.5, config.linear_end**0.5, config.num_timesteps, dtype=torch.float64
    )
    alpha_bar = torch.from_numpy(np.cumprod(1.0 - (roots**2).numpy()))
    if config.post_shift:
        return alpha_bar
    return alpha_bar / (shift + (1 - shift) * alpha_bar)
