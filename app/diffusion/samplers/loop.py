"""The sampling loop that all step rules share.

Source: sat/sgm/modules/diffusionmodules/sampling.py, VideoDDIMSampler and its children.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from app.config.schema.diffusion import SamplerConfig
from app.diffusion.denoiser import Denoiser, Network
from app.diffusion.guidance import Guidance, guided
from app.diffusion.samplers.path import SamplingPath
from app.distributed.seeding import Draws

Progress = Callable[[int, int], None]  # (steps done, steps in all), after each step


class Sampler(ABC):
    """From noise to latents in `num_steps` steps; a subclass says how one step moves.

    The number of steps is the configuration's: the noise table, the last step and the guidance
    all depend on it.

    Args:
        config: schedule, number of steps, fixed frames.
        denoiser: predicts x0.
        guidance: the scale at each step.
    """

    def __init__(self, config: SamplerConfig, denoiser: Denoiser, guidance: Guidance) -> None:
        self.config = config
        self.denoiser = denoiser
        self.guidance = guidance
        self.path = SamplingPath.of(config.schedule, config.num_steps)

    @abstractmethod
    def step(
        self, index: int, x: Tensor, denoised: Tensor, previous: Tensor | None, draws: Draws
    ) -> Tensor:
        """Move x from step `index` to the next noise level; never called for the last step.

        Args:
            index: step index, 0..num_steps - 2.
            x: (B, T, C, H, W) fp32, noisy.
            denoised: its guided prediction of x0.
            previous: the prediction of the step before, None at index 0.
            draws: gives sampler_noise/<index> to rules that add noise.
        """

    @torch.no_grad()
    def sample(
        self,
        network: Network,
        initial_noise: Tensor,
        conditioning: Any,
        draws: Draws,
        progress: Progress | None = None,
    ) -> Tensor:
        """Sample latents with one network call per step, with and without the prompt.

        Args:
            network: called num_steps times with 2B samples.
            initial_noise: (B, T, C, H, W), unit Gaussian; with `fixed_frames` its first frames
                are the clean latents to keep.
            conditioning: of 2B samples: the B without the prompt, then with it.
            draws: gives sampler_noise/<step index> and, with `sdedit`, sdedit_noise/<step
                index>.
            progress: called after each step.

        Returns:
            (B, T, C, H, W) fp32: the last step's prediction of the clean latents.
        """
        x = initial_noise.float()
        prefix = x[:, : self.config.fixed_frames].clone()
        previous: Tensor | None = None
        for index in range(self.config.num_steps):
            x = self._with_fixed_frames(x, prefix, index, draws)
            denoised = self._guided_prediction(network, x, conditioning, index)
            if index == self.config.num_steps - 1:
                x = denoised
            else:
                x = self.step(index, x, denoised, previous, draws)
            previous = denoised
            if progress is not None:
                progress(index + 1, self.config.num_steps)
        return torch.cat([prefix, x[:, prefix.shape[1] :]], dim=1)

    def _guided_prediction(
        self, network: Network, x: Tensor, conditioning: Any, index: int
    ) -> Tensor:
        """(B, T, C, H, W) fp32: x0 by one call of the network, guided."""
        count = 2 * x.shape[0]
        timestep = float(self.path.timesteps[index])
        both = self.denoiser.denoise(
            network,
            torch.cat([x, x]),
            torch.full((count,), self.path.alpha_bar_sqrt[index].item()),
            torch.full((count,), timestep),  # fp32, as the network was always sampled
            conditioning,
        )
        unconditional, conditional = both.chunk(2)
        scale = self.guidance.scale(timestep, index, self.config.num_steps)
        return guided(unconditional, conditional, scale)

    def _with_fixed_frames(self, x: Tensor, prefix: Tensor, index: int, draws: Draws) -> Tensor:
        """x with its first frames replaced by the given ones, noised to this step by sdedit."""
        if prefix.shape[1] == 0:
            return x
        if self.config.sdedit:
            noise = draws.normal_like(f"sdedit_noise/{index}", prefix)
            alpha = self.path.alpha_bar_sqrt[index].item()
            prefix = alpha * prefix + self.path.noise_level[index].item() * noise
        return torch.cat([prefix, x[:, prefix.shape[1] :]], dim=1)
