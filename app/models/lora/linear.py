"""A Linear with a low-rank side path.

Axes: r rank, i input features, o output features.
Source: LoRA, arXiv:2106.09685.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor, nn

Value = TypeVar("Value")


def is_pair(name: str) -> bool:
    """Whether a tensor of a network is one half of a pair, by our name of it."""
    return name.endswith((".lora_a", ".lora_b"))


def pairs_among(tensors: Mapping[str, Value]) -> dict[str, Value]:
    """The entries, by our names, that belong to pairs."""
    return {name: value for name, value in tensors.items() if is_pair(name)}


class LoraLinear(nn.Linear):
    """y = W x + b + (B A dropout(x)) * alpha / r; weight and bias keep their names.

    A starts Kaiming-uniform (a = sqrt 5, so within 1/sqrt(i)), B at zero: the layer starts as the
    plain one. The pair has the dtype of the weight.
    """

    lora_a: nn.Parameter  # (r, i)
    lora_b: nn.Parameter  # (o, r)

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float) -> None:
        """Take over the weight and bias of `base` and add a pair of rank `rank`."""
        # The parameters are those of `base`: allocating new ones would double the memory.
        super().__init__(base.in_features, base.out_features, base.bias is not None, device="meta")
        self.weight = base.weight
        if base.bias is not None:
            self.bias = base.bias
        self.rank = rank
        self.alpha = alpha
        self.dropout = dropout
        self.lora_a = nn.Parameter(base.weight.new_empty(rank, base.in_features))
        self.lora_b = nn.Parameter(base.weight.new_zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def whole_in_features(self) -> int:
        """i of the whole layer, of which this may be a part."""
        return self.in_features

    def part_of_a(self, whole: Tensor) -> Tensor:
        """What of a whole A (r, i) is this layer's."""
        return whole

    def forward(self, x: Tensor) -> Tensor:
        """(..., i) -> (..., o)."""
        dropped = nn.functional.dropout(x, self.dropout, self.training)
        low = nn.functional.linear(dropped, self.lora_a)
        return super().forward(x) + nn.functional.linear(low, self.lora_b) * self.scale

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.rank}, alpha={self.alpha}"
