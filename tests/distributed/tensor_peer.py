"""One of the ranks that share a transformer: each case against the same network in one process.

    tensor_peer.py RANKS/KIND:OPTION,OPTION ...

where RANKS, the first ones of the gang, share the network. Prints, per case, the largest deviation
of the output and of the gradients. Errors are relative to the largest entry of a tensor, where that
is above 1.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from app.config.schema.model import DiTConfig, LoraConfig
from app.distributed.groups import process_groups
from app.distributed.rank import RankInfo
from app.distributed.rank_group import RankGroup
from app.distributed.sharing import of_first_rank, split_ranks
from app.models.dit.parallel import own_part, split_network, whole_shape
from app.models.dit.transformer import DiffusionTransformer
from tests.support.networks import inputs, tiny

OPTIONS: dict[str, dict[str, Any]] = {
    "six": {"num_attention_heads": 6, "hidden_size": 96, "inner_hidden_size": 384},
    "thirty": {"num_attention_heads": 30, "hidden_size": 480, "inner_hidden_size": 1920},
    "swiglu": {"swiglu": True},
    "rms": {"rms_norm": True},
    "bare": {"qk_norm": False},
    "plain": {"elementwise_affine": False},
    "recompute": {"checkpoint_activations": True},
    "lora": {"lora": LoraConfig(rank=4, alpha=3)},
    "dropout": {"lora": LoraConfig(rank=4, alpha=3, dropout=0.3)},
    "second": {"lora": LoraConfig(rank=4, alpha=3, layer_range=(1,))},
}


def config_of(case: str) -> DiTConfig:
    kind, _, options = case.partition(":")
    config = tiny(kind)
    for option in filter(None, options.split(",")):
        config = replace(config, **OPTIONS[option])
    return config


def network_of(config: DiTConfig) -> DiffusionTransformer:
    """Every parameter off zero, so that each matters."""
    torch.manual_seed(1)
    network = DiffusionTransformer(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    if config.lora is not None:
        for name, parameter in network.named_parameters():
            parameter.requires_grad_("lora_" in name or "modulation" in name)
    return network


def run(network: DiffusionTransformer) -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(5)  # of the dropout
    output = network(*inputs(network.config))
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(9))
    (output * weights).sum().backward()
    found = {n: p.grad for n, p in network.named_parameters() if p.requires_grad}
    assert all(gradient is not None for gradient in found.values())
    return output.detach(), {n: g for n, g in found.items() if g is not None}


def deviation(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape, f"{found.shape} is not {expected.shape}"
    if not expected.numel():
        return 0.0
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1))


def compared(case: str, group: RankGroup) -> dict[str, object]:
    config = config_of(case)
    whole, shared = network_of(config), network_of(config)
    split_network(shared, group)
    sizes = {n: list(p.shape) for n, p in shared.named_parameters()}
    expected, expected_gradients = run(whole)
    output, gradients = run(shared)
    assert gradients.keys() == expected_gradients.keys()
    errors = {
        name: deviation(gradient, own_part(name, expected_gradients[name], group))
        for name, gradient in gradients.items()
    }
    worst = max(errors, key=lambda name: errors[name])
    return {
        "case": case,
        "output": deviation(output, expected),
        "gradient": errors[worst],
        "worst": f"{worst} {errors[worst]:g}",
        "shapes": {n: whole_shape(n, s, group) for n, s in sizes.items()}
        == {n: tuple(p.shape) for n, p in whole.named_parameters()},
        "share": sum(p.numel() for p in shared.parameters())
        / sum(p.numel() for p in whole.parameters()),
        "bits": [float(v) for v in output.flatten()[:3]],
    }


def check_batch(group: RankGroup) -> None:
    """What the first rank read is what every rank gets."""
    batch = {"mp4": torch.arange(6, dtype=torch.uint8).view(2, 3), "txt": ["a", "b"], "n": 3}
    found = of_first_rank(batch if group.rank == 0 else {"txt": ["x"]}, group)
    assert list(found) == list(batch)
    assert found["mp4"].equal(batch["mp4"])
    assert (found["txt"], found["n"]) == (["a", "b"], 3)


def main() -> int:
    torch.set_num_threads(1)
    rank = RankInfo.from_environment(os.environ)
    with process_groups(rank, device=torch.device("cpu"), join_s=60) as alone:
        everyone = split_ranks(alone, rank.world_size).tensor
        check_batch(everyone)
        pair = RankGroup(rank.rank, 2, dist.new_group([0, 1]))
        reports = []
        for asked in sys.argv[1:]:
            size, _, case = asked.partition("/")
            group = everyone if int(size) == rank.world_size else pair
            if rank.rank < group.size:
                reports.append({"size": group.size, **compared(case, group)})
        print(json.dumps(reports))
    return 0


if __name__ == "__main__":
    sys.exit(main())
