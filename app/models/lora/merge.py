"""Fold LoRA pairs into the weights that they belong to.

Axes: r rank, i input features, o output features.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from app.models.lora.linear import is_pair


@torch.no_grad()
def merged_tensors(tensors: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """A state dict without pairs: every weight that has one gets its update.

    Args:
        tensors: by our names, `<layer>.weight` (o, i) with `<layer>.lora_a` and `.lora_b`.
        scale: alpha / r.

    Returns:
        The other tensors as they are; merged weights W + B A scale, summed in fp32 or wider, in
        their own dtype.
    """
    plain = {name: tensor for name, tensor in tensors.items() if not is_pair(name)}
    for name, lora_a in tensors.items():
        if name.endswith(".lora_a"):
            layer = name.removesuffix(".lora_a")
            weight, lora_b = tensors[f"{layer}.weight"], tensors[f"{layer}.lora_b"]
            wide = torch.promote_types(weight.dtype, torch.float32)
            update = lora_b.to(wide) @ lora_a.to(wide) * scale
            plain[f"{layer}.weight"] = (weight.to(wide) + update).to(weight.dtype)
    return plain
