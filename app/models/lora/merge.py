"""Fold LoRA pairs into the weights they sit on, and take them out again."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from app.models.lora.inject import lora_layers
from app.models.lora.linear import LoraLinear, merged


@torch.no_grad()
def merge_lora(network: nn.Module) -> dict[str, LoraLinear]:
    """Replace every LoraLinear by a Linear that gives the same output, in place.

    Returns:
        The replaced layers by name, for `unmerge_lora`. They share the merged weights, so drop
        them if they are not needed.
    """
    layers = dict(lora_layers(network))
    for name, layer in layers.items():
        layer.weight.copy_(layer.merged_weight())
        _replace(network, name, layer.plain())
    return layers


@torch.no_grad()
def merged_tensors(tensors: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """A state dict without pairs: every weight that has one gets its update.

    Args:
        tensors: by our names, `<layer>.weight` (o, i) beside `<layer>.lora_a` and `.lora_b`.
        scale: alpha / r.

    Returns:
        The other tensors as they are; merged weights summed in fp32 or wider, in their own dtype.
    """
    plain = {name: t for name, t in tensors.items() if not name.endswith((".lora_a", ".lora_b"))}
    for name, lora_a in tensors.items():
        if not name.endswith(".lora_a"):
            continue
        layer = name.removesuffix(".lora_a")
        weight, lora_b = tensors[f"{layer}.weight"], tensors[f"{layer}.lora_b"]
        plain[f"{layer}.weight"] = merged(weight, lora_a, lora_b, scale)
    return plain


@torch.no_grad()
def unmerge_lora(network: nn.Module, layers: dict[str, LoraLinear]) -> None:
    """Undo `merge_lora`, in place: subtract the update (to rounding) and put the layers back."""
    for name, layer in layers.items():
        layer.weight.copy_(merged(layer.weight, layer.lora_a, layer.lora_b, -layer.scale))
        _replace(network, name, layer)


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    network.get_submodule(parent).add_module(child, module)
