"""One rank that trains the tiny transformers for two steps under every stage; prints JSON lines."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace

import torch

from app.config.schema.model import LoraConfig
from app.distributed.groups import ProcessGroups, process_groups
from app.distributed.rank import RankInfo
from app.models.dit.transformer import DiffusionTransformer
from app.training.engine import Engine
from tests.support.networks import inputs, tiny
from tests.unit.training.configs import training_config

KINDS = ("2b", "5b_i2v", "1.5_i2v")
STAGES = (0, 1, 2, 3)


def network_of(kind: str, lora: LoraConfig | None) -> DiffusionTransformer:
    torch.manual_seed(0)
    network = DiffusionTransformer(replace(tiny(kind, lora=lora), checkpoint_activations=True))
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.05)
        if lora is not None and "lora_" not in name:
            parameter.requires_grad_(False)
    return network


def train(kind: str, is_lora: bool, stage: int, precision: str, groups: ProcessGroups) -> object:
    network = network_of(kind, LoraConfig(rank=4, alpha=4) if is_lora else None)
    config = network.config
    training = training_config(zero_stage=stage, precision=precision)
    engine = Engine.start(network, training, groups)
    losses = []
    latents, timesteps, conditioning = inputs(config)
    for _ in range(2):
        answer = engine.network(latents, timesteps, conditioning)
        loss = ((answer.float() - latents) ** 2).mean()
        engine.backward(loss)
        report = engine.step(1e-3)
        losses.append(float(loss.detach()))
    engine.eval()
    with torch.no_grad():
        answer = engine.network(latents, timesteps, conditioning)
    losses.append(float(((answer.float() - latents) ** 2).mean()))
    saved = {fragment.name for fragment in engine.fragments()}
    return {
        "job": [kind, is_lora, stage, precision],
        "losses": losses,
        "grad_norm": report.grad_norm,
        "saved": sorted(saved),
        "trained": sorted(engine.parameters_info()),
    }


def jobs() -> Iterator[tuple[str, bool, int, str]]:
    for kind in KINDS:
        for is_lora in (False, True):
            for precision in ("fp32", "bf16"):
                for stage in STAGES:
                    yield kind, is_lora, stage, precision


def main() -> int:
    torch.set_num_threads(1)
    rank = RankInfo.from_environment(os.environ)
    with process_groups(rank, device=torch.device("cpu"), join_s=120) as groups:
        reports = [train(*job, groups) for job in jobs()]
    print(json.dumps(reports))
    return 0


if __name__ == "__main__":
    sys.exit(main())
