"""The samplers against recorded trajectories, and against numbers that need no recording."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from app.config.schema.diffusion import (
    DenoiserConfig,
    GuidanceConfig,
    SamplerConfig,
    ScheduleConfig,
)
from app.config.sections.parse import parse_denoiser, parse_sampler
from app.config.target import Component
from app.diffusion.denoiser import Denoiser
from app.diffusion.guidance import ConstantGuidance, DynamicGuidance, Guidance
from app.diffusion.samplers.ddim import DdimSampler
from app.diffusion.samplers.dpmpp_2m import OdeSampler, SdeSampler, sde_coefficients
from app.diffusion.samplers.loop import Sampler
from app.diffusion.samplers.path import SamplingPath
from app.diffusion.scaling import noise_level
from app.diffusion.schedule import NoiseSchedule
from app.distributed.seeding import GlobalDraws
from app.models.conditioning import Conditioning
from app.models.dit.transformer import DiffusionTransformer
from app.registry import TARGETS
from tests.parity.golden import Case, cases, name_of, placed, text_embedding
from tests.parity.recorded_draws import RecordedDraws
from tests.parity.recorded_network import network_of

ITEMS = ("08",)
ORACLE = json.loads((Path(__file__).parent / "data" / "diffusers_oracle.json").read_text())


def class_of(implementation: str) -> Any:
    module, name = implementation.split(":")
    return getattr(importlib.import_module(module), name)


def sampler_of(case: Case) -> Sampler:
    model = case.json["model_config"]
    part = parse_sampler(model["sampler_config"], case.path.name, TARGETS)
    denoiser = Denoiser(parse_denoiser(model["denoiser_config"], case.path.name, TARGETS))
    guidance = part.params.guidance
    scale = class_of(guidance.implementation)(guidance.params)
    return class_of(part.implementation)(part.params, denoiser, scale)


@dataclass
class Trace:
    """What one sampling run did at each step, seen from outside of the loop."""

    x_in: list[Tensor] = field(default_factory=list)
    both: list[Tensor] = field(default_factory=list)
    alphas: list[Tensor] = field(default_factory=list)
    scales: list[float] = field(default_factory=list)
    stepped: list[Tensor] = field(default_factory=list)  # the last step makes none

    def watch(self, sampler: Sampler) -> None:
        """Listen at the sampler's denoiser, guidance and step rule."""
        denoise, scale, step = sampler.denoiser.denoise, sampler.guidance.scale, sampler.step

        def seen_denoise(network: Any, noisy: Tensor, alphas: Tensor, *rest: Any) -> Tensor:
            self.x_in.append(noisy.chunk(2)[0])
            self.alphas.append(alphas)
            self.both.append(denoise(network, noisy, alphas, *rest))
            return self.both[-1]

        def seen_scale(timestep: float, index: int, count: int) -> float:
            self.scales.append(scale(timestep, index, count))
            return self.scales[-1]

        def seen_step(index: int, x: Tensor, denoised: Tensor, *rest: Any) -> Tensor:
            self.stepped.append(step(index, x, denoised, *rest))
            return self.stepped[-1]

        sampler.denoiser.denoise = seen_denoise  # type: ignore[method-assign,assignment]
        sampler.guidance.scale = seen_scale  # type: ignore[method-assign]
        sampler.step = seen_step  # type: ignore[method-assign,assignment]

    @property
    def denoised(self) -> list[Tensor]:
        """The guided prediction of each step, by the scale that the step had."""
        halves = [both.chunk(2) for both in self.both]
        return [u + g * (c - u) for (u, c), g in zip(halves, self.scales, strict=True)]


def recorded_draws(case: Case, config: SamplerConfig) -> RecordedDraws:
    recorded = {}
    for i in range(config.num_steps):
        names = case.names(f"step{i}/draw")
        assert len(names) == int(case.tensor("draws_per_step")[i])
        if config.fixed_frames and config.sdedit:  # drawn before the step itself
            recorded[f"sdedit_noise/{i}"] = case.tensor(names.pop(0))
        if names:
            recorded[f"sampler_noise/{i}"] = case.tensor(names[-1])
        if len(names) == 2:
            recorded[f"sampler_noise_unused/{i}"] = case.tensor(names[0])
    return RecordedDraws(recorded)


def conditioning_of(case: Case, network: DiffusionTransformer) -> Conditioning:
    """With the prompt; without one it is recorded as zeros and the same image."""
    text, nothing = case.tensor("cond"), case.tensor("uncond")
    expected = text_embedding(case.json["prompt"], *text.shape[1:])
    case.assert_close(text, expected.expand(text.shape), "cond")
    assert not nothing.any(), "no prompt is an embedding of zeros"
    image = placed(case.tensor("concat")) if case.has("concat") else None
    ofs = None
    if case.has("ofs"):
        ofs = case.tensor("ofs").float().reshape(-1)
    elif network.config.ofs_embed_dim:
        ofs = torch.tensor([2.0])
    return Conditioning(placed(text), image, placed(ofs))


def start_of(case: Case) -> Tensor:
    """The noise, its first frames replaced where clean ones are given.

    The noise is recorded as drawn or with the frames in it; they are the same everywhere else.
    """
    noise = case.tensor("initial_noise")
    prefix = case.tensor("prefix") if case.has("prefix") else noise[:, :0]
    return placed(
        torch.cat(
            [prefix.expand(len(noise), *prefix.shape[1:]), noise[:, prefix.shape[1] :]], dim=1
        )
    )


@pytest.mark.parametrize("case", cases(*ITEMS), ids=name_of)
def test_trajectory_is_the_recorded_one(case: Case) -> None:
    with case:
        sampler, network = sampler_of(case), network_of(case)
        count = sampler.config.num_steps
        draws, trace = recorded_draws(case, sampler.config), Trace()
        trace.watch(sampler)

        final = sampler.sample(
            network, start_of(case), conditioning_of(case, network).for_guidance(), draws
        )

        assert set(draws.asked) == set(draws.recorded)
        assert len(draws.asked) == int(case.tensor("draws_per_step").sum())
        check_scalars(case, sampler, trace)
        case.assert_close(final, case.tensor("final"), "step", "final")
        # A step's output is recorded before fixed frames are put back; the last one's is x0.
        predictions = trace.denoised
        outputs = [*trace.stepped, predictions[-1]]
        for i in range(count):
            case.assert_close(trace.x_in[i], case.tensor(f"step{i}/x_in"), "step", f"{i} x_in")
            case.assert_close(outputs[i], case.tensor(f"step{i}/x_out"), "step", f"{i} x_out")
            expected = case.tensor(f"step{i}/denoised")
            case.assert_close(predictions[i], expected, "step", f"{i} denoised")
            for half, name in zip(trace.both[i].chunk(2), ("uncond", "cond"), strict=True):
                if case.has(f"step{i}/denoised_{name}"):
                    expected = case.tensor(f"step{i}/denoised_{name}")
                    case.assert_close(half, expected, "step", f"{i} {name}")


def check_scalars(case: Case, sampler: Sampler, trace: Trace) -> None:
    alphas = torch.stack([alphas[0] for alphas in trace.alphas])
    case.assert_close(alphas, case.tensor("alphas"), "alphas")
    quantised = sampler.denoiser.quantise(alphas)
    case.assert_close(quantised, case.tensor("alphas_quantized_in_denoiser"), "alphas")
    assert sampler.path.timesteps.tolist() == case.tensor("idx").tolist()
    scales = torch.tensor(trace.scales, dtype=torch.float64)
    case.assert_close(scales, case.tensor("scale_f64"), "scale")


# Numbers of the original for a network without weights.


def toy_network(x: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
    v = torch.sin(1.3 * x) + 1e-5 * timesteps.reshape(-1, 1, 1, 1, 1)
    return v + text.mean(dim=(1, 2)).reshape(-1, 1, 1, 1, 1)


def sampler_with(
    kind: type[Sampler], shift: float, guidance: Guidance, num_steps: int = 50
) -> Sampler:
    schedule = ScheduleConfig(shift_scale=shift)
    part = Component("", "", GuidanceConfig())
    config = SamplerConfig(num_steps=num_steps, guidance=part, schedule=schedule)
    denoiser = Denoiser(DenoiserConfig(schedule=schedule))
    return kind(config, denoiser, guidance)


DYNAMIC = DynamicGuidance(GuidanceConfig(scale=6, exp=5, num_steps=50))
CONSTANT = ConstantGuidance(GuidanceConfig(scale=6))
# fmt: off
TOY: list[tuple[type[Sampler], float, Guidance, list[float]]] = [
    (DdimSampler, 1.0, DYNAMIC, [
        0.090449, 0.235800, 0.060013, -0.030597, 0.152871, 0.199478, 0.003290, 0.014461,
        0.210160, 0.139698, -0.036454, 0.072734, 0.237493, 0.077531, -0.038199, 0.134757]),
    (DdimSampler, 3.0, DYNAMIC, [
        0.073928, 0.210304, 0.045545, -0.038834, 0.132291, 0.176052, -0.007282, 0.003118,
        0.186111, 0.119955, -0.044290, 0.057404, 0.211904, 0.061877, -0.045915, 0.115331]),
    (DdimSampler, 1.0, CONSTANT, [
        0.174203, 0.326353, 0.143458, 0.054123, 0.238461, 0.287503, 0.087156, 0.098144,
        0.298871, 0.224765, 0.048457, 0.156262, 0.328177, 0.161107, 0.046772, 0.219647]),
    (OdeSampler, 1.0, DYNAMIC, [
        0.087353, 0.242752, 0.054548, -0.042554, 0.154492, 0.204253, -0.006392, 0.005575,
        0.215601, 0.140361, -0.048782, 0.068257, 0.244541, 0.073427, -0.050636, 0.135054]),
    (SdeSampler, 1.0, DYNAMIC, [
        -0.100574, 0.790724, 0.190069, 0.185718, -0.209864, 0.803406, -0.086668, 0.476833,
        0.564920, 0.116288, 0.029526, 0.143678, 0.173849, -0.939244, -0.029652, -0.019179]),
    (SdeSampler, 3.0, DYNAMIC, [
        -0.134037, 0.727732, 0.041773, 0.130421, -0.219496, 0.727972, -0.077592, 0.410694,
        0.493361, 0.073033, -0.012327, 0.132700, 0.064197, -1.088419, -0.067458, -0.158059]),
]
# fmt: on


@pytest.mark.parametrize(("kind", "shift", "guidance", "expected"), TOY)
def test_fifty_steps_of_a_network_without_weights(
    kind: type[Sampler], shift: float, guidance: Guidance, expected: list[float]
) -> None:
    start = torch.sin(1.7 * torch.arange(16)).reshape(1, 2, 2, 2, 2)
    text = torch.cos(0.5 * torch.arange(12)).reshape(1, 3, 4)
    sampler = sampler_with(kind, shift, guidance)

    torch.manual_seed(7)
    both = torch.cat([torch.zeros(1, 3, 4), text])
    result = sampler.sample(toy_network, start, both, GlobalDraws())

    assert result.flatten().tolist() == pytest.approx(expected, abs=6e-6)


def test_stochastic_coefficients_have_the_known_values() -> None:
    path = SamplingPath.of(ScheduleConfig(), 50)

    steps = path.half_log_snr().diff()
    coefficients = sde_coefficients(path)

    known = {  # keep, pull, newer, older, noise
        0: (0, -0.009268, 1, 0, 0.999957),
        1: (0.47806, -0.0149504, 1, 0, None),
        2: (0.637755, -0.0180125, 1.30461, 0.30461, 0.769739),
        24: (0.91322, -0.0676294, 1.48955, 0.48955, 0.322449),
        48: (0.455952, -0.544, 1.82434, 0.824335, 0.0987223),
    }
    for i, (*expected, noise) in known.items():
        step = coefficients[i]
        ours = [step.keep, step.pull, step.newer, step.older]
        assert ours == pytest.approx(expected, rel=2e-5, abs=1e-6)
        assert noise is None or step.noise == pytest.approx(noise, rel=2e-6)
    assert steps[1].item() == pytest.approx(0.737874, rel=2e-6)
    assert len(coefficients) == 49


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(
    ("kind", "scheduler"),
    [(DdimSampler, "CogVideoXDDIMScheduler"), (SdeSampler, "CogVideoXDPMScheduler")],
)
def test_ten_steps_are_those_of_diffusers(
    kind: type[Sampler], scheduler: str, shift: float
) -> None:
    # diffusers does not rescale the table of the ten steps again: give the loop its numbers.
    sampler = sampler_with(kind, shift, ConstantGuidance(GuidanceConfig(scale=1.0)), num_steps=10)
    table = NoiseSchedule(sampler.config.schedule).alpha_bar_sqrt
    alphas = torch.cat([table[sampler.path.timesteps], torch.ones(1)])
    sampler.path = SamplingPath(alphas, noise_level(alphas), sampler.path.timesteps)
    if isinstance(sampler, SdeSampler):
        sampler.coefficients = sde_coefficients(sampler.path)
    start = (torch.arange(768) / 768).reshape(3, 8, 8, 4).permute(3, 0, 1, 2)[:, None]

    def network(x: Tensor, timesteps: Tensor, _: Tensor) -> Tensor:
        t = timesteps.reshape(-1, 1, 1, 1, 1)
        return x * t / (t + 1)

    torch.manual_seed(0)
    result = sampler.sample(network, start.contiguous(), torch.zeros(8, 1, 1), GlobalDraws())

    oracle = ORACLE[f"{scheduler} shift={shift}"]
    assert result.abs().sum().item() == pytest.approx(oracle["loop10_abs_sum"], rel=2e-5)
    assert result.abs().mean().item() == pytest.approx(oracle["loop10_abs_mean"], abs=2e-6)
