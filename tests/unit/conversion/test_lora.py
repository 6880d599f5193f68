from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from app.config.schema.model import DiTConfig, LoraConfig
from app.conversion.lora import METADATA_KEY, from_peft, peft_scale, to_peft
from app.errors import WeightsError
from app.models.dit.transformer import DiffusionTransformer
from tests.support.networks import tiny

Q = "transformer.transformer_blocks.1.attn1.to_q"


def state_of(config: DiTConfig) -> dict[str, Tensor]:
    torch.manual_seed(0)
    state = DiffusionTransformer(config).state_dict()
    return {name: torch.randn_like(tensor) for name, tensor in state.items()}


def test_pairs_keep_their_bits_and_alpha_goes_into_the_metadata() -> None:
    lora = LoraConfig(rank=4, alpha=2.0)
    state = state_of(tiny("5b", lora=lora))

    peft = to_peft(state, lora, 2)

    assert len(peft.tensors) == 2 * 8
    assert torch.equal(peft.tensors[f"{Q}.lora_A.weight"], state["blocks.1.attention.q.lora_a"])
    entries = json.loads(peft.metadata[METADATA_KEY])
    assert entries["transformer.r"] == 4
    assert entries["transformer.lora_alpha"] == 2
    assert entries["transformer.target_modules"] == ["to_k", "to_out.0", "to_q", "to_v"]


def test_folded_scale_moves_alpha_into_b() -> None:
    lora = LoraConfig(rank=4, alpha=2.0)
    state = state_of(tiny("5b", lora=lora))

    peft = to_peft(state, lora, 2, fold_scale=True)

    assert torch.equal(peft.tensors[f"{Q}.lora_A.weight"], state["blocks.1.attention.q.lora_a"])
    expected = state["blocks.1.attention.q.lora_b"] * 0.5
    torch.testing.assert_close(peft.tensors[f"{Q}.lora_B.weight"], expected)
    entries = json.loads(peft.metadata[METADATA_KEY])
    assert entries["transformer.lora_alpha"] == entries["transformer.r"] == 4


def test_layers_of_a_range_are_named_in_full() -> None:
    lora = LoraConfig(rank=4, layer_range=(1,))

    peft = to_peft(state_of(tiny("5b", lora=lora)), lora, 2)

    modules = json.loads(peft.metadata[METADATA_KEY])["transformer.target_modules"]
    assert modules == [
        f"transformer_blocks.1.attn1.{name}" for name in ("to_k", "to_out.0", "to_q", "to_v")
    ]
    assert all(".1.attn1." in name for name in peft.tensors)


def test_there_and_back_is_bit_exact() -> None:
    lora = LoraConfig(rank=4)
    state = state_of(tiny("5b", lora=lora))
    peft = to_peft(state, lora, 2)

    back = dict(from_peft(peft.tensors, peft.tensors.__getitem__, "a file"))

    assert set(back) == {name for name in state if ".lora_" in name}
    assert all(torch.equal(tensor, state[name]) for name, tensor in back.items())


def test_network_without_pairs_cannot_be_exported() -> None:
    with pytest.raises(WeightsError, match="no tensor is named like"):
        to_peft(state_of(tiny("5b")), LoraConfig(rank=4), 2)


def test_adapter_on_other_modules_is_refused() -> None:
    name = "transformer.transformer_blocks.0.ff.net.2.lora_A.weight"

    with pytest.raises(WeightsError, match=r"ff\.net\.2"):
        dict(from_peft([name], lambda _: torch.zeros(1), "a file"))


def test_scale_is_read_from_the_metadata_and_one_without() -> None:
    peft = to_peft(state_of(tiny("5b", lora=LoraConfig(rank=4))), LoraConfig(rank=4, alpha=8.0), 2)

    assert peft_scale(peft.metadata, 4, "a file") == 2.0
    assert peft_scale({}, 4, "a file") == 1.0


@pytest.mark.parametrize("text", ["{", "{}", '{"transformer.r": 3, "transformer.lora_alpha": 1}'])
def test_damaged_or_contradicting_metadata_are_refused(text: str) -> None:
    with pytest.raises(WeightsError):
        peft_scale({METADATA_KEY: text}, 4, "a file")
