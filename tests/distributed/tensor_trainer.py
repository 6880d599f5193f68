"""One rank that trains a tiny transformer, shared with others or not; prints its jobs as JSON.

    tensor_trainer.py JOBS.json

A job is an object, see `Job`. The global batch is the same at every layout.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from app.config.schema.model import LoraConfig
from app.distributed.groups import ProcessGroups
from app.distributed.sharing import split_ranks
from app.models.conditioning import Conditioning
from app.models.dit.parallel import split_axis, split_network
from app.models.dit.transformer import DiffusionTransformer
from app.training.engine import Engine
from tests.distributed.trainer import restore, run_jobs, save, train_steps
from tests.support.networks import tiny
from tests.unit.training.configs import training_config

GLOBAL_BATCH = 4
CLIPPING = 0.01  # less than any norm: every step is clipped


@dataclass(frozen=True)
class Job:
    """Train from `start` to `stop`; `load` is a folder with a save to start from."""

    tensor: int  # ranks that share a network
    stage: int
    start: int = 0
    stop: int = 6
    precision: str = "fp32"
    kind: str = "5b"
    lora: bool = False
    dropout: float = 0.0
    ema: bool = False
    accumulation: int = 1
    poison: int | None = None
    drift: bool = False  # the second rank starts from other norms, until the ranks agree
    load: str | None = None
    save: str | None = None


def network_of(job: Job) -> DiffusionTransformer:
    lora = LoraConfig(rank=4, alpha=4, dropout=job.dropout) if job.lora else None
    torch.manual_seed(0)
    config = tiny(job.kind, lora=lora)
    network = DiffusionTransformer(replace(config, checkpoint_activations=True))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.1)
            parameter.requires_grad_(parameter.requires_grad and (not job.lora or "lora_" in name))
    return network


@torch.no_grad()
def drift(engine: Engine, network: DiffusionTransformer, rank: int) -> None:
    """Change what every rank has all of: master weights, moments, working copy."""
    for slot in engine._owned.slots:
        if split_axis(slot.name) is None:
            for _, tensor in engine._owned.tensors(slot):
                slot.cut(tensor).add_(0.1 * rank)
    for name, parameter in network.named_parameters():
        if split_axis(name) is None and parameter.requires_grad:
            parameter.add_(0.1 * rank)


def sample(step: int, position: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 * step + position)
    return torch.randn(3, 16, 8, 12, generator=generator), torch.randn(5, 24, generator=generator)


def train(job: Job, alone: ProcessGroups) -> dict[str, object]:
    groups = split_ranks(alone, job.tensor)
    copies = groups.copies
    network = network_of(job)
    split_network(network, groups.tensor)
    config = training_config(
        precision=job.precision,
        zero_stage=job.stage,
        accumulation=job.accumulation,
        clipping=CLIPPING,
        ema_decay=0.999 if job.ema else None,
    )
    engine = Engine.start(network, config, groups, split_axis)
    if job.load:
        restore(engine, Path(job.load))
    if job.drift:
        drift(engine, network, groups.tensor.rank)
        engine.agree()
    per_micro = GLOBAL_BATCH // (copies.size * job.accumulation)

    def micro_loss(step: int, micro: int) -> Tensor:
        if micro == 0:
            torch.manual_seed(step)  # of the dropout
        first = (copies.rank * job.accumulation + micro) * per_micro
        pairs = [sample(step, first + i) for i in range(per_micro)]
        latents, text = (torch.stack(tensors) for tensors in zip(*pairs, strict=True))
        timesteps = torch.full((per_micro,), 100 * step)
        answer = engine.network(latents, timesteps, Conditioning(text))
        return ((answer.float() - latents) ** 2).mean()

    steps = train_steps(engine, job, groups, micro_loss, lambda step: 1e-2)
    if job.save:
        save(engine, Path(job.save), groups.rank.rank)
    return {
        **steps,
        "shapes": {name: list(i.shape) for name, i in engine.parameters_info().items()},
    }


if __name__ == "__main__":
    run_jobs(Job, train)
