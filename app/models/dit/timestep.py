"""The embedding of the timestep (and of ofs) that modulates every layer.

Axes: B batch, D width of the sinusoid, e width of the embedding.
Source: DDPM, arXiv:2006.11239, in the form of guided-diffusion: cosines first, then sines.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

LONGEST_PERIOD = 10000.0  # in timesteps


def sinusoid(values: Tensor, width: int) -> Tensor:
    """(B, width) fp32 for values (B,): cosines, then sines; one zero column if width is odd."""
    half = width // 2
    # One unit in the last place of a frequency is worth 6e-5 rad at timestep 999: the form of this
    # expression, not only its value, is that of the released models. Computed on the device: a
    # copy from the host would wait for the stream.
    steps = torch.arange(half, dtype=torch.float32, device=values.device)
    frequencies = torch.exp(-math.log(LONGEST_PERIOD) * steps / half)
    angles = values[:, None].float() * frequencies
    waves = torch.cat([angles.cos(), angles.sin()], dim=1)
    return nn.functional.pad(waves, (0, width % 2))


class ScalarEmbedding(nn.Sequential):
    """Sinusoid, Linear, SiLU, Linear. Children 0 and 2 are the weights of a checkpoint."""

    def __init__(
        self,
        sinusoid_width: int,
        width: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            nn.Linear(sinusoid_width, width, device=device, dtype=dtype),
            nn.SiLU(),
            nn.Linear(width, width, device=device, dtype=dtype),
        )
        self.sinusoid_width = sinusoid_width

    def forward(self, values: Tensor) -> Tensor:
        """(B, e), in the dtype of the weights, for values (B,), int or float."""
        dtype = self.get_parameter("0.weight").dtype
        return super().forward(sinusoid(values, self.sinusoid_width).to(dtype))
