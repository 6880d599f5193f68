"""The attempts (starts) of a run: one record each, and which checkpoints each one continues.

Every object has one writer, so there are no concurrent updates. No torch here: the launcher
uses this.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from app.checkpoint.json_file import canonical_json, parse_object, take_fields
from app.checkpoint.layout import (
    ATTEMPTS,
    CHECKPOINTS,
    CheckpointRef,
    attempt_key,
    parse_attempt_key,
)
from app.storage.objects import Storage


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptRecord:
    """One start of the job. Times are ISO 8601, UTC, and informative only."""

    number: int
    owner: str  # 8 hexadecimal digits
    started: str
    world: Mapping[str, int]  # nodes, world_size, ...
    decided: bool = False  # resumed_from is known
    resumed_from: str | None = None  # name of a checkpoint; None with `decided`: from the start
    ended: str | None = None
    cause: str | None = None  # of the end, in words

    @property
    def key(self) -> str:
        """Key of its record."""
        return attempt_key(self.number, self.owner)

    def to_json(self) -> bytes:
        """The content of its record."""
        return canonical_json({"format_version": 1, **asdict(self), "world": dict(self.world)})

    @classmethod
    def from_json(cls, data: bytes, where: str) -> AttemptRecord:
        """Parse a record.

        Raises:
            CheckpointError: it is damaged.
        """
        return cls(**take_fields(cls, parse_object(data, where), where))


def next_attempt(storage: Storage) -> int:
    """1 + the largest number that any attempt of the run has had."""
    records = (parse_attempt_key(entry.key) for entry in storage.list(ATTEMPTS))
    numbers = [record[0] for record in records if record is not None]
    # A copied run may have lost its records; its checkpoints must not get a second writer.
    refs = (CheckpointRef.parse(name) for name in storage.folders(CHECKPOINTS))
    return 1 + max([0, *numbers, *(ref.attempt for ref in refs if ref is not None)])


def begin_attempt(storage: Storage, world: Mapping[str, Any]) -> AttemptRecord:
    """Write the record of a new start and return it."""
    attempt = AttemptRecord(
        number=next_attempt(storage), owner=secrets.token_hex(4), started=_now(), world=dict(world)
    )
    storage.write_small(attempt.key, attempt.to_json())
    return attempt


def note_resumed(storage: Storage, attempt: AttemptRecord, checkpoint: str | None) -> AttemptRecord:
    """Record which checkpoint the attempt continues (None: it starts from step 0).

    From then on later checkpoints of older attempts are a fork and are ignored.
    """
    changed = replace(attempt, decided=True, resumed_from=checkpoint)
    storage.write_small(changed.key, changed.to_json())
    return changed


def end_attempt(storage: Storage, attempt: AttemptRecord, cause: str) -> AttemptRecord:
    """Record that every process of the attempt has ended, and why."""
    changed = replace(attempt, ended=_now(), cause=cause)
    storage.write_small(changed.key, changed.to_json())
    return changed


def read_attempt(storage: Storage, number: int, owner: str) -> AttemptRecord:
    """The record of one start.

    Raises:
        ObjectMissingError: there is none.
        CheckpointError: it is damaged.
    """
    key = attempt_key(number, owner)
    return AttemptRecord.from_json(storage.read_small(key), f"{storage.url}/{key}")


def read_attempts(storage: Storage) -> list[AttemptRecord]:
    """Every start of the run, by number.

    Raises:
        CheckpointError: a record is damaged.
    """
    found = [
        read_attempt(storage, *record)
        for entry in storage.list(ATTEMPTS)
        if (record := parse_attempt_key(entry.key)) is not None
    ]
    return sorted(found, key=lambda attempt: attempt.number)


def in_lineage(ref: CheckpointRef, attempts: Iterable[AttemptRecord]) -> bool:
    """Whether no later attempt resumed from a step before this checkpoint's.

    An attempt that resumed at step s makes everything that an older one wrote after s a fork:
    stale ranks may still be writing it.
    """
    for attempt in attempts:
        if attempt.number > ref.attempt and attempt.decided:
            origin = CheckpointRef.parse(attempt.resumed_from or "")
            if ref.step > (origin.step if origin is not None else -1):
                return False
    return True


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
