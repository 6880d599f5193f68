from __future__ import annotations

import math

import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding

from app.models.dit.timestep import ScalarEmbedding, sinusoid


def test_cosines_stand_before_sines() -> None:
    waves = sinusoid(torch.tensor([3]), 8)

    frequencies = [10000 ** (-i / 4) for i in range(4)]
    expected = [math.cos(3 * f) for f in frequencies] + [math.sin(3 * f) for f in frequencies]
    torch.testing.assert_close(waves[0], torch.tensor(expected))


def test_sinusoid_equals_that_of_diffusers() -> None:
    timesteps = torch.arange(0, 1000, 37)

    ours = sinusoid(timesteps, 64)

    theirs = get_timestep_embedding(timesteps, 64, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_odd_width_ends_with_a_zero_column() -> None:
    waves = sinusoid(torch.tensor([1.5, 2.0]), 7)

    assert waves.shape == (2, 7)
    assert torch.equal(waves[:, :6], sinusoid(torch.tensor([1.5, 2.0]), 6))
    assert torch.equal(waves[:, 6], torch.zeros(2))


@pytest.mark.parametrize(
    "values", [torch.tensor([7]), torch.tensor([7.0]), torch.tensor([7]).int()]
)
def test_whole_and_broken_numbers_give_the_same(values: torch.Tensor) -> None:
    assert torch.equal(sinusoid(values, 16), sinusoid(torch.tensor([7.0]), 16))


def test_embedding_makes_angles_in_fp32_whatever_the_weights() -> None:
    embedding = ScalarEmbedding(16, 8, dtype=torch.bfloat16)

    out = embedding(torch.tensor([999]))

    low = sinusoid(torch.tensor([999]), 16).bfloat16()
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, embedding[2](torch.nn.functional.silu(embedding[0](low))))
