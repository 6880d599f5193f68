"""The run's folder in the object store: who writes, what it continues, whether it is finished.

Rank 0 asks the storage and broadcasts the answer, so that all ranks decide alike and a thousand
ranks do not list the bucket a thousand times.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from app import __version__
from app.checkpoint.attempts import AttemptRecord, begin_attempt, end_attempt, note_resumed
from app.checkpoint.catalog import find_newest
from app.checkpoint.json_file import canonical_json
from app.checkpoint.layout import COMPLETE, RUN, CheckpointRef, config_key, run_url
from app.config.schema.run import TrainableRun
from app.config.snapshot import digest, masked, snapshot
from app.distributed.agreement import on_rank_zero
from app.errors import CogvxError, ConfigError
from app.storage.objects import Storage, read_if_present
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
        ConfigError: the folder holds a run of another network.
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
    """Write complete.json: every later start of the run exits immediately. Rank 0 only."""
    run.storage.write_small(
        COMPLETE, canonical_json({"format_version": 1, "step": step, "version": __version__})
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
    if read_if_present(storage, COMPLETE) is not None:
        log.info("the run is finished already", extra={"url": f"{storage.url}/{COMPLETE}"})
        return None
    _check_identity(storage, config)
    newest = find_newest(storage)
    attempt = begin_attempt(storage, world)
    attempt = note_resumed(storage, attempt, newest.name if newest else None)
    storage.write_small(config_key(attempt.number, attempt.owner), text.encode())
    log.info(
        "attempt begun",
        extra={
            "url": storage.url,
            "attempt": attempt.number,
            "resumed_from": newest.name if newest else None,
        },
    )
    return {
        "newest": newest.name if newest else None,
        "attempt": {**asdict(attempt), "world": dict(attempt.world)},
    }


def _check_identity(storage: Storage, config: TrainableRun) -> None:
    """Write run.json once; refuse a folder that holds a run of another network."""
    as_stored = json.loads(json.dumps(asdict(config.model.network.params)))
    network = {key: value for key, value in as_stored.items() if key not in _CHANGEABLE}
    identity = {
        "format_version": 1,
        "run_id": config.run_id,
        "version": __version__,
        "network": network,
        "load": masked(config.training.load),
    }
    stored = read_if_present(storage, RUN)
    if stored is None:
        storage.write_small(RUN, canonical_json(identity))
        return
    found = json.loads(stored)
    for key, value in network.items():
        if found.get("network", {}).get(key) != value:
            raise ConfigError(
                f"the run has a network with {key} = {found.get('network', {}).get(key)}, "
                f"the configuration says {value}",
                where=f"{storage.url}/{RUN}",
                fix="use another --run-id, or the configuration that the run began with",
            )


# They change how a step is computed, not its result.
_CHANGEABLE = frozenset(
    {
        "checkpoint_activations",
        "checkpoint_num_layers",
        "checkpoint_skip_layers",
        "model_parallel_size",
    }
)
