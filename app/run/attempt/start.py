"""What a start of a run continues, decided before anything is written.

A start goes on at the newest checkpoint of the run. `--restart` and `--resume-from` ask for
something else; the attempt's record keeps that request, so that a pod that starts again with the
same command goes on instead of doing it once more.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.checkpoint.attempts import (
    RESTART,
    AttemptRecord,
    Lineage,
    newest_decided,
    read_whole_attempts,
)
from app.checkpoint.catalog import (
    checkpoint_refs,
    find_newest,
    finished_checkpoint,
    has_manifest,
    read_manifest,
    ways_on,
)
from app.checkpoint.completion import Completion, read_completion
from app.checkpoint.layout import CHECKPOINTS, COMPLETE, RUN, CheckpointRef
from app.config.schema.run import TrainableRun
from app.errors import CheckpointError, ConfigError, InputMissingError
from app.run.attempt.identity import check_identity, identity_of, stored_identity
from app.run.attempt.same_job import check_length, compare_jobs
from app.storage.objects import ObjectMissingError, Storage

log = logging.getLogger(__name__)

RESUME_FROM = "resume-from "


@dataclass(frozen=True, slots=True)
class Start:
    """What to do.

    Attributes:
        newest: the checkpoint to go on from; None: begin at step 0.
        request: what the command line asked for, as the attempt's record keeps it.
        identity: the content of run.json, if it has to be written.
        obsolete: keys to delete once the attempt is recorded: an end that is none any more, files
            that are damaged and not needed after the request.
        finished: the run is done already, after this many steps; nothing is to do.
    """

    newest: CheckpointRef | None = None
    request: str | None = None
    identity: Mapping[str, Any] | None = None
    obsolete: tuple[str, ...] = ()
    finished: int | None = None


def request_of(config: TrainableRun) -> str | None:
    """What the command line asks for.

    Raises:
        ConfigError: two things at once.
    """
    step = config.training.resume_from
    if config.training.restart and step is not None:
        raise ConfigError(
            "--restart begins at step 0, and --resume-from at a checkpoint",
            where="args.restart, args.resume_from",
            fix="leave one of them out",
        )
    if step is not None:
        return f"{RESUME_FROM}{step}"
    return RESTART if config.training.restart else None


def decide(storage: Storage, config: TrainableRun, text: str, world: Mapping[str, int]) -> Start:
    """Look at the run's folder; nothing is written.

    Args:
        storage: the run's folder.
        config: of this start.
        text: its snapshot.
        world: sizes of this start.

    Raises:
        ConfigError: the folder holds another run, a finished one of another job, or the length is
            below what is done.
        CheckpointError: there are checkpoints and none can be used, or a file is damaged.
        InputMissingError: the requested checkpoint is not there.
    """
    request = request_of(config)
    seen = _look(storage, is_strict=request is None)
    before = newest_decided(seen.attempts)
    is_repeated = request is not None and before is not None and before.request == request
    completion = seen.completion
    # Who restarts a run that its own restart finished wants it once more; but a pod that was lost
    # just before its end wants nothing.
    is_anew = request == RESTART and completion is not None
    is_met = not is_anew or (before is not None and before.ended is None)
    request_now = None if is_repeated and is_met else request
    if request_now == RESTART:
        return Start(None, request, identity_of(config), (*seen.damaged, *seen.ends))
    identity = _identity(storage, config, seen)
    if request_now is None and completion is not None:
        if compare_jobs(storage, completion, seen.attempts, text, world):
            return Start(finished=completion.step)
        newest = finished_checkpoint(storage, completion, seen.attempts)
    elif request_now is None:
        newest = _newest(storage, seen)
        if is_repeated:
            log.info(
                "the request was met by an earlier start, which is continued",
                extra={"request": request, "checkpoint": newest.name if newest else None},
            )
    else:
        newest = _requested(storage, request_now.removeprefix(RESUME_FROM), seen)
    if newest is not None and config.training.epochs is None:
        check_length(config.training.steps, newest.step, storage.url)
    return Start(newest, request, identity, (*seen.damaged, *seen.ends))


@dataclass(slots=True)
class _Seen:
    """What the folder holds."""

    attempts: list[AttemptRecord]
    completion: Completion | None = None  # while it counts
    stored: dict[str, Any] | None = None  # run.json
    damaged: list[str] = field(default_factory=list)  # keys
    ends: list[str] = field(default_factory=list)  # complete.json, if there is one


def _look(storage: Storage, *, is_strict: bool) -> _Seen:
    """Read the small files; a damaged one is an error unless a request makes it superfluous."""
    attempts, damaged = read_whole_attempts(storage)
    problems: dict[str, CheckpointError] = dict(damaged)
    seen = _Seen(attempts)
    try:
        completion = read_completion(storage)
        if completion is not None:
            seen.ends.append(COMPLETE)
            seen.completion = completion if completion.counts(attempts) else None
    except CheckpointError as error:
        problems[COMPLETE] = error
    try:
        seen.stored = stored_identity(storage)
    except CheckpointError as error:
        problems[RUN] = error
    if problems and is_strict:
        raise next(iter(problems.values()))
    for key, problem in problems.items():
        log.warning("%s is damaged and left out: %s", key, problem.what)
    seen.damaged = list(problems)
    return seen


def _identity(storage: Storage, config: TrainableRun, seen: _Seen) -> dict[str, Any] | None:
    """Compare run.json; returns what has to be written."""
    identity = identity_of(config)
    if seen.stored is None:
        return identity
    if _never_trained(storage, seen):
        return identity
    check_identity(seen.stored, identity, config, f"{storage.url}/{RUN}")
    # A run of an earlier version says less.
    return None if seen.stored.keys() >= identity.keys() else identity


def _never_trained(storage: Storage, seen: _Seen) -> bool:
    """Whether every start ended without a checkpoint: a wrong path may be put right."""
    if seen.completion is not None or any(one.ended is None for one in seen.attempts):
        return False
    return not any(has_manifest(storage, ref) for ref in checkpoint_refs(storage))


def _newest(storage: Storage, seen: _Seen) -> CheckpointRef | None:
    found = find_newest(storage, attempts=seen.attempts)
    if found is not None:
        return found
    restarts = [one.number for one in seen.attempts if one.request == RESTART and one.decided]
    first = max(restarts, default=0)
    refs = [ref for ref in checkpoint_refs(storage) if has_manifest(storage, ref)]
    forks = [ref for ref in refs if ref.attempt >= first]
    if forks:
        raise CheckpointError(
            "the run has checkpoints, and none of them is of the newest start, which began at "
            f"step 0: {', '.join(ref.name for ref in forks)}",
            where=f"{storage.url}/{CHECKPOINTS}",
            fix=f"end the other process that writes here, {ways_on(storage, forks)}",
        )
    return None


def _requested(storage: Storage, wanted: str, seen: _Seen) -> CheckpointRef:
    """The checkpoint that --resume-from names, by its name or by its step."""
    refs = [ref for ref in checkpoint_refs(storage) if has_manifest(storage, ref)]
    lineage = _lineage(seen)
    named = [ref for ref in refs if wanted in (ref.name, str(ref.step))]
    problem: CheckpointError | None = None
    for ref in sorted(named, key=lambda ref: (ref in lineage, ref), reverse=True):
        try:
            read_manifest(storage, ref)
        except ObjectMissingError:
            continue
        except CheckpointError as error:
            problem = problem or error
        else:
            return ref
    if problem is not None:
        others = [ref for ref in refs if ref not in named]
        raise CheckpointError(problem.what, where=problem.where, fix=ways_on(storage, others))
    raise InputMissingError(
        f"there is no checkpoint {wanted!r}",
        where=f"{storage.url}/{CHECKPOINTS}",
        fix=_available(refs),
    )


def _lineage(seen: _Seen) -> Lineage:
    end = seen.completion.ref if seen.completion is not None else None
    return Lineage(seen.attempts, end)


def _available(refs: Sequence[CheckpointRef]) -> str:
    if not refs:
        return "leave --resume-from out: the run has no complete checkpoint"
    return f"name one of {', '.join(ref.name for ref in refs[::-1])}"
