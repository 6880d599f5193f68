"""The run's folder in the object store: who writes, what it continues, whether it is finished.

Rank 0 asks the storage and broadcasts the answer, so that all ranks decide alike and a thousand
ranks do not list the bucket a thousand times.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from app import __version__
from app.checkpoint.attempts import (
    AttemptRecord,
    begin_attempt,
    end_attempt,
    next_attempt,
    note_resumed,
)
from app.checkpoint.completion import Completion, write_completion
from app.checkpoint.layout import RUN, CheckpointRef, config_key, run_url
from app.config.schema.run import TrainableRun
from app.config.snapshot import digest, masked, snapshot
from app.distributed.agreement import on_rank_zero
from app.errors import CogvxError
from app.run.attempt.identity import write_identity
from app.run.attempt.start import decide
from app.storage.objects import Storage
from app.storage.opening import open_storage

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """An open run: its storage, this start of it, and the checkpoint that it continues."""

    storage: Storage
    attempt: AttemptRecord
    newest: CheckpointRef | None  # None: start from the initial weights
    config_sha256: str


def open_run(config: TrainableRun, rank: int, world: Mapping[str, int]) -> RunFolder | None:
    """Begin an attempt of the run; None when the run is finished already.

    Args:
        config: `runs_url` and `run_id` name the folder.
        rank: rank 0 writes, the others wait for what it found.
        world: sizes for the record: world_size, micro_batch, ...

    Raises:
        ConfigError: the folder holds another run, or a finished one of another job.
        CheckpointError: the run has checkpoints and none can be used, or a file is damaged.
        CogvxError: the storage cannot be used.
    """
    storage = open_storage(run_url(config.runs_url, config.run_id))
    text = snapshot(config)
    found = on_rank_zero(rank, lambda: _begin(storage, config, text, world))
    if found is None:
        return None
    assert isinstance(found, dict)
    newest = CheckpointRef.parse(found["newest"]) if found["newest"] else None
    return RunFolder(storage, AttemptRecord(**found["attempt"]), newest, digest(text))


def finish_run(run: RunFolder, step: int) -> None:
    """Write complete.json: every later start of the same job exits immediately. Rank 0 only."""
    newest, attempt = run.newest, run.attempt
    is_older = newest is not None and newest.step == step  # nothing was left to do
    last = newest if newest is not None and is_older else CheckpointRef(attempt.number, step)
    write_completion(
        run.storage,
        Completion(
            step=step,
            version=__version__,
            checkpoint=last.name,
            attempt=attempt.number,
            owner=attempt.owner,
            last_attempt=next_attempt(run.storage) - 1,
            config_sha256=run.config_sha256,
        ),
    )


def close_attempt(run: RunFolder, cause: str) -> None:
    """Record the end of this start. Rank 0 only; a failure is only logged."""
    try:
        end_attempt(run.storage, run.attempt, str(masked(cause)))
    except CogvxError as problem:
        log.warning("the end of the attempt was not recorded", extra={"problem": problem.what})


def _begin(
    storage: Storage, config: TrainableRun, text: str, world: Mapping[str, int]
) -> dict[str, Any] | None:
    storage.check_reachable()
    start = decide(storage, config, text, world)
    if start.finished is not None:
        log.info(
            "the run is finished already", extra={"steps_done": start.finished, "url": storage.url}
        )
        return None
    if start.identity is not None:
        write_identity(storage, start.identity)
    resumed_from = start.newest.name if start.newest else None
    attempt = begin_attempt(storage, world, start.request)
    attempt = note_resumed(storage, attempt, resumed_from)
    storage.write_small(config_key(attempt.number, attempt.owner), text.encode())
    # Only now: with the record they do not count any more, whenever this process ends.
    storage.delete([key for key in start.obsolete if key != RUN])
    log.info(
        "attempt begun",
        extra={"url": storage.url, "attempt": attempt.number, "resumed_from": resumed_from},
    )
    return {
        "newest": resumed_from,
        "attempt": {**asdict(attempt), "world": dict(attempt.world)},
    }
