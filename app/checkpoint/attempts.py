"""The attempts (starts) of a run: one record each, and which checkpoints each one continues.

The lineage of a run is what its newest attempt goes back to: from each attempt to the checkpoint
that it resumed from, and on to the attempt that wrote that one. Everything else is a fork.

Every object has one writer, so there are no concurrent updates. No torch here: the launcher
uses this.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from math import inf
from typing import Any

from app.checkpoint.json_file import broken, canonical_json, check_format, parse_object, take_fields
from app.checkpoint.layout import (
    ATTEMPTS,
    CHECKPOINTS,
    CheckpointRef,
    attempt_key,
    parse_attempt_key,
)
from app.errors import CheckpointError
from app.storage.objects import Storage

FORMAT_VERSION = 1
RESTART = "restart"  # a request: begin at step 0, whatever the folder holds
DAMAGED = "put the file back, or name what to go on with: --resume-from STEP, or --restart"


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
    # RESTART, "resume-from <what>", or None: what the command line asked for. A start that asks
    # for the same as the one before it goes on: a pod's command stays when it starts again.
    request: str | None = None

    @property
    def key(self) -> str:
        """Key of its record."""
        return attempt_key(self.number, self.owner)

    def to_json(self) -> bytes:
        """The content of its record."""
        return canonical_json(
            {"format_version": FORMAT_VERSION, **asdict(self), "world": dict(self.world)}
        )

    @classmethod
    def from_json(cls, data: bytes, where: str) -> AttemptRecord:
        """Parse a record.

        Raises:
            CheckpointError: it is damaged, or of another format.
        """
        value = parse_object(data, where, DAMAGED)
        check_format(value, FORMAT_VERSION, where, DAMAGED)
        # Records of earlier versions have no request.
        fields = take_fields(cls, {"request": None, **value}, where, DAMAGED)
        origin = fields["resumed_from"]
        if origin is not None and CheckpointRef.parse(origin) is None:
            raise broken(
                f"resumed_from is {origin[:100]!r}, not the name of a checkpoint", where, DAMAGED
            )
        return cls(**fields)


def next_attempt(storage: Storage) -> int:
    """1 + the largest number that any attempt of the run has had."""
    records = (parse_attempt_key(entry.key) for entry in storage.list(ATTEMPTS))
    numbers = [record[0] for record in records if record is not None]
    # A copied run may have lost its records; its checkpoints must not get a second writer.
    refs = (CheckpointRef.parse(name) for name in storage.folders(CHECKPOINTS))
    return 1 + max([0, *numbers, *(ref.attempt for ref in refs if ref is not None)])


def begin_attempt(
    storage: Storage, world: Mapping[str, Any], request: str | None = None
) -> AttemptRecord:
    """Write the record of a new start and return it."""
    attempt = AttemptRecord(
        number=next_attempt(storage),
        owner=secrets.token_hex(4),
        started=_now(),
        world=dict(world),
        request=request,
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
    attempts, damaged = read_whole_attempts(storage)
    if damaged:
        raise next(iter(damaged.values()))
    return attempts


def read_whole_attempts(
    storage: Storage,
) -> tuple[list[AttemptRecord], dict[str, CheckpointError]]:
    """Every start whose record can be read, by number; the errors of the others, by key."""
    found: list[AttemptRecord] = []
    damaged: dict[str, CheckpointError] = {}
    for entry in storage.list(ATTEMPTS):
        record = parse_attempt_key(entry.key)
        if record is None:
            continue
        try:
            attempt = read_attempt(storage, *record)
            if (attempt.number, attempt.owner) != record:
                where = f"{storage.url}/{entry.key}"
                raise broken(f"it is the record of {attempt.key}", where, DAMAGED)
            found.append(attempt)
        except CheckpointError as error:
            damaged[entry.key] = error
    return sorted(found, key=lambda attempt: attempt.number), damaged


def newest_decided(attempts: Iterable[AttemptRecord]) -> AttemptRecord | None:
    """The newest start that knows what it continues."""
    decided = [attempt for attempt in attempts if attempt.decided]
    return max(decided, key=lambda attempt: attempt.number, default=None)


class Lineage:
    """Which checkpoints the run consists of.

    Args:
        attempts: the starts of the run.
        end: the last checkpoint; None: whatever the newest attempt wrote or will write.
    """

    def __init__(self, attempts: Iterable[AttemptRecord], end: CheckpointRef | None = None) -> None:
        self._records: dict[int, list[AttemptRecord]] = {}
        for attempt in attempts:
            if attempt.decided:
                self._records.setdefault(attempt.number, []).append(attempt)
        self._last_step: dict[int, float] = {}  # of an attempt, as far as it was continued
        # Where records are lost (a copied run): everything up to this attempt and step counts.
        self._unrecorded: list[CheckpointRef] = []
        self._newest = inf
        if end is not None:
            self._add(end)
        elif self._records:
            self._newest = max(self._records)
            self._last_step[int(self._newest)] = inf
            self._follow(int(self._newest))
        else:
            self._newest = -1

    def __contains__(self, ref: CheckpointRef) -> bool:
        if ref.attempt > self._newest or ref.step <= self._last_step.get(ref.attempt, -1):
            return True
        return any(
            ref.attempt <= lost.attempt and ref.step <= lost.step for lost in self._unrecorded
        )

    def _add(self, ref: CheckpointRef) -> None:
        self._last_step[ref.attempt] = max(ref.step, self._last_step.get(ref.attempt, -1))
        if ref.attempt in self._records:
            self._follow(ref.attempt)
        else:
            self._unrecorded.append(ref)

    def _follow(self, number: int) -> None:
        for attempt in self._records[number]:
            origin = CheckpointRef.parse(attempt.resumed_from or "")
            if origin is not None and origin.attempt < number:
                self._add(origin)


def in_lineage(ref: CheckpointRef, attempts: Iterable[AttemptRecord]) -> bool:
    """Whether the newest attempt goes back to this checkpoint.

    An attempt that resumed at step s makes everything that an older one wrote after s a fork:
    stale ranks may still be writing it.
    """
    return ref in Lineage(attempts)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
