"""Initial weights for training without a checkpoint.

Source: GPT-2 scheme of SwissArmyTransformer (normal 0.02, outputs scaled by depth); adaLN-Zero of
DiT, arXiv:2212.09748, for the gates.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from app.models.dit.block import Block
from app.models.dit.transformer import DiffusionTransformer

STD = 0.02


@torch.no_grad()
def init_from_scratch(
    network: DiffusionTransformer,
    generator: torch.Generator | None = None,
    *,
    zero_gates: bool = True,
) -> None:
    """Give every weight its initial value, in place, drawn from `generator`.

    Upstream means to start with closed gates and never runs the code that closes them
    (upstream_differences.md, F29); `zero_gates=False` starts as upstream does. LoRA pairs keep the
    values they were created with.
    """
    _torch_defaults(network, generator)
    output_std = STD / math.sqrt(2 * network.config.num_layers)
    for block in network.blocks:
        assert isinstance(block, Block)
        attention, mlp = block.attention, block.mlp
        for linear in (attention.q, attention.k, attention.v, mlp.up):
            _normal(linear, STD, generator)
        for linear in (attention.out, mlp.down):
            _normal(linear, output_std, generator)
        if mlp.gate is not None:
            mlp.gate.weight.normal_(0, STD, generator=generator)
        if zero_gates:
            _close_gates(block.modulation)
    for linear in (network.patch.video, network.final.linear):
        nn.init.xavier_uniform_(linear.weight, generator=generator)
        linear.bias.zero_()
    if network.position is not None:
        computed = network.computed_parameters().get("position.table")
        table = network.position.table
        table.zero_() if computed is None else table.copy_(computed)


def _torch_defaults(network: DiffusionTransformer, generator: torch.Generator | None) -> None:
    """The defaults of nn.Linear and of the norms, drawn from our generator."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.in_features)
            module.weight.uniform_(-bound, bound, generator=generator)
            if module.bias is not None:
                module.bias.uniform_(-bound, bound, generator=generator)
        elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
            module.reset_parameters()


def _normal(linear: nn.Linear, std: float, generator: torch.Generator | None) -> None:
    linear.weight.normal_(0, std, generator=generator)
    linear.bias.zero_()


def _close_gates(modulation: nn.Linear) -> None:
    """Zero the rows of the four gates: parts 2, 5 (image) and 8, 11 (text) of twelve."""
    for part in (2, 5, 8, 11):
        modulation.weight.chunk(12)[part].zero_()
        modulation.bias.chunk(12)[part].zero_()
