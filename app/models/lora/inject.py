"""Put LoRA pairs on the attention projections of a transformer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from app.config.schema.model import LoraConfig
from app.models.lora.linear import LoraLinear

PROJECTIONS = ("q", "k", "v", "out")


def inject_lora(attentions: Sequence[nn.Module], config: LoraConfig) -> None:
    """Replace the four projections of each chosen layer by LoraLinear, in place.

    Args:
        attentions: the attention modules in layer order, with Linear children q, k, v and out.
        config: rank, alpha, dropout and the layers, which exist (the network's config checks it).
    """
    layers = range(len(attentions)) if config.layer_range is None else config.layer_range
    for layer in layers:
        for name in PROJECTIONS:
            base = attentions[layer].get_submodule(name)
            assert type(base) is nn.Linear, f"{name} of layer {layer} is not a plain Linear"
            lora = LoraLinear(base, config.rank, config.alpha, config.dropout)
            attentions[layer].add_module(name, lora)


def lora_layers(network: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """Every LoraLinear with its name, in the order of the network."""
    for name, module in network.named_modules():
        if isinstance(module, LoraLinear):
            yield name, module


@torch.no_grad()
def reset_lora(network: nn.Module, generator: torch.Generator | None = None) -> None:
    """Start all pairs anew: A uniform within 1/sqrt(inputs), drawn from `generator`; B zero.

    Drawn on the CPU, and whole where ranks share a layer, so every layout starts the same.
    """
    for _, layer in lora_layers(network):
        bound = layer.whole_in_features**-0.5
        whole = torch.empty(layer.rank, layer.whole_in_features, dtype=layer.lora_a.dtype)
        whole.uniform_(-bound, bound, generator=generator)
        layer.lora_a.copy_(layer.part_of_a(whole))
        layer.lora_b.zero_()
