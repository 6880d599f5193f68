from __future__ import annotations

import math

import pytest
import torch

from app.config.schema.diffusion import GuidanceConfig
from app.diffusion.guidance import ConstantGuidance, DynamicGuidance, guided
from app.errors import ConfigError


def test_constant_guidance_is_constant() -> None:
    guidance = ConstantGuidance(GuidanceConfig(scale=4.5))

    assert {guidance.scale(t, i, 50) for i, t in enumerate((999.0, 500.0, 19.0))} == {4.5}


def test_in_sampling_units_the_scale_is_a_ramp_from_one() -> None:
    guidance = DynamicGuidance(GuidanceConfig(step_units="sampling"))

    scales = [guidance.scale(999.0 - 20 * i, i, 50) for i in range(50)]

    assert scales[0] == 1
    assert scales == sorted(scales)
    assert scales[49] == pytest.approx(1 + 3 * (1 - math.cos(math.pi * 0.98**5)))


def test_in_training_units_the_scale_stays_between_one_and_one_plus_scale() -> None:
    guidance = DynamicGuidance(GuidanceConfig())

    scales = [guidance.scale(float(t), 0, 50) for t in range(1000)]

    assert min(scales) >= 1
    assert max(scales) <= 7
    assert max(scales) - min(scales) > 5.9


def test_the_divisor_is_the_guidance_s_own_number_of_steps() -> None:
    guidance = DynamicGuidance(GuidanceConfig(num_steps=10, exp=1, step_units="sampling"))

    assert guidance.scale(0.0, 5, 50) == pytest.approx(4.0)


@pytest.mark.parametrize("changes", [{"step_units": "seconds"}, {"exp": 2.5}, {"num_steps": 0}])
def test_impossible_settings_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        DynamicGuidance(GuidanceConfig(**changes))  # type: ignore[arg-type]


def test_guidance_goes_from_unconditional_past_conditional() -> None:
    u, c = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 4.0])

    assert guided(u, c, 0.0).tolist() == [1.0, 2.0]
    assert guided(u, c, 1.0).tolist() == [2.0, 4.0]
    assert guided(u, c, 3.0).tolist() == [4.0, 8.0]
