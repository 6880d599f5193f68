"""Which parameters of the network train: chosen by rules, then listed and counted.

The rules speak upstream's names (`model.diffusion_model.transformer.layers.0...`), because stock
YAML files do; the translation from our names comes as an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from app.errors import ConfigError

FREEZE_ALL = "all"  # an entry of not_trainable_prefixes that matches every name
# Modules that upstream keeps in the same tree and that we hold outside the network, always frozen:
# prefixes that name them need not match anything here.
OUTSIDE = ("first_stage_model", "conditioner")
LORA_MARKS = ("matrix_A", "matrix_B")


@dataclass(frozen=True)
class TrainableRules:
    """The two keys of the YAML section `model`."""

    not_trainable_prefixes: Sequence[str] = ()
    lora_train: bool = False  # train exactly the LoRA pairs


@dataclass(frozen=True)
class TrainableReport:
    """What was decided. Names are ours, in the order of the network."""

    trainable: tuple[str, ...]
    frozen: tuple[str, ...]
    trainable_count: int  # numbers, not tensors
    frozen_count: int
    unused_prefixes: tuple[str, ...]  # entries that matched no parameter: often a misspelling


def select_trainable(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    rules: TrainableRules,
    upstream_name: Callable[[str], tuple[str, ...]],
) -> TrainableReport:
    """Freeze what the rules say, in place.

    A parameter that is frozen already (the fixed position table) stays so. LoRA pairs always
    train. With `lora_train` nothing else does (upstream meant that and froze the pairs as well:
    upstream_differences.md, F26); otherwise a parameter is frozen when one of its upstream names
    starts with an entry of `not_trainable_prefixes`, or an entry is "all".

    Args:
        named_parameters: all parameters of the network by our names.
        rules: see TrainableRules.
        upstream_name: the names, engine prefix included, under which SAT files and rules know one
            of our parameters.

    Raises:
        ConfigError: nothing is left to train.
    """
    trainable: dict[str, int] = {}
    frozen: dict[str, int] = {}
    used: set[str] = set()
    for name, parameter in named_parameters:
        names = upstream_name(name)
        matches = _matching(names, rules.not_trainable_prefixes)
        used.update(matches)
        is_lora = any(mark in one for one in names for mark in LORA_MARKS)
        keep = is_lora or not (rules.lora_train or matches)
        if not keep:
            parameter.requires_grad_(False)
        (trainable if parameter.requires_grad else frozen)[name] = parameter.numel()
    if not trainable:
        raise ConfigError(
            "the rules freeze every parameter; nothing is left to train",
            where="model.lora_train" if rules.lora_train else "model.not_trainable_prefixes",
            fix="add lora_config to the network (a *_lora.yaml model file), or freeze less",
        )
    return TrainableReport(
        trainable=tuple(trainable),
        frozen=tuple(frozen),
        trainable_count=sum(trainable.values()),
        frozen_count=sum(frozen.values()),
        unused_prefixes=_unused(rules.not_trainable_prefixes, used),
    )


def _matching(names: tuple[str, ...], prefixes: Sequence[str]) -> set[str]:
    return {
        prefix
        for prefix in prefixes
        if prefix == FREEZE_ALL or any(name.startswith(prefix) for name in names)
    }


def _unused(prefixes: Sequence[str], used: set[str]) -> tuple[str, ...]:
    return tuple(
        prefix for prefix in prefixes if prefix not in used and not prefix.startswith(OUTSIDE)
    )
