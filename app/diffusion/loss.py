"""The training loss: how far the predicted clean latents are from the true ones.

mean(w * (x0_predicted - x0)^2) with w = 1 / (1 - a^2) equals the plain error of v; it is kept in
the weighted form because recorded losses were made so, to the last bits.
Source: sat/sgm/modules/diffusionmodules/loss.py, VideoDiffusionLoss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from app.config.schema.diffusion import LossConfig
from app.diffusion.denoiser import Denoiser, Network
from app.diffusion.scaling import noise_level, per_sample
from app.diffusion.schedule import NoiseSchedule
from app.diffusion.timesteps import RankStratum, Strata, draw_timesteps
from app.distributed.seeding import Draws
from app.errors import ConfigError


@dataclass(frozen=True, slots=True)
class LossResult:
    """The loss of one micro-batch and what it was made of.

    Attributes:
        per_sample: (B,) fp32, with gradients; the training loss is its mean.
        timesteps: (B,) int64 on the CPU.
        weight: (B,) fp32 on the CPU.
        noisy: (B, T, C, H, W) fp32, the network's input before channels are joined to it.
        denoised: (B, T, C, H, W) fp32, the predicted clean latents, detached.
    """

    per_sample: Tensor
    timesteps: Tensor
    weight: Tensor
    noisy: Tensor
    denoised: Tensor


class VideoDiffusionLoss:
    """Draws timesteps and noise, calls the denoiser, weighs the error.

    Raises:
        ConfigError: `type` is neither l2 nor l1.
    """

    def __init__(self, config: LossConfig, denoiser: Denoiser) -> None:
        if config.kind not in ("l2", "l1"):
            raise ConfigError(
                f"the loss type {config.kind!r} is not available",
                where="model.loss_fn_config.params.type",
                fix="use l2 or l1",
            )
        self.config = config
        self.denoiser = denoiser
        schedule = NoiseSchedule(config.timesteps.schedule)
        self.alpha_bar_sqrt, _ = schedule.subset(config.timesteps.num_idx)

    def __call__(
        self,
        network: Network,
        latents: Tensor,
        conditioning: Any,
        draws: Draws,
        strata: Strata | RankStratum | None = None,
    ) -> LossResult:
        """The loss of one micro-batch with drawn timesteps and noise.

        Draws timestep, noise and, with `offset_noise_level`, offset_noise, in this order.

        Args:
            network: called once.
            latents: (B, T, C, H, W), scaled, any float dtype; the noise is drawn in it.
            conditioning: handed to the network.
            draws: the micro-batch's random numbers.
            strata: ranges of the timesteps, see `draw_timesteps`.
        """
        count = latents.shape[0]
        timesteps = draw_timesteps(self.config.timesteps, draws, count, strata)
        noise = draws.normal_like("noise", latents)
        if self.config.offset_noise_level > 0:
            offset = draws.normal("offset_noise", count)
            noise = noise + self.config.offset_noise_level * per_sample(offset, noise)
        return self._result(network, latents, conditioning, timesteps, noise)

    forward = __call__

    def at(
        self,
        network: Network,
        latents: Tensor,
        conditioning: Any,
        timesteps: Tensor,
        noise: Tensor,
    ) -> Tensor:
        """(B,) fp32: the loss of each sample at given timesteps (B,) int64 and given noise.

        `noise` is (B, T, C, H, W) like `latents`; no number is drawn and no offset added.
        """
        return self._result(network, latents, conditioning, timesteps, noise).per_sample

    def weights(self, alpha_bar_sqrt: Tensor) -> Tensor:
        """1 / (1 - a^2) for each value, at most `min_snr_value`."""
        weight = 1 / (1 - alpha_bar_sqrt**2)
        if self.config.min_snr_value is not None:
            weight = weight.clamp(max=self.config.min_snr_value)
        return weight

    def _result(
        self,
        network: Network,
        latents: Tensor,
        conditioning: Any,
        timesteps: Tensor,
        noise: Tensor,
    ) -> LossResult:
        timesteps = timesteps.cpu()
        alphas = self.alpha_bar_sqrt[timesteps]
        # fp32 from here on: at timestep 0 the weight of 1176 would blow up bf16's rounding.
        clean = latents.float()
        noisy = clean * per_sample(alphas, clean) + noise * per_sample(noise_level(alphas), clean)
        denoised = self.denoiser.denoise(network, noisy, alphas, timesteps, conditioning)
        weight = self.weights(alphas)
        error = denoised - clean
        error = error.abs() if self.config.kind == "l1" else error**2
        losses = (per_sample(weight, clean) * error).flatten(1).mean(dim=1)
        return LossResult(losses, timesteps, weight, noisy, denoised.detach())
