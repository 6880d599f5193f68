"""Which parameters decay, and the optimizer over them.

Source of the groups: SwissArmyTransformer 0.4.12, sat/training/deepspeed_training.py,
get_params_for_weight_decay_optimization.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from app.config.schema.training import OptimizerConfig
from app.errors import ConfigError

DECAY = "decay"
NO_DECAY = "no_decay"
NORM_SUFFIXES = ("LayerNorm", "RMSNorm")  # GroupNorm is not in upstream's list


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """Parameters that share a weight decay, with their names in the network, in module order."""

    kind: str  # DECAY or NO_DECAY
    names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]


def parameter_groups(network: nn.Module) -> list[ParameterGroup]:
    """Trainable parameters in the group that decays and the one that does not, in this order.

    No decay: everything of a LayerNorm or RMSNorm, parameters named `bias`, and parameters with
    the attribute `no_weight_decay`. An empty group is left out (LoRA alone makes one group).

    Raises:
        ConfigError: nothing is trainable.
    """
    found: dict[str, dict[str, nn.Parameter]] = {DECAY: {}, NO_DECAY: {}}
    seen: set[int] = set()
    for prefix, module in network.named_modules():
        is_norm = type(module).__name__.endswith(NORM_SUFFIXES)
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            no_decay = is_norm or name == "bias" or getattr(parameter, "no_weight_decay", False)
            found[NO_DECAY if no_decay else DECAY][f"{prefix}.{name}" if prefix else name] = (
                parameter
            )
    groups = [
        ParameterGroup(kind, tuple(named), tuple(named.values()))
        for kind, named in found.items()
        if named
    ]
    if not groups:
        raise ConfigError(
            "no parameter of the network is trainable",
            where="model.not_trainable_prefixes",
            fix="shorten not_trainable_prefixes, or add lora_config when it is ['all']",
        )
    return groups


def make_optimizer(
    groups: list[ParameterGroup], config: OptimizerConfig, *, fused: bool
) -> torch.optim.Optimizer:
    """AdamW (or Adam with L2 for kind `adam`) over the groups.

    `ema_adamw` is upstream's FusedEmaAdam: the same AdamW, and the averages of app.training.ema.

    Args:
        fused: one kernel for all tensors of a group; for a GPU.

    Raises:
        ConfigError: the kind is unknown.
    """
    kinds = {"adamw": torch.optim.AdamW, "ema_adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
    if config.kind not in kinds:
        raise ConfigError(
            f"the optimizer {config.kind!r} is not available",
            where="deepspeed.optimizer.type",
            fix="use AdamW, Adam or sat.ops.FusedEmaAdam",
        )
    return kinds[config.kind](
        [
            {
                "params": list(group.parameters),
                "weight_decay": config.weight_decay if group.kind == DECAY else 0.0,
            }
            for group in groups
        ],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=fused,
    )
