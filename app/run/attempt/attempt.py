"""One start of a run: every module built, the state restored, the loop run.

`train` is the sequence; the other methods are one step of it each.
"""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from app.config.schema.run import TrainableRun
from app.config.schema.training import TrainingConfig
from app.data.batch import Batch, collate
from app.data.loader import Loader
from app.data.opening import LoaderRequest, open_loader
from app.data.order.share import Share
from app.data.quarantine import ReplacedSource
from app.data.sources.views import PARTS
from app.diffusion.timesteps import RankStratum, Strata
from app.distributed.agreement import on_rank_zero
from app.distributed.groups import ProcessGroups
from app.distributed.rank_group import world
from app.distributed.seeding import Draws, GlobalDraws, KeyedDraws
from app.distributed.shared_work import SharedWork
from app.models.dit.parallel import split_axis
from app.run.attempt.bad_samples import QuarantineKeeper
from app.run.attempt.data import clip_cost_in, frames_per_second, split_of
from app.run.attempt.folder import RunFolder, finish_run
from app.run.attempt.history import validation_at
from app.run.attempt.latents import CachedClips
from app.run.attempt.node_table import NodePeers
from app.run.attempt.reporting import make_trackers, save_arguments, write_progress
from app.run.attempt.same_job import check_length
from app.run.attempt.saving import Saver, restore
from app.run.attempt.validation import Evaluator
from app.run.build import (
    DTYPES,
    InitialWeights,
    LoadOptions,
    build_modules,
    build_network,
    share_encoding,
)
from app.run.weights.first_pairs import load_first_pairs
from app.storage.node_disk import node_folder
from app.telemetry.logging import LogContext
from app.telemetry.profiling import StepProfiler
from app.telemetry.timing import PartTimes
from app.training.engine import Engine
from app.training.health import Health, check_end
from app.training.loop import LoopHooks, LoopPlan, LoopState, LoopTools, is_due, run_loop
from app.training.lr_schedule import LrSchedule
from app.training.signals import StopFlag
from app.training.step import DiffusionModel, Randomness

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Seams:
    """What a caller of `training_main` may replace."""

    model_cls: type[DiffusionModel]
    forward_step: Callable[..., Any]
    create_dataset: Callable[..., Any] | None
    collate_fn: Callable[..., Any] | None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One start of a run, from the data to the last step."""

    args: Namespace
    config: TrainableRun
    groups: ProcessGroups
    run: RunFolder
    scratch: Path
    context: LogContext
    stop: StopFlag

    def train(self, seams: Seams, init: Callable[[Namespace, DiffusionModel], None] | None) -> str:
        """Build everything, continue where the run was, train; returns the cause of the end."""
        times = PartTimes(self.groups.device)
        with ExitStack() as stack:
            cached = CachedClips.of_run(self.config, NodePeers.of(self.groups.rank))
            loader = stack.enter_context(self.loader(seams, cached))
            training = self.resolved(loader)
            model, engine = self.model(seams.model_cls, times, training, loader.share.batch)
            if init is not None:
                init(self.args, model)
            saver = Saver(self.config, self.run, self.groups, engine, loader, self.scratch)
            state, stored = restore(saver, with_rng=not training.no_load_rng)
            # Epochs are steps only since the data was counted.
            check_length(training.steps, state.step, self.run.storage.url)
            evaluate = self.evaluator(seams, model, engine, stack, cached)
            if cached is not None:
                cached.forget_listing()
            tools, saver.wandb_run_id = self.tools(
                times, training, state, stored.wandb_run_id if stored else None
            )
            stack.callback(tools.trackers.close)
            if evaluate is not None and state.step == 0:
                first = evaluate.baseline()
                tools.health.observe_validation(0, first["valid_loss"])
                tools.trackers.log(0, first)
            is_inside = 0 < state.step < training.steps  # the end validates anyway
            if evaluate and is_inside and is_due(state.step, training.evaluation.interval):
                self.make_up(evaluate, saver, state, tools)
            # Closed before the loader, which gets back what was read ahead.
            batches = stack.enter_context(closing(self.batches(loader, state)))
            micro_step = self.micro_step(seams.forward_step, model, batches, times)
            hooks = self.hooks(micro_step, saver, evaluate, training.steps, stack)
            plan = self.plan(training)
            last = run_loop(engine, plan, hooks, tools, state)
            if last.stopped_early:
                return f"stopped by exit_interval after step {last.step}"
            # A start that found all steps done cannot know whether the last one was validated.
            is_validated = last.step > state.step and is_due(last.step, plan.eval_interval)
            self.finish(last, plan, None if is_validated else evaluate, tools)
            return f"finished after step {last.step}"

    def loader(self, seams: Seams, cached: CachedClips | None = None) -> Loader:
        """This rank's batches of the training data, live or from the latent cache."""
        data, training = self.config.data, self.config.training
        copies = self.groups.copies
        request = LoaderRequest(
            paths=data.train,
            share=Share(copies.rank, copies.size, training.micro_batch, training.accumulation),
            seed=training.seed,
            compat=self.config.compat,
            weights=data.train_weights,
            args=self.args,
            create=seams.create_dataset,
            replace=cached.cached_source if cached is not None else None,
            collate_fn=seams.collate_fn,
            split=split_of(data),
            cost=clip_cost_in(self.config.model),
            shared_work=SharedWork(world()),
        )
        return open_loader(data, request)

    def resolved(self, loader: Loader) -> TrainingConfig:
        """The training section with its number of steps; epochs are counted in the data."""
        training = self.config.training
        if training.epochs is not None:
            training = replace(training, steps=loader.steps_for_epochs(training.epochs))
        log.info(
            "data",
            extra={"samples": len(loader), "batch": loader.share.batch, "steps": training.steps},
        )
        return training

    def model(
        self,
        model_cls: type[DiffusionModel],
        times: PartTimes,
        training: TrainingConfig,
        batch: int,
    ) -> tuple[DiffusionModel, Engine]:
        """The modules with their weights, the network under DeepSpeed."""
        model = self.config.model
        device, dtype = self.groups.device, DTYPES[training.precision]
        weights = InitialWeights(
            url=training.load,
            is_resumed=self.run.newest is not None,
            force=training.force_train,
            seed=training.seed,
            cache_dir=node_folder("weights"),
        )
        network, report = build_network(
            model, dtype, weights, device=device, group=self.groups.tensor
        )
        if training.lora_from is not None and self.run.newest is None:
            load_first_pairs(network, training.lora_from, node_folder("weights"), self.scratch)
        if model.compile_model:
            network.compile_blocks()
        options = LoadOptions(device, dtype, node_folder("weights"))
        from_cache = self.config.data.latent_cache is not None
        modules = build_modules(model, network.to(device), options, from_cache=from_cache)
        share_encoding(modules.vae, self.groups)
        log.info(
            "parameters",
            extra={"trainable": report.trainable_count, "frozen": report.frozen_count},
        )
        engine = Engine.start(modules.network, training, self.groups, split_axis)
        diffusion = model_cls(
            modules,
            model,
            self.randomness(training, batch),
            device=device,
            dtype=dtype,
            times=times,
        )
        diffusion.network = engine.network
        return diffusion, engine

    def randomness(self, training: TrainingConfig, batch: int) -> Randomness:
        """Draws keyed by position, or upstream's global ones; strata of the timesteps.

        `batch` is the number of positions of a step.
        """
        compat, copies = self.config.compat, self.groups.copies
        timesteps = self.config.model.loss.timesteps
        strata: Callable[[Sequence[int]], Strata | RankStratum | None] = lambda positions: None  # noqa: E731
        if compat.strata == "sat":
            of_rank = RankStratum.of_rank(timesteps, copies.rank, copies.size)
            strata = lambda positions: of_rank  # noqa: E731
        elif timesteps.uniform_sampling:
            strata = partial(Strata.from_positions, total=batch, seed=training.seed)
        draws: Callable[[Sequence[int]], Draws] = partial(KeyedDraws, training.seed)
        if compat.draws == "sat":
            device = self.groups.device
            draws = lambda positions: GlobalDraws(device)  # noqa: E731
        return Randomness(draws, strata, compat.image_dropout == "micro_batch")

    def evaluator(
        self,
        seams: Seams,
        model: DiffusionModel,
        engine: Engine,
        stack: ExitStack,
        cached: CachedClips | None = None,
    ) -> Evaluator | None:
        """Validation, if the configuration names data for it."""
        data, training = self.config.data, self.config.training
        split = split_of(data)
        if not (data.valid or split[1]) or not training.evaluation.interval:
            return None
        copies = self.groups.copies
        request = LoaderRequest(
            paths=data.valid or data.train,
            split=(1.0, 0.0, 0.0) if data.valid else split,
            part=PARTS[0] if data.valid else PARTS[1],
            share=Share(copies.rank, copies.size, training.evaluation.batch_size),
            seed=training.seed,
            compat=self.config.compat,
            args=self.args,
            create=seams.create_dataset,
            replace=cached.cached_or_live_source if cached is not None else None,
            shared_work=SharedWork(world()),
        )
        # One size for all of them, so that losses of two runs can be compared.
        of_one_size = replace(data, num_workers=0, buckets=())
        loader = stack.enter_context(open_loader(of_one_size, request))
        return Evaluator(
            config=training.evaluation,
            model=model,
            engine=engine,
            source=ReplacedSource(loader.source, loader.quarantine),
            collate=seams.collate_fn or collate,
            storage=self.run.storage,
            copies=copies,
            fps=frames_per_second(data),
            sharers=self.groups.tensor,
        )

    def tools(
        self,
        times: PartTimes,
        training: TrainingConfig,
        state: LoopState,
        wandb_run_id: str | None,
    ) -> tuple[LoopTools, Callable[[], str | None]]:
        """Clocks, trackers (on rank 0), the stop flag."""
        health = Health(warns=self.groups.rank.rank == 0)
        tools = LoopTools(times=times, stop=self.stop, context=self.context, health=health)
        if self.groups.rank.rank:
            return tools, lambda: None
        if training.save_args:
            save_arguments(self.args, self.config)
        tools.trackers, wandb_id = make_trackers(
            self.config,
            self.run,
            training.steps,
            first_step=state.step,
            wandb_run_id=wandb_run_id,
            show=getattr(self.args, "show", None),
        )
        return tools, wandb_id

    def make_up(
        self, evaluate: Evaluator, saver: Saver, state: LoopState, tools: LoopTools
    ) -> None:
        """Validate at the step of the checkpoint, if the start before was killed meanwhile.

        The noise is fixed, so the numbers are those that it would have had.
        """
        newest = self.run.newest
        assert newest is not None, "a state beyond step 0 comes from a checkpoint"
        rank = self.groups.rank.rank
        found = on_rank_zero(rank, lambda: validation_at(self.run.storage, newest))
        if found is None:
            log.info("validation made up", extra={"steps_done": state.step})
            found = evaluate(state)
            tools.trackers.log(state.step, found)
            tools.trackers.flush()
        saver.note_validation(state.step, found)

    def batches(self, loader: Loader, state: LoopState) -> Generator[Batch, None, None]:
        """The batches from the state's step on."""
        # Upstream restarts its data by default; the default order always continues.
        restarts = self.config.compat.order == "sat" and not self.config.training.resume_dataloader
        return loader.batches(0 if restarts else state.step)

    def micro_step(
        self,
        step_function: Callable[..., Any],
        model: DiffusionModel,
        batches: Iterator[Batch],
        times: PartTimes,
    ) -> Callable[[int], Any]:
        """`forward_step` on the next batch."""
        logged = map(_logged, batches)

        def call(step: int) -> Any:
            self.args.iteration = step
            return step_function(logged, model, self.args, times)

        return call

    def hooks(
        self,
        micro_step: Callable[[int], Any],
        saver: Saver,
        evaluate: Evaluator | None,
        steps: int,
        stack: ExitStack,
    ) -> LoopHooks:
        """What the loop calls."""
        profiler = StepProfiler(
            self.config.training.profiling,
            self.groups.device,
            Path(self.config.training.summary_dir or "."),
        )
        stack.callback(profiler.close)
        rank = self.groups.rank.rank
        keeper = QuarantineKeeper(self.run, rank, saver.loader, self.config.data.train)
        stack.callback(keeper.close)
        keeper.begin()

        def before_step(step: int) -> None:
            keeper.check(step)
            profiler.before(step)

        def save(state: LoopState) -> None:
            keeper.write()
            saver.save(state)

        def validate(state: LoopState) -> dict[str, float] | None:
            if evaluate is None:
                return None
            metrics = evaluate(state)
            saver.note_validation(state.step, metrics)
            return metrics

        def on_log(state: LoopState, metrics: Mapping[str, float]) -> None:
            if rank == 0:
                write_progress(self.run, state, steps, metrics, "running")

        return LoopHooks(
            micro_step=micro_step,
            save=save,
            evaluate=validate,
            before_step=before_step,
            on_log=on_log,
            has_news=keeper.has_news,
            on_news=keeper.agree,
            metrics=keeper.metrics,
        )

    def plan(self, training: TrainingConfig) -> LoopPlan:
        """Lengths and intervals."""
        return LoopPlan(
            steps=training.steps,
            accumulation=training.accumulation,
            samples_per_step=training.micro_batch * training.accumulation * self.groups.copies.size,
            schedule=LrSchedule.from_config(training),
            log_interval=training.log_interval,
            save_interval=training.save_interval,
            eval_interval=training.evaluation.interval,
            exit_interval=training.exit_interval,
        )

    def finish(
        self,
        state: LoopState,
        plan: LoopPlan,
        evaluate: Evaluator | None,
        tools: LoopTools,
    ) -> None:
        """Validate the last weights unless that is done, and mark the run as finished.

        Raises:
            DivergedError: its last steps changed no weights.
        """
        check_end(state.step, state.bad_in_a_row)
        if evaluate is not None:
            tools.trackers.log(state.step, evaluate(state))
        tools.trackers.flush()
        if self.groups.rank.rank == 0:
            write_progress(self.run, state, plan.steps, {}, "finished")
            finish_run(self.run, state.step)
        log.info("finished", extra={"steps_done": state.step, "url": self.run.storage.url})


def _logged(batch: Batch) -> Batch:
    """The batch, after a debug line with its samples."""
    log.debug("batch", extra={"positions": batch["positions"], "samples": batch["keys"]})
    return batch
