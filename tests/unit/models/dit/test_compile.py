"""Compiled blocks: the same numbers, under the same names."""

from __future__ import annotations

import pytest
import torch

from app.models.conditioning import Conditioning
from app.models.dit.transformer import DiffusionTransformer
from tests.support.networks import tiny


@pytest.mark.slow
def test_compiled_blocks_keep_numbers_and_names() -> None:
    torch.manual_seed(0)
    network = DiffusionTransformer(tiny("5b"))
    names = list(network.state_dict())
    latents = torch.randn(1, 3, network.config.in_channels, 4, 8)
    text = torch.randn(1, 5, network.config.text_hidden_size)
    timesteps = torch.tensor([500])
    expected = network(latents, timesteps, Conditioning(text=text))

    network.compile_blocks()
    compiled = network(latents, timesteps, Conditioning(text=text))

    torch.testing.assert_close(compiled, expected, rtol=1e-5, atol=1e-5)
    assert list(network.state_dict()) == names
