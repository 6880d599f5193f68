from __future__ import annotations

import torch
from torch import nn

from app.models.lora.linear import LoraLinear
from app.models.lora.merge import merged_tensors


def layer(*, dropout: float = 0.0, alpha: float = 3.0) -> LoraLinear:
    torch.manual_seed(0)
    made = LoraLinear(nn.Linear(6, 5).double(), rank=2, alpha=alpha, dropout=dropout)
    nn.init.normal_(made.lora_b)
    return made


def test_output_is_the_base_plus_the_scaled_low_rank_update() -> None:
    lora = layer()
    x = torch.randn(4, 6, dtype=torch.float64)

    update = (3.0 / 2) * lora.lora_b @ lora.lora_a
    expected = x @ (lora.weight + update).T + lora.bias
    torch.testing.assert_close(lora(x), expected)


def test_new_pair_changes_nothing_and_starts_within_its_bound() -> None:
    base = nn.Linear(64, 32)
    lora = LoraLinear(base, rank=8, alpha=1.0, dropout=0.0)
    x = torch.randn(3, 64)

    assert torch.equal(lora(x), base(x))
    assert lora.lora_b.abs().max() == 0
    assert 0.9 / 8 < lora.lora_a.abs().max() <= 1 / 8  # 1 / sqrt(64)


def test_base_parameters_are_taken_over_not_copied() -> None:
    base = nn.Linear(6, 5)

    lora = LoraLinear(base, rank=2, alpha=1.0, dropout=0.0)

    assert lora.weight is base.weight
    assert lora.bias is base.bias
    assert [name for name, _ in lora.named_parameters()] == ["weight", "bias", "lora_a", "lora_b"]


def test_pair_has_the_dtype_and_device_of_the_weight() -> None:
    base = nn.Linear(6, 5, device="meta", dtype=torch.bfloat16)

    lora = LoraLinear(base, rank=2, alpha=1.0, dropout=0.0)

    for parameter in (lora.lora_a, lora.lora_b):
        assert parameter.is_meta
        assert parameter.dtype == torch.bfloat16


def test_dropout_acts_on_the_side_path_only_and_only_when_training() -> None:
    lora = layer(dropout=1.0 - 1e-12)
    x = torch.randn(4, 6, dtype=torch.float64)

    base = nn.functional.linear(x, lora.weight, lora.bias)
    torch.testing.assert_close(lora(x), base)
    lora.eval()
    assert not torch.allclose(lora(x), base)


def test_merged_weight_of_bf16_is_summed_in_fp32() -> None:
    lora = layer().bfloat16()

    state = {f"q.{name}": tensor for name, tensor in lora.state_dict().items()}
    merged = merged_tensors(state, lora.scale)["q.weight"]

    exact = lora.weight.double() + 1.5 * lora.lora_b.double() @ lora.lora_a.double()
    assert torch.equal(merged, exact.float().bfloat16())
