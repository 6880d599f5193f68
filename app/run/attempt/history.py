"""The metrics that the run itself kept, back to a step: what a killed start may not have told."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass

from app.checkpoint.attempts import AttemptRecord, read_attempts
from app.checkpoint.layout import METRICS, CheckpointRef
from app.errors import CogvxError
from app.storage.objects import Storage

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MetricsRecord:
    """The numbers of one step; None in the file is NaN again."""

    step: int
    values: dict[str, float]


def records_before(storage: Storage, ref: CheckpointRef, first_step: int) -> list[MetricsRecord]:
    """What the starts behind a checkpoint recorded, from `first_step` to its own step, in order.

    Only the parts that are needed are read, newest first. What cannot be read is left out with a
    warning: metrics are not worth a run.
    """
    try:
        attempts = read_attempts(storage)
        keys = sorted(entry.key for entry in storage.list(METRICS))
        return _records(storage, attempts, keys, ref, first_step)
    except CogvxError as problem:
        log.warning("earlier metrics were not read", extra={"problem": problem.what})
        return []


def validation_at(storage: Storage, ref: CheckpointRef) -> dict[str, float] | None:
    """The numbers of the validation at a checkpoint's step; None if there was none."""
    for record in records_before(storage, ref, ref.step):
        if record.step == ref.step and "valid_loss" in record.values:
            return record.values
    return None


def _records(
    storage: Storage,
    attempts: list[AttemptRecord],
    keys: list[str],
    ref: CheckpointRef,
    first_step: int,
) -> list[MetricsRecord]:
    found: list[MetricsRecord] = []
    end: CheckpointRef | None = ref
    while end is not None and end.step >= first_step:
        origin = _origin(attempts, end)
        after = origin.step if origin is not None else -1  # the origin's own step is its record
        own = [key for key in keys if key.startswith(f"{METRICS}{end.attempt:06}-")]
        for key in reversed(own):
            part = list(_parsed(storage.read_small(key)))
            found += [one for one in part if max(first_step, after + 1) <= one.step <= end.step]
            found += [one for one in part if one.step == after and _is_made_up(one, first_step)]
            if part and part[0].step < first_step:
                break
        end = origin
    return sorted(found, key=lambda one: one.step)


def _is_made_up(record: MetricsRecord, first_step: int) -> bool:
    """A validation that a later start did at the step where it began."""
    return record.step >= first_step and "valid_loss" in record.values


def _origin(attempts: list[AttemptRecord], ref: CheckpointRef) -> CheckpointRef | None:
    for attempt in attempts:
        if attempt.number == ref.attempt and attempt.resumed_from is not None:
            origin = CheckpointRef.parse(attempt.resumed_from)
            return origin if origin is not None and origin.attempt < ref.attempt else None
    return None


def _parsed(data: bytes) -> Iterator[MetricsRecord]:
    """The records of one part; a damaged line is left out."""
    for line in data.splitlines():
        try:
            values = json.loads(line)
            step = int(values.pop("step"))
            numbers = {k: math.nan if v is None else float(v) for k, v in values.items()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue
        yield MetricsRecord(step, numbers)
