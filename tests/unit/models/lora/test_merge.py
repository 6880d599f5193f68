from __future__ import annotations

import pytest
import torch
from torch import nn

from app.config.schema.model import LoraConfig
from app.models.dit.transformer import DiffusionTransformer
from app.models.lora.inject import lora_layers, reset_lora
from app.models.lora.linear import LoraLinear
from app.models.lora.merge import merge_lora, merged_tensors, unmerge_lora
from tests.support.networks import KINDS, inputs, tiny


def network_of(kind: str, lora: LoraConfig) -> DiffusionTransformer:
    torch.manual_seed(0)
    network = DiffusionTransformer(tiny(kind, lora=lora), dtype=torch.float64)
    for _, layer in lora_layers(network):
        nn.init.normal_(layer.lora_b)
    return network


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
    unmerged = network(*batch)

    merge_lora(network)

    torch.testing.assert_close(network(*batch), unmerged)
    assert not list(lora_layers(network))
    assert not any("lora" in name for name in network.state_dict())


def test_merging_moves_the_output() -> None:
    network = network_of("5b", LoraConfig(rank=4, alpha=8.0))
    batch = inputs(tiny("5b"))
    with_pairs = network(*batch)

    for _, layer in lora_layers(network):
        nn.init.zeros_(layer.lora_b)

    assert (network(*batch) - with_pairs).abs().max() > 1e-3


def test_unmerge_restores_weights_and_pairs() -> None:
    network = network_of("5b", LoraConfig(rank=4, alpha=8.0))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    layers = merge_lora(network)
    unmerge_lora(network, layers)

    after = network.state_dict()
    assert list(after) == list(before)
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor)
    assert isinstance(network.blocks[1].attention.out, LoraLinear)


def test_merging_tensors_equals_merging_the_network() -> None:
    network = network_of("5b", LoraConfig(rank=4, alpha=8.0, layer_range=(0,)))

    tensors = merged_tensors(network.state_dict(), 8.0 / 4)
    merge_lora(network)

    expected = network.state_dict()
    assert set(tensors) == set(expected)
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, expected[name])


def test_reset_starts_pairs_from_the_given_generator() -> None:
    network = network_of("5b", LoraConfig(rank=4))

    reset_lora(network, torch.Generator().manual_seed(1))
    first = network.blocks[0].attention.q.lora_a.clone()
    reset_lora(network, torch.Generator().manual_seed(1))

    assert torch.equal(network.blocks[0].attention.q.lora_a, first)
    assert first.abs().max() <= 32**-0.5
    assert network.blocks[0].attention.q.lora_b.abs().max() == 0
