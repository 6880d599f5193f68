"""Runs in a folder, with checkpoints of random weights, as trainings leave them."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from app.checkpoint.fragments import Fragment, ParameterInfo
from app.checkpoint.manifest import CheckpointIdentity
from app.checkpoint.train_state import TrainState
from app.checkpoint.writer import Snapshot, save_checkpoint
from app.models.dit.transformer import DiffusionTransformer
from app.run.attempt.folder import open_run
from app.run.build import choose_trainable
from app.storage.local import LocalStorage
from tests.support.configs import base, load_trainable
from tests.support.ranks import run_ranks
from tests.unit.run.folders import WORLD

Tensors = dict[str, Tensor]


class MakeRun(Protocol):
    """Writes a run `runs/a` with checkpoints of some steps; its tensors at the last of them."""

    def __call__(
        self,
        model: str = "tiny",
        steps: tuple[int, ...] = (4,),
        url: str = "null",
        ema: bool = False,
        more: tuple[str, ...] = (),
    ) -> Tensors: ...


def noise(shape: torch.Size, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def writer_of_runs(tmp_path: Path) -> MakeRun:
    """What writes a run below a folder."""

    def make(
        model: str = "tiny",
        steps: tuple[int, ...] = (4,),
        url: str = "null",
        ema: bool = False,
        more: tuple[str, ...] = (),
    ) -> Tensors:
        words = ("--save", str(tmp_path / "runs"), "--run-id", "a", f"args.load={url}", *more)
        config = load_trainable(*base(f"tiny/{model}", "tiny/tiny_train"), *words)
        assert open_run(config, 0, WORLD) is not None
        network = DiffusionTransformer(config.model.network.params)
        choose_trainable(network, config.model)
        trained = {n: p.shape for n, p in network.named_parameters() if p.requires_grad}
        for step in steps:
            tensors = {name: noise(shape, step) for name, shape in trained.items()}
            write_checkpoint(tmp_path, step, tensors, ("master", "ema") if ema else ("master",))
        return tensors

    return make


def write_checkpoint(tmp_path: Path, step: int, tensors: Tensors, kinds: tuple[str, ...]) -> None:
    """Averages, where asked for, are half of the weights."""
    factors = {"master": 1.0, "ema": 0.5}
    snapshot = Snapshot(
        fragments=[
            Fragment(name, kind, 0, tensor.flatten() * factors[kind])
            for name, tensor in tensors.items()
            for kind in kinds
        ],
        parameters={name: ParameterInfo(tuple(t.shape), 0) for name, t in tensors.items()},
        state=TrainState(step=step, cursor={"t": step}),
    )
    identity = CheckpointIdentity(
        run_id="a", attempt=1, owner="3f9c2a1b", step=step, kind="full", parent=None
    )
    storage, scratch = LocalStorage(tmp_path / "runs/a"), tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    (name,) = run_ranks(
        1, lambda exchange: save_checkpoint(storage, identity, snapshot, exchange, scratch)
    )
    assert isinstance(name, str), name
