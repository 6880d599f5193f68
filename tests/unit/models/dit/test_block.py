"""One block, against formulas written out with loops over samples, heads and tokens."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from app.models.dit.block import (
    MLP,
    Attention,
    Block,
    BlockContext,
    TensorOptions,
    make_norm,
    modulate,
)
from app.models.dit.rotary import Rotation
from tests.support.networks import tiny

CONFIG = tiny("5b")  # width 32, 2 heads of 16, e = 16
DOUBLE = TensorOptions(dtype=torch.float64)
IMAGE_MLP_GATE, TEXT_ATTENTION_GATE = 5, 8  # of the twelve parts


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def test_shift_and_scale_are_one_per_sample() -> None:
    tokens, shift, scale = normal(2, 3, 4), normal(2, 4), normal(2, 4)

    found = modulate(tokens, shift, scale)

    for b in range(2):
        for s in range(3):
            torch.testing.assert_close(found[b, s], tokens[b, s] * (1 + scale[b]) + shift[b])


@torch.no_grad()
def test_attention_is_a_mean_of_values_weighed_by_softmax_of_scores() -> None:
    attention = Attention(replace(CONFIG, qk_norm=False), DOUBLE)
    tokens = normal(1, 3, 32)

    found = attention(tokens, None)[0]

    q, k, v = (layer(tokens[0]) for layer in (attention.q, attention.k, attention.v))
    mixed = torch.empty(3, 32, dtype=torch.float64)
    for head in range(2):
        part = slice(16 * head, 16 * head + 16)
        for s in range(3):
            weights = [math.exp(float(q[s, part] @ k[t, part]) / 4) for t in range(3)]
            mixed[s, part] = torch.tensor(weights, dtype=torch.float64) @ v[:, part] / sum(weights)
    torch.testing.assert_close(found, attention.out(mixed))


@torch.no_grad()
def test_a_turn_of_queries_and_keys_alike_changes_nothing_and_norms_bound_the_scores() -> None:
    attention = Attention(CONFIG, DOUBLE)
    tokens = normal(1, 4, 32)
    angle = torch.full((4, 16), 0.7, dtype=torch.float64)

    same = attention(tokens, Rotation(angle.cos(), angle.sin()))

    torch.testing.assert_close(same, attention(tokens, None))
    attention.q.weight.mul_(1000)  # the norm of queries takes this away, all but its epsilon
    attention.q.bias.mul_(1000)
    torch.testing.assert_close(attention(tokens, None), same, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_mlp_has_the_tanh_form_of_gelu() -> None:
    mlp = MLP(CONFIG, DOUBLE)
    tokens = normal(1, 3, 32)

    x = mlp.up(tokens)
    gelu = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    torch.testing.assert_close(mlp(tokens), mlp.down(gelu))


@torch.no_grad()
def test_swiglu_multiplies_by_a_gate() -> None:
    mlp = MLP(replace(CONFIG, swiglu=True), DOUBLE)
    tokens = normal(1, 3, 32)
    assert mlp.gate is not None

    gate = mlp.gate(tokens)
    torch.testing.assert_close(
        mlp(tokens), mlp.down(gate / (1 + torch.exp(-gate)) * mlp.up(tokens))
    )


@torch.no_grad()
@pytest.mark.parametrize("part", [None, IMAGE_MLP_GATE, TEXT_ATTENTION_GATE])
def test_each_gate_opens_one_path_of_one_kind_of_token(part: int | None) -> None:
    block = Block(CONFIG, DOUBLE)
    block.modulation.weight.zero_()
    block.modulation.bias.zero_()
    if part is not None:
        block.modulation.bias[32 * part : 32 * part + 32] = 1
    tokens, n = normal(2, 5, 32), 2

    found = block(tokens, BlockContext(normal(2, 16), None, n))

    expected = tokens.clone()
    if part == IMAGE_MLP_GATE:
        expected[:, n:] += block.mlp(block.norm_mlp(tokens))[:, n:]
    elif part == TEXT_ATTENTION_GATE:
        expected[:, :n] += block.attention(block.norm_attention(tokens), None)[:, :n]
    torch.testing.assert_close(found, expected)


def test_a_norm_without_affine_has_no_parameters_and_rms_norm_keeps_the_mean() -> None:
    plain = make_norm(replace(CONFIG, elementwise_affine=False), DOUBLE)
    rms = make_norm(replace(CONFIG, rms_norm=True), DOUBLE)
    ones = torch.full((1, 1, 32), 3.0, dtype=torch.float64)

    assert list(plain.parameters()) == []
    torch.testing.assert_close(plain(ones), torch.zeros_like(ones))
    torch.testing.assert_close(rms(ones), torch.ones_like(ones), rtol=1e-6, atol=0)
