"""Train: the way in, and the seams that users of the original know.

`training_main`, `forward_step`, `forward_step_eval` and `broad_cast_batch` have the contract that
users of the original know, and are what our own command runs.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from app.config.runnable import trainable_run
from app.config.schema.run import TrainableRun
from app.config.snapshot import masked
from app.distributed.groups import ProcessGroups
from app.errors import CogvxError, InterruptedRunError, PreemptedError
from app.run.arguments import get_args as get_args
from app.run.arguments import process_config_to_args as process_config_to_args
from app.run.arguments import seed_from, start_distributed
from app.run.attempt.attempt import Attempt, Seams
from app.run.attempt.folder import RunFolder, close_attempt, open_run
from app.run.attempt.reporting import upload_log, write_end
from app.storage.node_disk import node_folder
from app.telemetry.logging import LogContext, logging_for
from app.training.engine import prepare_process
from app.training.forward import broad_cast_batch as broad_cast_batch
from app.training.forward import forward_step
from app.training.forward import forward_step_eval as forward_step_eval
from app.training.signals import command_line, stop_on_signals
from app.training.step import DiffusionModel

log = logging.getLogger(__name__)

SATVideoDiffusionEngine = DiffusionModel  # its name in the YAML world


def train(args: Namespace, show: Callable[[str], None] | None = None) -> int:
    """`cogvx train` inside one rank; returns the exit code.

    Args:
        args: with a configuration that has been checked (`app.config.runnable`).
        show: takes the progress line of a terminal; None: there is none.
    """
    compiles = args.run_config.model.compile_model
    prepare_process(on_cpu=not torch.cuda.is_available(), compiles=compiles)
    start_distributed(args)
    seed_from(args)
    args.show = show
    return training_main(args, DiffusionModel, forward_step, forward_step_eval)


def training_main(  # noqa: PLR0913 (the contract)
    args: Namespace,
    model_cls: type[DiffusionModel],
    forward_step_function: Callable[..., Any],
    forward_step_eval: Callable[..., Any] | None = None,
    create_dataset_function: Callable[..., Any] | None = None,
    handle_metrics: Callable[..., Any] | None = None,
    init_function: Callable[[Namespace, DiffusionModel], None] | None = None,
    collate_fn: Callable[..., Any] | None = None,
) -> int:
    """Train until the last step; return the exit code.

    Args:
        args: from `get_args`; carries the frozen configuration as `run_config`.
        model_cls: the engine class of the YAML world.
        forward_step_function: (data_iterator, model, args, timers) -> (loss, numbers).
        forward_step_eval: accepted for the contract; validation has fixed noise (see evaluate).
        create_dataset_function: (path, args) -> dataset, instead of the configured class.
        handle_metrics: accepted for the contract; metrics are scalars.
        init_function: called with (args, model) once the model is built.
        collate_fn: makes a batch of samples.

    Raises:
        CogvxError: with the exit code that the launcher passes on.
    """
    seams = Seams(model_cls, forward_step_function, create_dataset_function, collate_fn)
    config = args.run_config
    if not isinstance(config, TrainableRun):  # `train` has checked it, another caller has not
        config = trainable_run(config)
    groups: ProcessGroups = args.groups
    rank = groups.rank.rank
    level = logging.DEBUG if config.training.debug else logging.INFO
    with ExitStack() as stack:
        scratches = node_folder("scratch")
        scratches.mkdir(parents=True, exist_ok=True)
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=scratches)))
        context = LogContext(rank=rank)
        log_path = scratch / "log.txt"
        stack.enter_context(logging_for(context, level=level, path=log_path))
        for warning in config.start_warnings if rank == 0 else ():
            log.warning(warning)
        stop = stack.enter_context(stop_on_signals(str(masked(command_line(sys.argv)))))
        run = open_run(config, rank, world_sizes(config, groups))
        if run is None:
            return 0
        attempt = Attempt(args, config, groups, run, scratch, context, stop)
        with _recorded(run, rank, log_path) as record:
            record.cause = attempt.train(seams, init_function)
        return 0


@dataclass(slots=True)
class _Record:
    """How a start ended, in words."""

    cause: str = ""
    status: str = "failed"


@contextmanager
def _recorded(run: RunFolder, rank: int, log_path: Path) -> Iterator[_Record]:
    """Keep the log, and how it ended and why, whatever happens inside."""
    record = _Record()
    try:
        yield record
        record.status = "finished" if record.cause.startswith("finished") else "stopped"
    except (PreemptedError, InterruptedRunError) as problem:
        record.cause, record.status = problem.what, "interrupted"
        raise
    except CogvxError as problem:
        record.cause = problem.what
        raise
    except BaseException as problem:
        record.cause = repr(problem)
        if isinstance(problem, KeyboardInterrupt):
            record.status = "interrupted"
        raise
    finally:
        if rank == 0 and record.status != "finished":
            write_end(run, record.status, record.cause)
        upload_log(run, rank, log_path)
        if rank == 0:
            close_attempt(run, record.cause)


def world_sizes(config: TrainableRun, groups: ProcessGroups) -> dict[str, int]:
    """Sizes for the attempt's record."""
    training = config.training
    return {
        "world_size": groups.rank.world_size,
        "nproc_per_node": groups.rank.local_world_size,
        "micro_batch": training.micro_batch,
        "accumulation": training.accumulation,
        "model_parallel_size": training.model_parallel_size,
    }
