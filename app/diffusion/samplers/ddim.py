"""DDIM: the deterministic first-order step (arXiv:2010.02502)."""

from __future__ import annotations

from torch import Tensor

from app.diffusion.samplers.loop import Sampler
from app.distributed.seeding import Draws


class DdimSampler(Sampler):
    """Keeps the direction of the noise and moves along it. Upstream: VideoDDIMSampler."""

    def step(
        self, index: int, x: Tensor, denoised: Tensor, previous: Tensor | None, draws: Draws
    ) -> Tensor:
        alphas, levels = self.path.alpha_bar_sqrt, self.path.noise_level
        ratio = levels[index + 1] / levels[index]
        toward = alphas[index + 1] - alphas[index] * ratio
        return ratio.item() * x + toward.item() * denoised
