from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from app.config.schema.model import LoraConfig
from app.models.conditioning import Conditioning
from app.models.dit.initialization import init_from_scratch
from app.models.dit.transformer import DiffusionTransformer
from tests.support.networks import tiny


def fresh(seed: int, *, zero_gates: bool = True, kind: str = "5b_i2v") -> DiffusionTransformer:
    config = replace(tiny(kind), hidden_size=128, num_attention_heads=2, inner_hidden_size=512)
    network = DiffusionTransformer(config)
    init_from_scratch(network, torch.Generator().manual_seed(seed), zero_gates=zero_gates)
    return network


def test_spreads_are_those_of_the_original() -> None:
    network = fresh(0)
    block = network.blocks[1]

    assert block.attention.k.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.mlp.up.weight.std().item() == pytest.approx(0.02, rel=0.05)
    output_std = 0.02 / math.sqrt(2 * 2)
    assert block.attention.out.weight.std().item() == pytest.approx(output_std, rel=0.05)
    assert block.mlp.down.weight.std().item() == pytest.approx(output_std, rel=0.05)
    bound = math.sqrt(6 / sum(network.patch.video.weight.shape))
    assert network.patch.video.weight.abs().max().item() == pytest.approx(bound, rel=0.02)


def test_biases_are_zero_where_the_original_has_them_zero() -> None:
    network = fresh(0)
    block = network.blocks[0]

    for linear in (block.attention.q, block.attention.out, block.mlp.up, block.mlp.down):
        assert linear.bias.abs().max() == 0
    assert network.patch.video.bias.abs().max() == network.final.linear.bias.abs().max() == 0
    assert network.patch.text.bias.abs().max() > 0


def test_closed_gates_make_every_block_the_identity() -> None:
    network = fresh(0)
    seen = {}
    network.blocks[0].register_forward_pre_hook(lambda _, args: seen.update(before=args[0]))
    network.norm.register_forward_pre_hook(lambda _, args: seen.update(after=args[0]))
    config = network.config
    latents = torch.randn(1, 2, 32, 8, 12)

    network(latents, torch.tensor([9]), Conditioning(torch.randn(1, 5, config.text_hidden_size)))

    assert torch.equal(seen["before"], seen["after"])


def test_open_gates_keep_torchs_default() -> None:
    assert fresh(0, zero_gates=False).blocks[0].modulation.weight.chunk(12)[2].abs().max() > 0


def test_same_seed_gives_the_same_network_whatever_the_global_generator() -> None:
    torch.manual_seed(1)
    first = fresh(5)
    torch.manual_seed(2)
    second = fresh(5)

    for (name, one), two in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(one, two), name


def test_tables_start_as_the_config_says() -> None:
    learned, fixed = fresh(0), fresh(0, kind="2b")
    assert learned.position is not None
    assert fixed.position is not None

    assert learned.position.table.abs().max() == 0
    assert torch.equal(fixed.position.table, fixed.position.computed())


def test_adapters_keep_their_start() -> None:
    network = DiffusionTransformer(tiny("5b", lora=LoraConfig(rank=2)))
    before = network.blocks[0].attention.q.lora_a.clone()

    init_from_scratch(network)

    assert torch.equal(network.blocks[0].attention.q.lora_a, before)
