"""How strongly the prompt pulls at each sampling step: x0 = u + scale * (c - u).

Source: sat/sgm/modules/diffusionmodules/guiders.py, DynamicCFG and VanillaCFG.
"""

from __future__ import annotations

import math
from typing import Protocol

from torch import Tensor

from app.config.schema.diffusion import GuidanceConfig
from app.errors import ConfigError


class Guidance(Protocol):
    """Implemented by DynamicGuidance and ConstantGuidance."""

    def scale(self, timestep: float, step_index: int, num_steps: int) -> float:
        """The scale at one step.

        Args:
            timestep: training index 0..999 of the step.
            step_index: 0-based position in the sampling run.
            num_steps: steps of the sampling run.
        """
        ...


class ConstantGuidance:
    """The same scale at every step."""

    def __init__(self, config: GuidanceConfig) -> None:
        self._scale = float(config.scale)

    def scale(self, timestep: float, step_index: int, num_steps: int) -> float:
        return self._scale


class DynamicGuidance:
    """Between 1 and 1 + scale along a raised cosine.

    Raises:
        ConfigError: `step_units` is unknown, `exp` is not whole or `num_steps` not positive.
    """

    def __init__(self, config: GuidanceConfig) -> None:
        where = "model.sampler_config.params.guider_config.params"
        if config.step_units not in ("training", "sampling"):
            raise ConfigError(
                f"step_units is {config.step_units!r}",
                where=f"{where}.step_units",
                fix="use training (upstream's numbers) or sampling (a ramp)",
            )
        if config.exp != int(config.exp) or config.num_steps < 1:
            raise ConfigError(
                f"exp is {config.exp} and num_steps is {config.num_steps}",
                where=where,
                fix="use a whole exp and a positive num_steps",
            )
        self._config = config

    def scale(self, timestep: float, step_index: int, num_steps: int) -> float:
        # Not a ramp, and kept so: the timestep counts training steps (0..999) while num_steps
        # counts sampling steps (50), so the scale jumps between 1 and 1 + scale. Published
        # samples were made this way. `step_units: sampling` gives the ramp that people expect.
        k = num_steps - timestep if self._config.step_units == "training" else step_index
        # fp64 and a whole exponent: the base is negative and the angle reaches 1e7.
        angle = math.pi * (k / self._config.num_steps) ** int(self._config.exp)
        return 1 + self._config.scale * (1 - math.cos(angle)) / 2


def guided(unconditional: Tensor, conditional: Tensor, scale: float) -> Tensor:
    """Move from the unconditional towards the conditional prediction; `scale` 1 arrives there."""
    return unconditional + scale * (conditional - unconditional)
