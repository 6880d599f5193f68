from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from app.config.schema.model import LoraConfig
from app.models.dit.transformer import DiffusionTransformer
from app.models.lora.inject import lora_layers, reset_lora
from app.models.lora.merge import merged_tensors
from tests.support.networks import KINDS, inputs, tiny


def network_of(kind: str, lora: LoraConfig) -> DiffusionTransformer:
    torch.manual_seed(0)
    network = DiffusionTransformer(tiny(kind, lora=lora), dtype=torch.float64)
    for _, layer in lora_layers(network):
        nn.init.normal_(layer.lora_b)
    return network


def merged_network(network: DiffusionTransformer) -> DiffusionTransformer:
    lora = network.config.lora
    assert lora is not None
    plain = DiffusionTransformer(replace(network.config, lora=None), dtype=torch.float64)
    plain.load_state_dict(merged_tensors(network.state_dict(), lora.alpha / lora.rank))
    return plain


def test_pairs_sit_on_the_four_projections_of_every_layer() -> None:
    network = network_of("5b", LoraConfig(rank=3))

    names = [name for name, _ in lora_layers(network)]

    assert names == [f"blocks.{i}.attention.{p}" for i in range(2) for p in ("q", "k", "v", "out")]
    assert network.blocks[0].attention.q.lora_a.shape == (3, 32)


def test_layer_range_names_the_layers_that_get_pairs() -> None:
    network = network_of("5b", LoraConfig(rank=3, layer_range=(1,)))

    assert {name.split(".")[1] for name, _ in lora_layers(network)} == {"1"}
    assert type(network.blocks[0].attention.q) is nn.Linear


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alpha", [1.0, 8.0])
def test_merged_network_gives_the_same_output(kind: str, alpha: float) -> None:
    network = network_of(kind, LoraConfig(rank=4, alpha=alpha))
    batch = inputs(tiny(kind))

    merged = merged_network(network)

    torch.testing.assert_close(merged(*batch), network(*batch))
    assert not list(lora_layers(merged))
    assert not any("lora" in name for name in merged.state_dict())


def test_merging_moves_the_output() -> None:
    network = network_of("5b", LoraConfig(rank=4, alpha=8.0))
    batch = inputs(tiny("5b"))
    with_pairs = network(*batch)

    for _, layer in lora_layers(network):
        nn.init.zeros_(layer.lora_b)

    assert (network(*batch) - with_pairs).abs().max() > 1e-3


def test_only_weights_with_a_pair_change() -> None:
    network = network_of("5b", LoraConfig(rank=4, alpha=8.0, layer_range=(0,)))
    state = network.state_dict()

    tensors = merged_tensors(state, 8.0 / 4)

    assert set(tensors) == {name for name in state if ".lora_" not in name}
    for name, tensor in tensors.items():
        layer = name.removesuffix(".weight")
        expected = state[name]
        if f"{layer}.lora_a" in state and name.endswith(".weight"):
            expected = expected + 2.0 * state[f"{layer}.lora_b"] @ state[f"{layer}.lora_a"]
        torch.testing.assert_close(tensor, expected)


def test_reset_starts_pairs_from_the_given_generator() -> None:
    network = network_of("5b", LoraConfig(rank=4))

    reset_lora(network, torch.Generator().manual_seed(1))
    first = network.blocks[0].attention.q.lora_a.clone()
    reset_lora(network, torch.Generator().manual_seed(1))

    assert torch.equal(network.blocks[0].attention.q.lora_a, first)
    assert first.abs().max() <= 32**-0.5
    assert network.blocks[0].attention.q.lora_b.abs().max() == 0
