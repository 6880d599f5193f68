"""Noise tables, loss weights and guidance scales against recorded and published numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from app.config.schema.diffusion import (
    DenoiserConfig,
    GuidanceConfig,
    LossConfig,
    ScheduleConfig,
    TimestepConfig,
)
from app.diffusion.denoiser import Denoiser
from app.diffusion.guidance import DynamicGuidance
from app.diffusion.loss import VideoDiffusionLoss
from app.diffusion.samplers.path import SamplingPath
from app.diffusion.scaling import v_scaling
from app.diffusion.schedule import NoiseSchedule
from tests.parity.golden import Case, cases, name_of

ITEMS = ("06",)
GUIDANCE = ("scale", "exp", "num_steps")  # what upstream's class takes
ORACLE = json.loads((Path(__file__).parent / "data" / "diffusers_oracle.json").read_text())


def loss_weights(schedule: ScheduleConfig) -> Tensor:
    denoiser = Denoiser(DenoiserConfig(schedule=schedule))
    loss = VideoDiffusionLoss(LossConfig(timesteps=TimestepConfig(schedule=schedule)), denoiser)
    return loss.weights(loss.alpha_bar_sqrt)


@pytest.mark.parametrize("case", cases(*ITEMS), ids=name_of)
def test_tables_are_the_recorded_ones(case: Case) -> None:
    with case:
        for name, params in case.json["variants"].items():
            config = ScheduleConfig(**params)
            check_table(case, name, config)
            for count in case.json["steps_list"]:
                check_sampler_table(case, f"{name}/sampler{count}", config, count)
        for name, params in case.json["dynamic_cfg"].items():
            known = {key: params[key] for key in params if key in GUIDANCE}
            check_guidance(case, f"dynamic_cfg/{name}/", GuidanceConfig(**known))


def check_table(case: Case, name: str, config: ScheduleConfig) -> None:
    schedule = NoiseSchedule(config)
    table = schedule.alpha_bar_sqrt
    recorded = case.tensor(f"{name}/full_alphas_cumprod_sqrt")
    case.assert_close(table, recorded, "table", name)
    products = case.tensor(f"{name}/alphas_cumprod_f64")
    torch.testing.assert_close(schedule.alpha_bar, products, rtol=1e-12, atol=0)

    index = case.tensor(f"{name}/scaling/idx")
    scaling = v_scaling(table[index])
    case.assert_close(scaling.skip, case.tensor(f"{name}/scaling/c_skip"), "table", "c_skip")
    case.assert_close(scaling.out, case.tensor(f"{name}/scaling/c_out"), "c_out")
    # Not ours to compute: the input is not scaled, and the network is told the timestep itself.
    assert (case.tensor(f"{name}/scaling/c_in") == 1).all()
    assert torch.equal(case.tensor(f"{name}/scaling/c_noise"), index)

    relative = case.tolerance("weight_rel")
    expected = case.tensor(f"{name}/loss_weight_all")
    torch.testing.assert_close(loss_weights(config), expected, rtol=relative, atol=0)
    # 1 / alpha^2, which no loss of ours reads, checks the small end of the table.
    expected = case.tensor(f"{name}/eps_weighting_first999")
    relative = case.tolerance("eps_weighting_rel")
    torch.testing.assert_close(table[: len(expected)] ** -2, expected, rtol=relative, atol=0)


def check_sampler_table(case: Case, name: str, config: ScheduleConfig, count: int) -> None:
    path = SamplingPath.of(config, count)
    case.assert_close(
        path.alpha_bar_sqrt, case.tensor(f"{name}/alphas_cumprod_sqrt"), "table", name
    )
    # Recorded as [-1, ascending]; step i takes entry -(i + 1).
    assert path.timesteps.flip(0).tolist() == case.tensor(f"{name}/timesteps").tolist()[1:]

    denoiser = Denoiser(DenoiserConfig(schedule=config))
    alphas = path.alpha_bar_sqrt[:-1]
    nearest = case.tensor(f"{name}/denoiser_quantized_idx")
    assert denoiser.nearest(alphas).tolist() == nearest.tolist()
    quantised = case.tensor(f"{name}/denoiser_quantized_alpha")
    case.assert_close(denoiser.quantise(alphas), quantised, "table", name)


def check_guidance(case: Case, prefix: str, config: GuidanceConfig) -> None:
    guidance = DynamicGuidance(config)
    names = case.names(prefix)
    assert names, f"no scale is recorded below {prefix}"
    for name in names:
        recorded = case.tensor(name)
        count = len(recorded)  # the sampler's steps; guidance may be told another number
        timesteps = SamplingPath.of(ScheduleConfig(), count).timesteps.tolist()
        scales = [guidance.scale(float(t), i, count) for i, t in enumerate(timesteps)]
        case.assert_close(torch.tensor(scales, dtype=torch.float64), recorded, "cfg", name)


TIMESTEPS = [0, 1, 19, 100, 250, 500, 750, 900, 979, 998, 999]
# fmt: off
PUBLISHED = {
    1.0: [0.9995749, 0.99911636, 0.99045974, 0.94168001, 0.80774808, 0.49093667, 0.18110527,
          0.0544095, 0.0092621706, 0.00044360934, 0],
    3.0: [0.99872637, 0.99739695, 0.97291982, 0.8533709, 0.62374175, 0.30875248, 0.10411005,
          0.03074822, 0.0052148215, 0.00024961439, 0],
}
SCALES = [  # scale 6, exp 5, 50 steps; timesteps 999, 979, ..., 19
    2.2915, 2.5435, 6.9744, 6.4204, 2.7881, 4.2719, 1.0376, 4.1704, 1.6180, 6.9831,
    1.0048, 2.8720, 6.9768, 1.6331, 4.3297, 2.4366, 6.3773, 6.0068, 3.4479, 3.1981,
    1.6548, 6.6100, 1.1947, 4.2953, 6.9854, 1.5213, 1.7616, 1.0579, 4.1275, 1.4823,
    2.0026, 5.9477, 4.1432, 6.5305, 6.1398, 6.9999, 6.1684, 1.1199, 2.0975, 6.6850,
    6.9992, 2.3432, 6.2128, 1.2505, 6.9996, 6.8644, 1.0636, 1.0000, 1.0000, 1.1234,
]
# fmt: on


@pytest.mark.parametrize("shift", PUBLISHED)
def test_the_full_table_has_the_known_values(shift: float) -> None:
    table = NoiseSchedule(ScheduleConfig(shift_scale=shift)).alpha_bar_sqrt

    assert table[TIMESTEPS].tolist() == pytest.approx(PUBLISHED[shift], rel=1e-6, abs=1e-8)


def test_dynamic_guidance_has_the_known_values() -> None:
    guidance = DynamicGuidance(GuidanceConfig(scale=6, exp=5, num_steps=50))

    scales = [guidance.scale(999.0 - 20 * i, i, 50) for i in range(50)]

    assert scales == pytest.approx(SCALES, abs=6e-5)


@pytest.mark.parametrize(("shift", "first"), [(1.0, 1176.4403), (3.0, 392.8262)])
def test_loss_weights_have_the_known_values(shift: float, first: float) -> None:
    weights = loss_weights(ScheduleConfig(shift_scale=shift))

    assert weights[0].item() == pytest.approx(first, rel=1e-3)  # one ulp of alpha is 1.4e-4
    assert weights[999].item() == 1


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_table_is_that_of_diffusers(shift: float) -> None:
    table = NoiseSchedule(ScheduleConfig(shift_scale=shift)).alpha_bar_sqrt.double()

    squares = (table[[0, 250, 500, 750, 998, 999]] ** 2).tolist()

    for scheduler in ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"):
        oracle = ORACLE[f"{scheduler} shift={shift}"]
        expected = oracle["alphas_cumprod_0_250_500_750_998_999"]
        assert squares == pytest.approx(expected, rel=1e-6, abs=1e-10)
        path = SamplingPath.of(ScheduleConfig(shift_scale=shift), len(oracle["timesteps"]))
        assert path.timesteps.tolist() == oracle["timesteps"]
