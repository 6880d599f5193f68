from __future__ import annotations

import pytest
import torch
from torch import Tensor

from app.config.schema.diffusion import (
    DenoiserConfig,
    GuidanceConfig,
    SamplerConfig,
    ScheduleConfig,
)
from app.config.target import Component
from app.diffusion.denoiser import Denoiser
from app.diffusion.guidance import ConstantGuidance
from app.diffusion.samplers.ddim import DdimSampler
from app.diffusion.samplers.dpmpp_2m import OdeSampler, SdeSampler
from app.diffusion.samplers.loop import Sampler
from app.distributed.seeding import GlobalDraws, KeyedDraws

SAMPLERS = [DdimSampler, OdeSampler, SdeSampler]
NOISE = torch.randn(2, 3, 2, 2, 2, generator=torch.Generator().manual_seed(0))
TEXT = torch.tensor([[0.0], [0.0], [1.0], [-1.0]])  # without a prompt, then with


def sampler_of(kind: type[Sampler], num_steps: int = 5, **changes: object) -> Sampler:
    config = SamplerConfig(
        num_steps=num_steps,
        guidance=Component("", "", GuidanceConfig()),
        **changes,  # type: ignore[arg-type]
    )
    guidance = ConstantGuidance(GuidanceConfig(scale=2.0))
    return kind(config, Denoiser(DenoiserConfig()), guidance)


def network(x: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
    return torch.sin(1.3 * x) + 0.1 * text[:, :, None, None, None]


@pytest.mark.parametrize("kind", SAMPLERS)
def test_the_network_is_asked_once_per_step_unconditional_first(kind: type[Sampler]) -> None:
    calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def spying(x: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        calls.append((x, timesteps, text))
        return network(x, timesteps, text)

    sampler_of(kind).sample(spying, NOISE, TEXT, KeyedDraws(0, [0, 1]))

    assert len(calls) == 5
    for (x, timesteps, text), expected in zip(calls, (999, 799, 599, 399, 199), strict=True):
        assert torch.equal(x[:2], x[2:])
        assert timesteps.dtype == torch.float32
        assert timesteps.tolist() == [expected] * 4
        assert text.flatten().tolist() == [0.0, 0.0, 1.0, -1.0]
    assert torch.equal(calls[0][0][:2], NOISE)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_network_that_knows_the_answer_is_believed(kind: type[Sampler]) -> None:
    sampler = sampler_of(kind)
    target = torch.full_like(NOISE, 0.7)

    def knowing(x: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        index = sampler.path.timesteps.tolist().index(int(timesteps[0]))
        a = sampler.denoiser.quantise(sampler.path.alpha_bar_sqrt[index : index + 1])
        return (a * x - torch.cat([target, target])) / (1 - a**2).sqrt()

    result = sampler.sample(knowing, NOISE, TEXT, KeyedDraws(0, [0, 1]))

    torch.testing.assert_close(result, target, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_samples_do_not_depend_on_the_batch_they_are_in(kind: type[Sampler]) -> None:
    sampler = sampler_of(kind)
    both = sampler.sample(network, NOISE, TEXT, KeyedDraws(0, [3, 8]))

    second = sampler.sample(network, NOISE[1:], TEXT[1::2], KeyedDraws(0, [8]))

    torch.testing.assert_close(both[1:], second)


def test_progress_is_called_after_each_step() -> None:
    seen: list[tuple[int, int]] = []

    sampler_of(DdimSampler, 3).sample(
        network,
        NOISE,
        TEXT,
        KeyedDraws(0, [0, 1]),
        lambda done, total: seen.append((done, total)),
    )

    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("sdedit", [False, True])
def test_fixed_frames_come_out_unchanged(kind: type[Sampler], sdedit: bool) -> None:
    sampler = sampler_of(kind, fixed_frames=2, sdedit=sdedit)

    result = sampler.sample(network, NOISE, TEXT, KeyedDraws(0, [0, 1]))

    assert torch.equal(result[:, :2], NOISE[:, :2])
    assert not torch.isclose(result[:, 2:], NOISE[:, 2:]).any()


def test_the_network_sees_fixed_frames_clean_or_noised_to_the_step_by_sdedit() -> None:
    seen: dict[bool, list[Tensor]] = {True: [], False: []}
    for sdedit, inputs in seen.items():
        sampler = sampler_of(DdimSampler, fixed_frames=1, sdedit=sdedit)
        sampler.sample(
            lambda x, t, c, inputs=inputs: inputs.append(x[:2]) or network(x, t, c),
            NOISE,
            TEXT,
            KeyedDraws(0, [0, 1]),
        )

    assert all(torch.equal(x[:, :1], NOISE[:, :1]) for x in seen[False])
    path = sampler_of(DdimSampler).path
    for i, x in enumerate(seen[True]):
        drawn = KeyedDraws(0, [0, 1]).normal_like(f"sdedit_noise/{i}", NOISE[:, :1])
        expected = path.alpha_bar_sqrt[i] * NOISE[:, :1] + path.noise_level[i] * drawn
        torch.testing.assert_close(x[:, :1], expected)


def test_upstream_s_unused_draws_are_made_only_with_upstream_s_generators() -> None:
    class Counting(KeyedDraws):
        asked: tuple[str, ...] = ()

        def normal_like(self, purpose: str, x: Tensor) -> Tensor:
            self.asked += (purpose,)
            return super().normal_like(purpose, x)

    keyed = Counting(0, [0, 1])
    sampler_of(SdeSampler, 4).sample(network, NOISE, TEXT, keyed)
    assert keyed.asked == tuple(f"sampler_noise/{i}" for i in range(3))

    torch.manual_seed(1)
    sampler_of(SdeSampler, 4).sample(network, NOISE, TEXT, GlobalDraws())
    after = torch.rand(1)
    torch.manual_seed(1)
    for _ in range(1 + 2 * 2):
        torch.randn_like(NOISE)
    assert torch.equal(after, torch.rand(1))


def test_a_step_on_a_constant_prediction_lands_on_the_next_noise_level() -> None:
    ode, sde = sampler_of(OdeSampler, 20), sampler_of(SdeSampler, 20)

    assert all(step.noise == 0 for step in ode.coefficients)  # type: ignore[attr-defined]
    for a, b in zip(ode.coefficients, sde.coefficients, strict=True):  # type: ignore[attr-defined]
        assert (a.newer, a.older) == (b.newer, b.older)
        # Both keep a constant prediction: keep * a_i - pull = a_{i+1}.
    alphas = ode.path.alpha_bar_sqrt
    for sampler in (ode, sde):
        for i, step in enumerate(sampler.coefficients):  # type: ignore[attr-defined]
            expected = pytest.approx(alphas[i + 1].item(), abs=1e-6)
            assert step.keep * alphas[i].item() - step.pull == expected


def test_no_gradient_is_kept() -> None:
    weight = torch.tensor(1.0, requires_grad=True)

    result = sampler_of(DdimSampler).sample(
        lambda x, t, c: weight * x, NOISE, TEXT, KeyedDraws(0, [0, 1])
    )

    assert not result.requires_grad


def test_the_path_ends_clean_and_starts_in_noise() -> None:
    config = ScheduleConfig(shift_scale=3.0)
    path = sampler_of(DdimSampler, 4, schedule=config).path

    assert path.timesteps.tolist() == [999, 749, 499, 249]
    assert path.alpha_bar_sqrt[0] == 0
    assert path.alpha_bar_sqrt[-1] == 1
    assert path.noise_level[-1] == 0
    assert path.num_steps == 4
