from __future__ import annotations

import pytest
import torch
from torch import Tensor

from app.config.schema.diffusion import DenoiserConfig, GuidanceConfig, SamplerConfig
from app.config.target import Component
from app.diffusion.denoiser import Denoiser
from app.diffusion.guidance import ConstantGuidance
from app.diffusion.samplers.dpmpp_2m import SdeSampler
from app.distributed.seeding import KeyedDraws
from app.evaluation.sampling import (
    LatentShape,
    SamplingJob,
    positions_of_rank,
    sample_latents,
    to_unit_range,
)
from app.models.conditioning import Conditioning

CPU = torch.device("cpu")


def network(x: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
    return torch.sin(1.3 * x) + conditioning.text.mean(dim=(1, 2))[:, None, None, None, None]


def sampler(fixed_frames: int = 0) -> SdeSampler:
    config = SamplerConfig(
        num_steps=4, guidance=Component("", "", GuidanceConfig()), fixed_frames=fixed_frames
    )
    guidance = ConstantGuidance(GuidanceConfig(scale=3.0))
    return SdeSampler(config, Denoiser(DenoiserConfig()), guidance)


def job(texts: Tensor, frames: int = 3, patch_frames: int = 1, **changes: object) -> SamplingJob:
    shape = LatentShape(frames=frames, channels=4, rows=2, columns=3, patch_frames=patch_frames)
    values = {
        "conditioning": Conditioning(texts),
        "shape": shape,
        "scale_factor": 0.5,
        "device": CPU,
    }
    return SamplingJob(**(values | changes))  # type: ignore[arg-type]


def texts_of(positions: list[int]) -> Tensor:
    return torch.stack([torch.full((2, 3), 0.1 * position) for position in positions])


def test_a_sample_does_not_depend_on_the_rank_that_makes_it() -> None:
    alone = sample_latents(sampler(), network, job(texts_of([0, 1, 2])), KeyedDraws(5, [0, 1, 2]))

    for rank in range(2):
        mine = list(positions_of_rank(3, rank, 2))
        part = sample_latents(sampler(), network, job(texts_of(mine)), KeyedDraws(5, mine))
        torch.testing.assert_close(part, alone[mine])


@pytest.mark.parametrize(("count", "world_size"), [(7, 3), (2, 4), (0, 2), (8, 1)])
def test_ranks_share_the_prompts_once_and_evenly(count: int, world_size: int) -> None:
    shares = [positions_of_rank(count, rank, world_size) for rank in range(world_size)]

    assert sorted(position for share in shares for position in share) == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_latents_are_divided_by_the_scale_factor() -> None:
    scaled = sample_latents(
        sampler(), network, job(texts_of([0]), scale_factor=1.0), KeyedDraws(5, [0])
    )

    divided = sample_latents(sampler(), network, job(texts_of([0])), KeyedDraws(5, [0]))

    torch.testing.assert_close(divided, scaled * 2)


def test_padding_is_sampled_and_dropped() -> None:
    seen: list[int] = []

    def counting(x: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        seen.append(x.shape[1])
        return network(x, timesteps, text)

    padded = sample_latents(
        sampler(), counting, job(texts_of([0]), frames=3, patch_frames=2), KeyedDraws(5, [0])
    )

    longer = sample_latents(sampler(), network, job(texts_of([0]), frames=4), KeyedDraws(5, [0]))
    assert set(seen) == {4}
    torch.testing.assert_close(padded, longer[:, 1:])


def test_a_prefix_comes_out_as_it_went_in() -> None:
    prefix = torch.rand(1, 2, 4, 2, 3)

    latents = sample_latents(
        sampler(fixed_frames=2), network, job(texts_of([0]), prefix=prefix), KeyedDraws(5, [0])
    )

    torch.testing.assert_close(latents[:, :2], prefix / 0.5)


def test_latents_come_in_the_dtype_of_the_vae() -> None:
    latents = sample_latents(
        sampler(), network, job(texts_of([0]), dtype=torch.bfloat16), KeyedDraws(5, [0])
    )

    assert latents.dtype == torch.bfloat16


def test_unit_range_maps_minus_one_to_zero_and_cuts_the_rest() -> None:
    pixels = torch.tensor([-1.5, -1.0, 0.0, 1.0, 2.0])

    assert to_unit_range(pixels).tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]
