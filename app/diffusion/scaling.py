"""Coefficients between a noisy sample, its clean sample and the network's v prediction.

With a = alpha_bar_sqrt and noise_level = sqrt(1 - a^2):
x_t = a * x0 + noise_level * noise, v = a * noise - noise_level * x0, hence
x0 = a * x_t - noise_level * v. The network's input is x_t itself, its time is the timestep.
Source: sat/sgm/modules/diffusionmodules/denoiser_scaling.py, VideoScaling; arXiv:2202.00512.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Scaling:
    """x0 = skip * x_t + out * v. Both (B,) fp32."""

    skip: Tensor
    out: Tensor


def noise_level(alpha_bar_sqrt: Tensor) -> Tensor:
    """sqrt(1 - a^2), any shape, in the dtype given."""
    # 1 - a^2 cancels near timestep 0: one ulp of `a` is 1.4e-4 of the loss weight there. Loss and
    # denoiser therefore both start from the same fp32 `a`, through this function.
    return (1 - alpha_bar_sqrt**2).sqrt()


def v_scaling(alpha_bar_sqrt: Tensor) -> Scaling:
    """Coefficients for each sample of (B,) fp32 `alpha_bar_sqrt`."""
    return Scaling(skip=alpha_bar_sqrt, out=-noise_level(alpha_bar_sqrt))


def per_sample(values: Tensor, x: Tensor) -> Tensor:
    """(B,) values shaped (B, 1, ..., 1) on the device of `x`, to be multiplied with it."""
    return values.to(x.device).reshape(-1, *[1] * (x.ndim - 1))
