"""DPM-Solver++(2M), as a stochastic and as an ordinary differential equation.

Second order by the previous prediction (arXiv:2211.01095).
Source: sat/sgm/modules/diffusionmodules/sampling.py, VPSDEDPMPP2MSampler, VPODEDPMPP2MSampler.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from app.config.schema.diffusion import SamplerConfig
from app.diffusion.denoiser import Denoiser
from app.diffusion.guidance import Guidance
from app.diffusion.samplers.loop import Sampler
from app.diffusion.samplers.path import SamplingPath
from app.distributed.seeding import Draws


@dataclass(frozen=True, slots=True)
class Coefficients:
    """x <- keep * x - pull * D + noise * n, D = newer * x0 - older * previous x0.

    All fp32 values held as Python floats: a step makes no copy to the device.
    """

    keep: float
    pull: float
    newer: float
    older: float
    noise: float


def sde_coefficients(path: SamplingPath) -> list[Coefficients]:
    """One entry per step but the last, which returns the prediction itself."""
    steps = path.half_log_snr().diff()  # +inf at the first step: IEEE gives the right limits
    ratios = path.noise_level[1:] / path.noise_level[:-1]
    keeps = ratios * (-steps).exp()
    pulls = (-2 * steps).expm1() * path.alpha_bar_sqrt[1:]
    noises = path.noise_level[1:] * (1 - (-2 * steps).exp()).sqrt()
    return _assembled(steps, keeps, pulls, noises)


def ode_coefficients(path: SamplingPath) -> list[Coefficients]:
    """One entry per step but the last, which returns the prediction itself."""
    steps = path.half_log_snr().diff()
    ratios = path.noise_level[1:] / path.noise_level[:-1]
    pulls = (-steps).expm1() * path.alpha_bar_sqrt[1:]
    return _assembled(steps, ratios, pulls, steps.new_zeros(steps.shape))


def _assembled(steps: Tensor, keeps: Tensor, pulls: Tensor, noises: Tensor) -> list[Coefficients]:
    """Put the columns together and add the weights of the two predictions."""
    result = []
    for i in range(steps.shape[0] - 1):
        # Step 0 has no previous prediction; at step 1 the ratio is infinite and it counts nothing.
        older = steps.new_zeros(()) if i == 0 else 1 / (2 * (steps[i - 1] / steps[i]))
        numbers = (keeps[i], pulls[i], 1 + older, older, noises[i])
        result.append(Coefficients(*(number.item() for number in numbers)))
    return result


def extrapolated(step: Coefficients, denoised: Tensor, previous: Tensor | None) -> Tensor:
    """D: the prediction carried on along its change since the step before."""
    if previous is None:
        return denoised
    return step.newer * denoised - step.older * previous


class SdeSampler(Sampler):
    """Adds fresh noise at every step but the last. The stock sampler, VPSDEDPMPP2MSampler."""

    def __init__(self, config: SamplerConfig, denoiser: Denoiser, guidance: Guidance) -> None:
        super().__init__(config, denoiser, guidance)
        self.coefficients = sde_coefficients(self.path)

    def step(
        self, index: int, x: Tensor, denoised: Tensor, previous: Tensor | None, draws: Draws
    ) -> Tensor:
        step = self.coefficients[index]
        if draws.like_upstream and previous is not None:
            # Upstream draws for a first-order candidate that it then does not use.
            draws.normal_like(f"sampler_noise_unused/{index}", x)
        noise = draws.normal_like(f"sampler_noise/{index}", x)
        moved = step.keep * x - step.pull * extrapolated(step, denoised, previous)
        return moved + step.noise * noise


class OdeSampler(Sampler):
    """Deterministic. Upstream: VPODEDPMPP2MSampler."""

    def __init__(self, config: SamplerConfig, denoiser: Denoiser, guidance: Guidance) -> None:
        super().__init__(config, denoiser, guidance)
        self.coefficients = ode_coefficients(self.path)

    def step(
        self, index: int, x: Tensor, denoised: Tensor, previous: Tensor | None, draws: Draws
    ) -> Tensor:
        step = self.coefficients[index]
        return step.keep * x - step.pull * extrapolated(step, denoised, previous)
