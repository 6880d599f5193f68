"""What a run reports: metrics, progress.json, its log, its configuration."""

from __future__ import annotations

import logging
import math
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path

from app.checkpoint.json_file import canonical_json, parse_object
from app.checkpoint.layout import PROGRESS, log_key
from app.config.schema.run import TrainableRun
from app.config.snapshot import masked
from app.errors import CheckpointError, CogvxError
from app.run.attempt.folder import RunFolder
from app.run.attempt.history import records_before
from app.storage.objects import read_if_present
from app.telemetry.metrics import (
    JsonlTracker,
    ProgressTracker,
    TensorBoardTracker,
    Tracker,
    Trackers,
)
from app.telemetry.wandb_tracker import WandbRun, WandbTracker
from app.training.loop import LoopState

log = logging.getLogger(__name__)

PROGRESS_METRICS = ("loss", "lr", "samples_per_s", "eta_s", "bad_samples")


def make_trackers(
    config: TrainableRun,
    run: RunFolder,
    steps: int,
    *,
    first_step: int,
    wandb_run_id: str | None,
    show: Callable[[str], None] | None,
) -> tuple[Trackers, Callable[[], str | None]]:
    """The trackers of rank 0, and a function that returns the W&B run's id.

    Args:
        first_step: steps done before this start.
        wandb_run_id: of the start that is continued.
        show: takes the progress line of a terminal; None: no terminal.
    """
    training = config.training
    trackers: list[Tracker] = [JsonlTracker(run.storage.write_small, run.attempt.number)]
    if show is not None:
        trackers.append(ProgressTracker(show, steps))
    summary = Path(training.summary_dir)
    if training.summary_dir:
        folder = summary / "runs" / config.run_id
        trackers.append(TensorBoardTracker(folder, purge_step=first_step + 1))
    wandb: WandbTracker | None = None
    if training.wandb:
        settings = WandbRun(training.wandb_project, config.run_id, summary / "wandb", wandb_run_id)
        public = masked({"args": dict(config.arguments), **config.sections})
        assert isinstance(public, Mapping)
        wandb = WandbTracker(settings, public)
        _send_again(wandb, run)
        trackers.append(wandb)
    return Trackers(trackers), lambda: wandb.run_id if wandb is not None else None


def _send_again(wandb: WandbTracker, run: RunFolder) -> None:
    """Give W&B the steps before this start that a killed one did not send."""
    lacks_from = wandb.lacks_from
    if lacks_from is None or run.newest is None:
        return
    records = records_before(run.storage, run.newest, lacks_from)
    tracker = Trackers([wandb])  # which survives whatever the library raises
    for record in records:
        tracker.log(record.step, record.values)
    if records:
        log.info("earlier metrics sent to W&B", extra={"steps": len({r.step for r in records})})


def save_arguments(args: Namespace, config: TrainableRun) -> None:
    """Write every argument to `<summary_dir>/runs/<run id>.txt` (`save_args`)."""
    path = Path(args.summary_dir or ".") / "runs" / f"{config.run_id}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    values = masked(dict(sorted(config.arguments.items())))
    assert isinstance(values, Mapping)
    path.write_text("".join(f"{name}: {value}\n" for name, value in values.items()))
    log.info("arguments written", extra={"path": str(path)})


def write_progress(
    run: RunFolder, state: LoopState, steps: int, metrics: Mapping[str, float], status: str
) -> None:
    """Rewrite progress.json, which status and list read; a failure is only logged."""
    record = {
        "format_version": 1,
        "state": status,
        "step": state.step,
        "steps": steps,
        "attempt": run.attempt.number,
        **{name: _finite(metrics.get(name)) for name in PROGRESS_METRICS},
    }
    try:
        run.storage.write_small(PROGRESS, canonical_json(record))
    except CogvxError as problem:
        log.warning("progress.json was not written", extra={"problem": problem.what})


def write_end(run: RunFolder, status: str, cause: str) -> None:
    """Add to progress.json how this start ended; a failure is only logged.

    Args:
        run: of this start.
        status: "stopped", "interrupted" or "failed"; "finished" is written before.
        cause: in words.
    """
    record: dict[str, object] = {"format_version": 1, "attempt": run.attempt.number}
    try:
        found = read_if_present(run.storage, PROGRESS)
        record |= _progress(found)
        if record["attempt"] != run.attempt.number:
            # Of an earlier start: how far the run is remains true. Of a later one: its own.
            if _is_later(record["attempt"], run.attempt.number):
                return
            record["attempt"] = run.attempt.number
        record |= {"state": status, "cause": str(masked(cause))}
        run.storage.write_small(PROGRESS, canonical_json(record))
    except CogvxError as problem:
        log.warning("progress.json was not written", extra={"problem": problem.what})


def _progress(data: bytes | None) -> dict[str, object]:
    """What it says; nothing where it is damaged: it is written anew."""
    if data is None:
        return {}
    try:
        return parse_object(data, PROGRESS)
    except CheckpointError:
        return {}


def _is_later(attempt: object, than: int) -> bool:
    return isinstance(attempt, int) and attempt > than


def _finite(value: float | None) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if value is not None and math.isfinite(value) else None


def upload_log(run: RunFolder, rank: int, path: Path) -> None:
    """Upload this rank's log to the run's folder, at the end of the attempt."""
    if not path.exists():
        return
    try:
        run.storage.upload(path, log_key(run.attempt.number, rank))
    except CogvxError as problem:
        log.warning("the log was not uploaded", extra={"problem": problem.what})
