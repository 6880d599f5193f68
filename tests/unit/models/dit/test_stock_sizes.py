"""The released sizes, built without memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from app.config.schema.model import DiTConfig, LoraConfig
from app.conversion.sat import PREFIX, to_sat
from app.models.dit.transformer import DiffusionTransformer
from tests.support.networks import KINDS, stock

PARAMETERS = {
    "2b": 1_727_913_792,
    "5b": 5_570_283_072,
    "5b_i2v": 5_625_087_552,
    "1.5": 5_570_676_352,
    "1.5_i2v": 5_571_594_880,
}
BLOCK = {"2b": 56_081_536} | dict.fromkeys(KINDS[1:], 132_197_632)
KEYS = {"2b": 557, "5b": 772, "5b_i2v": 773, "1.5": 772, "1.5_i2v": 776}
PATCH_WEIGHT = {"2b": 64, "5b": 64, "5b_i2v": 128, "1.5": 128, "1.5_i2v": 256}


def on_meta(config: DiTConfig) -> DiffusionTransformer:
    return DiffusionTransformer(config, device="meta", dtype=torch.bfloat16)


def count(network: torch.nn.Module, *, trainable_only: bool = False) -> int:
    parameters = network.parameters()
    return sum(p.numel() for p in parameters if p.requires_grad or not trainable_only)


@pytest.mark.parametrize("kind", KINDS)
def test_parameter_counts_are_the_released_ones(kind: str) -> None:
    network = on_meta(stock(kind))

    assert count(network) == PARAMETERS[kind]
    assert count(network.blocks[0]) == BLOCK[kind]
    fixed_table = 34_129_920 if kind == "2b" else 0
    assert count(network, trainable_only=True) == PARAMETERS[kind] - fixed_table
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in network.parameters())


@pytest.mark.parametrize(
    ("kind", "rank", "trained"),
    [("2b", 128, 58_982_400), ("5b", 128, 132_120_576), ("5b_i2v", 256, 264_241_152)],
)
def test_lora_pairs_hold_the_numbers_of_the_stock_recipes(
    kind: str, rank: int, trained: int
) -> None:
    network = on_meta(replace(stock(kind), lora=LoraConfig(rank=rank)))

    pairs = [p.numel() for name, p in network.named_parameters() if ".lora_" in name]

    assert sum(pairs) == trained
    assert count(network) == PARAMETERS[kind] + trained


@pytest.mark.parametrize("kind", KINDS)
def test_sat_keys_and_shapes_are_those_of_the_released_files(kind: str) -> None:
    config = stock(kind)
    network = on_meta(config)

    keys = {k: tuple(t.shape) for k, t in to_sat(network.state_dict(), config.patch).items()}

    h, layer = config.hidden_size, f"{PREFIX}transformer.layers.{config.num_layers - 1}."
    assert len(keys) == KEYS[kind]
    assert keys[f"{layer}attention.query_key_value.weight"] == (3 * h, h)
    assert keys[f"{layer}mlp.dense_4h_to_h.weight"] == (h, 4 * h)
    assert keys[f"{PREFIX}mixins.adaln_layer.adaLN_modulations.0.1.weight"] == (12 * h, 512)
    assert keys[f"{PREFIX}mixins.adaln_layer.query_layernorm_list.3.bias"] == (64,)
    assert keys[f"{PREFIX}mixins.patch_embed.proj.weight"] == (h, PATCH_WEIGHT[kind])
    assert keys[f"{PREFIX}mixins.patch_embed.text_proj.weight"] == (h, 4096)
    features = 128 if kind.startswith("1.5") else 64
    assert keys[f"{PREFIX}mixins.final_layer.linear.weight"] == (features, h)
    assert keys[f"{PREFIX}mixins.final_layer.adaLN_modulation.1.bias"] == (2 * h,)
    table = f"{PREFIX}mixins.pos_embed.pos_embedding"
    assert keys.get(table) == ((1, 17776, h) if kind in ("2b", "5b_i2v") else None)


@pytest.mark.parametrize("kind", ["2b", "5b_i2v"])
def test_v1_layout_has_the_conv_patch_weight_of_the_released_files(kind: str) -> None:
    config = stock(kind)

    keys = to_sat(on_meta(config).state_dict(), config.patch, "v1")

    weight = keys[f"{PREFIX}mixins.patch_embed.proj.weight"]
    assert tuple(weight.shape) == (config.hidden_size, config.in_channels, 2, 2)
