"""What a run saves in a checkpoint, and how it resumes from one."""

from __future__ import annotations

import logging
import math
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist

from app import __version__
from app.checkpoint.catalog import checkpoint_refs, ways_on
from app.checkpoint.json_file import DamagedError
from app.checkpoint.layout import CheckpointRef
from app.checkpoint.manifest import CheckpointIdentity
from app.checkpoint.reader import open_checkpoint
from app.checkpoint.retention import apply_retention
from app.checkpoint.rng import capture_rng, restore_rng
from app.checkpoint.train_state import TrainState
from app.checkpoint.writer import Snapshot, save_checkpoint
from app.config.schema.run import TrainableRun
from app.data.loader import Loader
from app.data.order.cursor import Cursor
from app.distributed.exchange import StoreExchange
from app.distributed.groups import ProcessGroups
from app.distributed.rank_group import world
from app.errors import CheckpointError
from app.run.attempt.folder import RunFolder
from app.training.engine import Engine
from app.training.loop import LoopState

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Saver:
    """Writes the checkpoints of one attempt; `save` is called by every rank."""

    config: TrainableRun
    run: RunFolder
    groups: ProcessGroups
    engine: Engine
    loader: Loader
    scratch: Path
    wandb_run_id: Callable[[], str | None] = lambda: None
    best: dict[str, float] = field(default_factory=dict)  # lowest valid_loss so far, and its step
    _exchange: StoreExchange = field(init=False)
    _parent: str | None = field(init=False)  # name of the checkpoint that the next one follows

    def __post_init__(self) -> None:
        self._parent = self.run.newest.name if self.run.newest else None
        rank = self.groups.rank
        # A process may train twice with one store: each attempt has its own keys.
        store = dist.PrefixStore(self.run.attempt.owner, self.groups.store)
        self._exchange = StoreExchange(store, rank=rank.rank, world_size=rank.world_size)

    def save(self, state: LoopState) -> None:
        """Publish a checkpoint of `state`; returns when it is complete on every rank."""
        snapshot = Snapshot(
            fragments=self.engine.fragments(),
            parameters=self.engine.parameters_info(),
            state=self._train_state(state) if self._exchange.rank == 0 else None,
            rng=None if self.config.training.no_save_rng else capture_rng(),
        )
        identity = self._identity(state)
        name = save_checkpoint(self.run.storage, identity, snapshot, self._exchange, self.scratch)
        self._parent = identity.ref.name
        # Without it a fast rank could begin the next save, or exit, before the manifest exists.
        world().barrier()
        if name is not None:
            self._retain(name)

    def note_validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Remember the best validation: the checkpoint of its step, if there is one, is kept."""
        loss = metrics.get("valid_loss", math.nan)
        if loss < self.best.get("valid_loss", math.inf):
            self.best = {"valid_loss": loss, "step": step}

    def _identity(self, state: LoopState) -> CheckpointIdentity:
        return CheckpointIdentity(
            run_id=self.config.run_id,
            attempt=self.run.attempt.number,
            owner=self.run.attempt.owner,
            step=state.step,
            kind="full" if self.config.model.network.params.lora is None else "lora",
            parent=self._parent,
            config_sha256=self.run.config_sha256,
            dataset_sha256=self.loader.cursor(0).manifest_sha256,
        )

    def _train_state(self, state: LoopState) -> TrainState:
        training = self.config.training
        average = self.engine.average
        return TrainState(
            step=state.step,
            micro_step=state.step * training.accumulation,
            adam_step=self.engine.adam_steps(),
            cursor=self.loader.cursor(state.step).to_json(),
            seed=training.seed,
            skipped_steps=state.skipped_steps,
            bad_in_a_row=state.bad_in_a_row,
            loss_scale=self.engine.loss_scale(),
            ema_step=average.updates if average is not None else None,
            best=dict(self.best),
            wandb_run_id=self.wandb_run_id(),
            config_sha256=self.run.config_sha256,
            layout={
                "world_size": self.groups.rank.world_size,
                "zero_stage": training.zero_stage,
                "micro_batch": training.micro_batch,
                "accumulation": training.accumulation,
                "model_parallel_size": training.model_parallel_size,
            },
            versions={
                "cogvx-train": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        )

    def _retain(self, name: str) -> None:
        keep = self.config.training.keep_checkpoints
        if keep is None:
            return
        protected = {name}
        if self.run.newest:
            protected.add(self.run.newest.name)
        if self.best:
            attempts = range(1, self.run.attempt.number + 1)
            step = int(self.best["step"])
            protected |= {CheckpointRef(attempt, step).name for attempt in attempts}
        apply_retention(self.run.storage, keep, protected)


def restore(saver: Saver, *, with_rng: bool = True) -> tuple[LoopState, TrainState | None]:
    """Continue from the newest complete checkpoint, or start at step 0.

    Args:
        saver: of the same attempt; its engine is filled.
        with_rng: also restore the states of the global generators.

    Raises:
        CheckpointError: the checkpoint is damaged or does not fit the network.
        ConfigError, DataError: the data would come in another order.
    """
    run = saver.run
    if run.newest is None:
        return LoopState(), None
    try:
        state = _read(saver, run.newest, with_rng=with_rng)
    except DamagedError as error:
        others = [ref for ref in checkpoint_refs(run.storage) if ref != run.newest]
        fix = f"put the file back, {ways_on(run.storage, others)}"
        raise CheckpointError(error.what, where=error.where, fix=fix) from error
    log.info("resumed", extra={"checkpoint": run.newest.name, "steps_done": state.step})
    saver.best = dict(state.best)
    return LoopState(state.step, state.skipped_steps, state.bad_in_a_row), state


def _read(saver: Saver, ref: CheckpointRef, *, with_rng: bool) -> TrainState:
    run, engine = saver.run, saver.engine
    with open_checkpoint(run.storage, ref, saver.scratch) as checkpoint:
        checkpoint.check_parameters(engine.parameters_info())
        state = checkpoint.state
        cursor = Cursor.from_json(state.cursor)
        cursor.check_continues(saver.loader.cursor(state.step))
        saver.loader.quarantine.agree(cursor.quarantined)
        engine.restore(
            checkpoint.read,
            state.adam_step,
            ema_updates=state.ema_step,
            loss_scale=state.loss_scale,
        )
        rng = checkpoint.rng(saver.groups.rank.rank) if with_rng else None
        if rng is not None:
            restore_rng(rng, f"{run.storage.url}/{ref.folder}")
    return state
