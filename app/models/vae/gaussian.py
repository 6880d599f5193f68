"""The posterior of the latents of a clip: an independent normal distribution per value.

Axes: B batch, t latent frames, C channels, h rows, w columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from app.distributed.seeding import Draws

LOGVAR_RANGE = (-30.0, 20.0)  # upstream's clamp


@dataclass(frozen=True, slots=True)
class Gaussian:
    """Mean and log-variance, both (B, t, C, h, w)."""

    mean: Tensor
    logvar: Tensor
    is_sampled: bool = True  # False: `draw` gives the mean (regularizer param `sample: false`)

    @classmethod
    def from_moments(cls, moments: Tensor, *, is_sampled: bool = True) -> Gaussian:
        """Split the encoder's output (B, 2 C, t, h, w) and clamp the log-variance."""
        mean, logvar = moments.chunk(2, dim=2)
        return cls(mean, logvar.clamp(*LOGVAR_RANGE), is_sampled)

    def mode(self) -> Tensor:
        """The most likely latents, (B, t, C, h, w)."""
        return self.mean

    def sample(self, noise: Tensor) -> Tensor:
        """Latents for given standard normal noise, both (B, t, C, h, w)."""
        return self.mean + torch.exp(0.5 * self.logvar) * noise

    def draw(self, draws: Draws, purpose: str) -> Tensor:
        """Sample with noise from `draws`; (B, t, C, h, w)."""
        if not self.is_sampled:
            return self.mode()
        # Upstream draws in the order (B, C, t, h, w); contiguous, since a generator fills memory
        # in the order of the strides.
        channels_first = self.mean.transpose(1, 2).contiguous()
        return self.sample(draws.normal_like(purpose, channels_first).transpose(1, 2))
