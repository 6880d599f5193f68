"""complete.json: that a run is finished, with which checkpoint, and what its job was.

It counts until an attempt begins that was not there when it was written: such an attempt
continues the run with a larger length, or begins it over. No torch here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from app.checkpoint.attempts import AttemptRecord
from app.checkpoint.json_file import broken, canonical_json, check_format, parse_object, take_fields
from app.checkpoint.layout import COMPLETE, CheckpointRef
from app.storage.objects import Storage, read_if_present

FORMAT_VERSION = 1
DAMAGED = (
    "put the file back; or --resume-from STEP goes on from a checkpoint, --restart from the start"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """The end of a run; files of earlier versions have the step and the version only."""

    step: int
    version: str  # of this program
    checkpoint: str | None = None  # name of the last one
    attempt: int | None = None  # which finished, and whose configuration is the job
    owner: str | None = None
    last_attempt: int | None = None  # largest number of an attempt that had begun by then
    config_sha256: str | None = None  # of that configuration, config/<attempt>-<owner>.yaml

    @property
    def ref(self) -> CheckpointRef | None:
        """The last checkpoint; None in files of earlier versions."""
        return CheckpointRef.parse(self.checkpoint) if self.checkpoint is not None else None

    def counts(self, attempts: Iterable[AttemptRecord]) -> bool:
        """Whether no attempt began after it was written."""
        last = self.last_attempt
        return last is None or not any(a.decided and a.number > last for a in attempts)

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Completion:
        """Parse complete.json.

        Raises:
            CheckpointError: damaged, or of another format.
        """
        value = parse_object(data, where, DAMAGED)
        check_format(value, FORMAT_VERSION, where, DAMAGED)
        value = {**dict.fromkeys(_LATER_FIELDS), **value}
        found = cls(**take_fields(cls, value, where, DAMAGED))
        if found.checkpoint is not None and found.ref is None:
            raise broken("its checkpoint is not a checkpoint's name", where, DAMAGED)
        return found


_LATER_FIELDS = ("checkpoint", "attempt", "owner", "last_attempt", "config_sha256")


def read_completion(storage: Storage) -> Completion | None:
    """What complete.json says; None without one.

    Raises:
        CheckpointError: it is damaged.
    """
    data = read_if_present(storage, COMPLETE)
    return None if data is None else Completion.from_json(data, f"{storage.url}/{COMPLETE}")


def write_completion(storage: Storage, completion: Completion) -> None:
    """Mark the run as finished."""
    storage.write_small(
        COMPLETE, canonical_json({"format_version": FORMAT_VERSION, **asdict(completion)})
    )
