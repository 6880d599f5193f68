"""One process that trains a small network, saves, restores, and prints its losses as JSON.

The network has six parameters of odd sizes, two groups (decay, no decay) and a frozen layer.
A job is a JSON file; see `Job`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from app.distributed.groups import ProcessGroups, process_groups
from app.distributed.rank import RankInfo
from app.distributed.rank_group import world
from app.training.engine import Engine
from tests.unit.training.configs import training_config

GLOBAL_BATCH = 12


class SmallNetwork(nn.Module):
    """Odd sizes, so that no world size divides them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(11)
        self.enter = nn.Linear(64, 17)
        self.frozen = nn.Linear(17, 17).requires_grad_(False)
        self.norm = nn.LayerNorm(17)
        self.leave = nn.Linear(17, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.enter.weight.dtype)
        return self.leave(torch.nn.functional.silu(self.norm(self.frozen(self.enter(x)))))


@dataclass(frozen=True)
class Job:
    """What one process does: train from `start` to `stop`; `folder` holds a save to start from."""

    stage: int
    precision: str
    start: int
    stop: int
    accumulation: int = 1
    ema: bool = False
    load: str | None = None
    save: str | None = None
    poison: int | None = None  # the step whose loss is not a number
    deepspeed: dict[str, object] | None = None


def data(step: int, sample: int) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * step + sample)
    return torch.randn(69, generator=generator)


def train(job: Job, groups: ProcessGroups) -> dict[str, object]:
    config = training_config(
        precision=job.precision,
        zero_stage=job.stage,
        accumulation=job.accumulation,
        clipping=0.5,
        ema_decay=0.9999 if job.ema else None,
    )
    if job.deepspeed:
        config = replace(config, deepspeed=job.deepspeed)
    network = SmallNetwork()
    started = time.monotonic()
    engine = Engine.start(network, config, groups)
    seconds = time.monotonic() - started
    if job.load:
        restore(engine, Path(job.load))
    per_micro = GLOBAL_BATCH // (groups.rank.world_size * job.accumulation)

    def micro_loss(step: int, micro: int) -> Tensor:
        first = (groups.rank.rank * job.accumulation + micro) * per_micro
        rows = torch.stack([data(step, first + i) for i in range(per_micro)])
        error = engine.network(rows[:, :64]).float() - rows[:, 64:]
        return (error**2).mean()

    steps = train_steps(
        engine, job, groups, micro_loss, lambda step: 1e-2 * min(1.0, (step + 1) / 3)
    )
    if job.save:
        save(engine, Path(job.save), groups.rank.rank)
    return {
        "losses": [loss.hex() for loss in steps["losses"]],
        "norms": steps["norms"],
        "skipped": steps["skipped"],
        "adam_steps": engine.adam_steps(),
        "updates": engine.average.updates if engine.average else None,
        "infos": {k: [list(i.shape), i.group] for k, i in engine.parameters_info().items()},
        "start_s": seconds,
    }


class Steps(Protocol):
    """Which steps a job trains; see `Job`."""

    @property
    def start(self) -> int: ...
    @property
    def stop(self) -> int: ...
    @property
    def accumulation(self) -> int: ...
    @property
    def poison(self) -> int | None: ...


def train_steps(
    engine: Engine,
    job: Steps,
    groups: ProcessGroups,
    micro_loss: Callable[[int, int], Tensor],
    lr: Callable[[int], float],
) -> dict[str, list[float]]:
    """Train the steps of a job; loss, norm and whether it was skipped, for each.

    `micro_loss` gets the numbers of step and micro-step. The last rank's loss of the step
    `poison` is NaN.
    """
    found: dict[str, list[float]] = {"losses": [], "norms": [], "skipped": []}
    is_last_rank = groups.rank.rank == groups.rank.world_size - 1
    for step in range(job.start, job.stop):
        total = torch.zeros(())
        for micro in range(job.accumulation):
            loss = micro_loss(step, micro)
            if step == job.poison and is_last_rank:
                loss = loss * float("nan")
            engine.backward(loss)
            total += loss.detach() / job.accumulation
        report = engine.step(lr(step))
        found["losses"].append(float(world().sum(total) / world().size))
        found["norms"].append(report.grad_norm)
        found["skipped"].append(report.skipped)
    return found


def save(engine: Engine, folder: Path, rank: int) -> None:
    folder.mkdir(exist_ok=True)
    pieces = {f"{f.kind}/{f.name}@{f.start}": f.values for f in engine.fragments()}
    save_file(pieces, folder / f"{rank}.safetensors")
    counts = {
        "adam_steps": engine.adam_steps(),
        "ema_updates": engine.average.updates if engine.average else None,
    }
    (folder / "counts.json").write_text(json.dumps(counts))


def restore(engine: Engine, folder: Path) -> None:
    counts = json.loads((folder / "counts.json").read_text())
    engine.restore(reader(folder), counts["adam_steps"], ema_updates=counts["ema_updates"])


def reader(folder: Path) -> Callable[[str, str, int, int], Tensor]:
    """Joins the pieces of all ranks; asserts that they tile each tensor."""
    whole: dict[str, Tensor] = {}
    pieces: dict[str, list[tuple[int, Tensor]]] = {}
    for path in folder.glob("*.safetensors"):
        for key, values in load_file(path).items():
            name, start = key.rsplit("@", 1)
            pieces.setdefault(name, []).append((int(start), values))
    for name, found in pieces.items():
        found.sort(key=lambda piece: piece[0])
        ends = [start + values.numel() for start, values in found]
        assert [start for start, _ in found] == [0, *ends[:-1]], name
        whole[name] = torch.cat([values for _, values in found])

    def read(name: str, kind: str, start: int, numel: int) -> Tensor:
        return whole[f"{kind}/{name}"][start : start + numel]

    return read


def run_jobs(kind: type[Any], run: Callable[[Any, ProcessGroups], dict[str, object]]) -> None:
    """Run the jobs of the file on the command line in this rank, and print what they give."""
    torch.set_num_threads(1)
    jobs = [kind(**job) for job in json.loads(Path(sys.argv[1]).read_text())]
    rank = RankInfo.from_environment(os.environ)
    with process_groups(rank, device=torch.device("cpu"), join_s=120) as groups:
        print(json.dumps([run(job, groups) for job in jobs]), flush=True)


if __name__ == "__main__":
    run_jobs(Job, train)
