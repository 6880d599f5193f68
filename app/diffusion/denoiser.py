"""From the network's v prediction to the clean sample.

Source: sat/sgm/modules/diffusionmodules/denoiser.py, DiscreteDenoiser.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from app.config.schema.diffusion import DenoiserConfig
from app.diffusion.scaling import per_sample, v_scaling
from app.diffusion.schedule import NoiseSchedule

# (latents (B, T, C, H, W), timesteps (B,), conditioning) -> v (B, T, C_out, H, W)
Network = Callable[[Tensor, Tensor, Any], Tensor]


class Denoiser:
    """Calls the network once and turns its prediction into x0.

    Attributes:
        alpha_bar_sqrt: (num_idx,) fp32 on the CPU, ascending timestep.
    """

    def __init__(self, config: DenoiserConfig) -> None:
        self.alpha_bar_sqrt, _ = NoiseSchedule(config.schedule).subset(config.num_idx)

    def nearest(self, alpha_bar_sqrt: Tensor) -> Tensor:
        """(B,) int64: index of the table entry nearest to each value."""
        table = self.alpha_bar_sqrt.to(alpha_bar_sqrt.device)
        return (alpha_bar_sqrt[:, None] - table).abs().argmin(dim=1)

    def quantise(self, alpha_bar_sqrt: Tensor) -> Tensor:
        """(B,) fp32: the nearest entry of the table.

        Nothing changes in training. A sampler's table is rescaled on its own entries, so here
        its values move by up to half a table step, while the sampler's update keeps the exact
        ones; published samples were made this way.
        """
        table = self.alpha_bar_sqrt.to(alpha_bar_sqrt.device)
        return table[self.nearest(alpha_bar_sqrt)]

    def denoise(
        self,
        network: Network,
        noisy: Tensor,
        alpha_bar_sqrt: Tensor,
        timesteps: Tensor,
        conditioning: Any,
    ) -> Tensor:
        """Predict the clean latents.

        Args:
            network: called once.
            noisy: (B, T, C, H, W) fp32.
            alpha_bar_sqrt: (B,) fp32, best on the CPU, where the table is.
            timesteps: (B,), as given to the network; not derived from alpha_bar_sqrt.
            conditioning: handed to the network as it is.

        Returns:
            (B, T, C, H, W) fp32.
        """
        scaling = v_scaling(self.quantise(alpha_bar_sqrt))
        v = network(noisy, timesteps.to(noisy.device), conditioning)
        return v.float() * per_sample(scaling.out, noisy) + noisy * per_sample(scaling.skip, noisy)
