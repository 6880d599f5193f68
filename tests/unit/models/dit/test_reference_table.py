"""Outputs of six small networks with weights and inputs given by formulas.

The numbers were produced by upstream's code.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from app.config.schema.model import DiTConfig, LoraConfig
from app.conversion.sat import PREFIX, from_sat, to_sat
from app.models.conditioning import Conditioning
from app.models.dit.transformer import DiffusionTransformer
from tests.support.networks import stock

# mean, population standard deviation, sum of magnitudes, first six, last three, y[1, 1, 3, 5, 7]
EXPECTED = {
    "2b": (
        (-0.20579658, 1.25823021, 10214.6078),
        (-0.4534643, -0.6793491, -0.5372683, -0.7813605, -0.6031013, -0.9124345),
        (0.0137174, -0.2561148, 0.0227594),
        1.0387173,
    ),
    "2b_lora": (
        (-0.20718848, 1.26583224, 10276.7250),
        (-0.4296297, -0.6652090, -0.5132162, -0.7664974, -0.5781507, -0.8956159),
        (-0.0278727, -0.2955275, -0.0196534),
        1.0209434,
    ),
    "5b": (
        (-0.07269622, 1.09965894, 8038.5314),
        (-0.0249509, 0.2685962, -0.3266456, -0.1345575, -0.8481646, -0.8594367),
        (1.0736221, 1.0449409, 0.9993750),
        -0.3889121,
    ),
    "5b_i2v": (
        (-0.05301816, 1.01680395, 8036.7620),
        (-0.5004601, -0.1490428, -0.4586806, -0.2068914, -0.5319155, -0.3224113),
        (-0.5683314, -0.9194198, -0.6479957),
        1.8187890,
    ),
    "1.5": (
        (0.04032236, 0.89027637, 9840.0642),
        (-1.1016725, -1.0244398, -1.1069444, -1.0421908, -1.1572391, -1.1103880),
        (0.2518636, 0.5505878, 0.2408031),
        -0.5185416,
    ),
    "1.5_i2v": (
        (0.02370388, 0.46419855, 5125.1777),
        (-0.6114361, -0.5571670, -0.6076633, -0.5653911, -0.6025932, -0.5689815),
        (0.0429969, 0.2210793, 0.0803537),
        -0.2260119,
    ),
}


def config_of(variant: str) -> DiTConfig:
    kind = variant.removesuffix("_lora")
    config = stock(kind)
    return replace(
        config,
        num_layers=2,
        num_attention_heads=2,
        hidden_size=128,
        inner_hidden_size=512,
        text_hidden_size=32,
        latent_height=8,
        latent_width=12,
        num_frames=13 if kind.startswith("1.5") else 9,
        position=replace(config.position, text_length=6),
        lora=LoraConfig(rank=4) if variant.endswith("_lora") else None,
    )


def formula(key: str, shape: tuple[int, ...]) -> Tensor:
    phase = 2 * math.pi * 0.001 * (zlib.crc32(key.encode()) % 1000)
    j = torch.arange(math.prod(shape), dtype=torch.float64)
    values = 0.05 * torch.sin(0.1 * j + phase)
    if "norm" in key and key.endswith("weight"):
        values = values + 1.0
    return values.float().reshape(shape)


def wave(shape: tuple[int, ...], function: str, step: float) -> Tensor:
    j = torch.arange(math.prod(shape), dtype=torch.float64)
    return getattr(torch, function)(step * j).float().reshape(shape)


@pytest.mark.parametrize("variant", EXPECTED)
def test_small_network_gives_upstreams_numbers(variant: str) -> None:
    config = config_of(variant)
    network = DiffusionTransformer(config)
    weights = {
        key: formula(key.removeprefix(PREFIX), tuple(value.shape))
        for key, value in to_sat(network.state_dict(), config.patch).items()
    }
    ours = dict(from_sat(weights, weights.__getitem__, variant)) | network.computed_parameters()
    network.load_state_dict(ours)
    frames = 4 if variant.startswith("1.5") else 3
    x = wave((2, frames, config.in_channels, 8, 12), "sin", 0.37)
    text = wave((2, 6, 32), "cos", 0.11)
    ofs = torch.tensor([2.0]) if config.ofs_embed_dim else None

    with torch.no_grad():
        y = network(x, torch.tensor([999, 123]), Conditioning(text, ofs=ofs))

    moments, first, last, one = EXPECTED[variant]
    measured = (y.mean(), y.std(correction=0), y.abs().sum() / y.numel())
    expected = (moments[0], moments[1], moments[2] / y.numel())
    torch.testing.assert_close(torch.stack(measured), torch.tensor(expected), rtol=0, atol=2e-6)
    torch.testing.assert_close(y.flatten()[:6], torch.tensor(first), rtol=0, atol=5e-6)
    torch.testing.assert_close(y.flatten()[-3:], torch.tensor(last), rtol=0, atol=5e-6)
    assert y[1, 1, 3, 5, 7].item() == pytest.approx(one, abs=5e-6)
