"""The transformer split across ranks: each has some of the heads and a part of every MLP.

Axes: B batch, S tokens, i input features, o output features, r rank of a LoRA pair.
Queries, keys, values and the MLP's first layers are split along their outputs, the attention's
output and the MLP's second layer along their inputs; everything else is on every rank. The results
of the latter two are summed, so the tokens between the two halves of a block are the same on all
ranks. Parameters that every rank has get the same gradient on every rank, so they stay equal.
Source: Megatron-LM, arXiv:1909.08053, section 3.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from app.distributed.rank_group import RankGroup, enter, leave
from app.errors import ConfigError
from app.models.dit.block import MLP, Attention, Block
from app.models.dit.transformer import DiffusionTransformer
from app.models.lora.linear import LoraLinear

BY_OUTPUTS = (".attention.q", ".attention.k", ".attention.v", ".mlp.up", ".mlp.gate")
BY_INPUTS = (".attention.out", ".mlp.down")


def split_axis(name: str) -> int | None:
    """The axis along which a parameter is split across ranks; None: each rank has all of it."""
    layer, _, kind = name.rpartition(".")
    if layer.startswith("blocks.") and layer.endswith(BY_OUTPUTS):
        return None if kind == "lora_a" else 0
    if layer.startswith("blocks.") and layer.endswith(BY_INPUTS):
        return 1 if kind in ("weight", "lora_a") else None
    return None


def own_part(name: str, whole: Tensor, group: RankGroup) -> Tensor:
    """This rank's part of a whole parameter; a view, not a copy."""
    axis = split_axis(name)
    return whole if axis is None else whole.chunk(group.size, axis)[group.rank]


def whole_shape(name: str, shape: Iterable[int], group: RankGroup) -> tuple[int, ...]:
    """The shape of a whole parameter, given that of this rank's part."""
    axis = split_axis(name)
    return tuple(n * group.size if i == axis else n for i, n in enumerate(shape))


@torch.no_grad()
def split_network(network: DiffusionTransformer, group: RankGroup) -> None:
    """Keep only this rank's part of a network, in place; on the meta device nothing is copied.

    Weights must be the same on all ranks of the group.

    Raises:
        ConfigError: the heads or the MLP's width do not divide evenly.
    """
    if group.size == 1:
        return
    config = network.config
    for key, count in (
        ("num_attention_heads", config.num_attention_heads),
        ("transformer_args.inner_hidden_size", config.inner_hidden_size),
    ):
        if count % group.size:
            raise ConfigError(
                f"{key} {count} cannot be divided among {group.size} ranks",
                where="args.model_parallel_size",
                fix=f"use a divisor of {count}",
            )
    network.group = group
    for block in network.blocks:
        assert isinstance(block, Block)
        _split_attention(block.attention, group)
        _split_mlp(block.mlp, group)


def _split_attention(attention: Attention, group: RankGroup) -> None:
    attention.group = group
    attention.num_heads //= group.size
    for name in ("q", "k", "v"):
        attention.add_module(name, _by_outputs(attention.get_submodule(name), group))
    attention.add_module("out", _by_inputs(attention.get_submodule("out"), group))
    for name in ("norm_q", "norm_k"):
        norm = attention.get_submodule(name)
        if isinstance(norm, nn.LayerNorm):
            attention.add_module(name, HeadLayerNorm(norm, group))


def _split_mlp(mlp: MLP, group: RankGroup) -> None:
    mlp.group = group
    for name in ("up", "gate"):
        layer = getattr(mlp, name)
        if layer is not None:
            mlp.add_module(name, _by_outputs(layer, group))
    mlp.add_module("down", _by_inputs(mlp.get_submodule("down"), group))


class HeadLayerNorm(nn.LayerNorm):
    """A norm that all heads share, applied to this rank's: its gradient is summed over ranks."""

    def __init__(self, norm: nn.LayerNorm, group: RankGroup) -> None:
        affine = norm.elementwise_affine
        super().__init__(norm.normalized_shape, norm.eps, affine, device="meta")
        self.weight, self.bias = norm.weight, norm.bias
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., d)."""
        weight = None if self.weight is None else enter(self.weight, self.group)
        bias = None if self.bias is None else enter(self.bias, self.group)
        return nn.functional.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class SummedLinear(nn.Linear):
    """A Linear split along its inputs: partial results are summed, the bias is added once."""

    group: RankGroup

    def forward(self, x: Tensor) -> Tensor:
        """This rank's inputs (..., i / size) -> (..., o), the same on all ranks."""
        return _summed(x, self.weight, self.bias, self.group)


class OutputsLora(LoraLinear):
    """Split along the outputs, with B; A is whole, and its gradient is summed over ranks."""

    group: RankGroup

    def forward(self, x: Tensor) -> Tensor:
        """(..., i) -> this rank's outputs (..., o / size). The caller has applied `enter` to x."""
        dropped = nn.functional.dropout(x, self.dropout, self.training)
        low = nn.functional.linear(dropped, enter(self.lora_a, self.group))
        base = nn.functional.linear(x, self.weight, self.bias)
        return base + nn.functional.linear(low, self.lora_b) * self.scale


class InputsLora(LoraLinear):
    """Split along the inputs, with A, and A x is summed over ranks; B is whole."""

    group: RankGroup

    @property
    def whole_in_features(self) -> int:
        """i of the whole layer."""
        return self.in_features * self.group.size

    def part_of_a(self, whole: Tensor) -> Tensor:
        """(r, i) -> the columns of this rank."""
        return whole.chunk(self.group.size, 1)[self.group.rank]

    def forward(self, x: Tensor) -> Tensor:
        """This rank's inputs (..., i / size) -> (..., o), the same on all ranks."""
        low = leave(nn.functional.linear(self._dropped(x), self.lora_a), self.group)
        base = _summed(x, self.weight, self.bias, self.group)
        return base + nn.functional.linear(low, self.lora_b) * self.scale

    def _dropped(self, x: Tensor) -> Tensor:
        if not self.training or not self.dropout:
            return x
        # Drawn for all inputs, so that the parts fit together and the generators stay in sync.
        ones = x.new_ones((*x.shape[:-1], self.whole_in_features))
        kept = nn.functional.dropout(ones, self.dropout)
        return x * kept.chunk(self.group.size, -1)[self.group.rank]


def _summed(x: Tensor, weight: Tensor, bias: Tensor | None, group: RankGroup) -> Tensor:
    total = leave(nn.functional.linear(x, weight), group)
    return total if bias is None else total + bias


def _by_outputs(layer: nn.Module, group: RankGroup) -> nn.Module:
    """This rank's outputs of a Linear or LoraLinear."""
    assert isinstance(layer, nn.Linear)
    outputs = layer.out_features // group.size
    base = nn.Linear(layer.in_features, outputs, layer.bias is not None, device="meta")
    part: nn.Linear = base
    if isinstance(layer, LoraLinear):
        part = OutputsLora(base, layer.rank, layer.alpha, layer.dropout)
        part.group = group
        part.lora_a = layer.lora_a
        part.lora_b = _part(layer.lora_b, 0, group)
    part.weight = _part(layer.weight, 0, group)
    if layer.bias is not None:
        part.bias = _part(layer.bias, 0, group)
    return part.train(layer.training)


def _by_inputs(layer: nn.Module, group: RankGroup) -> nn.Module:
    """This rank's inputs of a Linear or LoraLinear."""
    assert isinstance(layer, nn.Linear)
    inputs = layer.in_features // group.size
    part: SummedLinear | InputsLora
    part = SummedLinear(inputs, layer.out_features, layer.bias is not None, device="meta")
    if isinstance(layer, LoraLinear):
        lora = InputsLora(part, layer.rank, layer.alpha, layer.dropout)
        lora.lora_a = _part(layer.lora_a, 1, group)
        lora.lora_b = layer.lora_b
        part = lora
    part.group = group
    part.weight = _part(layer.weight, 1, group)
    if layer.bias is not None:
        part.bias = layer.bias
    return part.train(layer.training)


def _part(whole: Tensor, axis: int, group: RankGroup) -> nn.Parameter:
    """A copy of this rank's part, so that the memory of the whole can be freed."""
    own = whole.detach().chunk(group.size, axis)[group.rank]
    copy = own.clone(memory_format=torch.contiguous_format)
    return nn.Parameter(copy, requires_grad=whole.requires_grad)
