"""Which checkpoints stay, and how the others and the remains of dead attempts go.

A manifest goes first: a half-deleted checkpoint is an absent one. No torch here.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from app.checkpoint.catalog import checkpoint_refs, complete_checkpoints
from app.checkpoint.layout import CheckpointRef, attempt_of_key
from app.errors import CogvxError, ConfigError
from app.storage.objects import ObjectMissingError, Storage

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class RetentionPolicy:
    """What is kept besides the best and the one that was resumed from."""

    keep_last: int = 3
    keep_every: int | None = None  # steps; every checkpoint at a multiple stays

    def __post_init__(self) -> None:
        if self.keep_last < 1 or (self.keep_every is not None and self.keep_every < 1):
            raise ConfigError(
                f"cannot keep the last {self.keep_last} and every {self.keep_every} steps",
                where="checkpoint retention",
                fix="keep at least the last one; every: a positive number of steps, or nothing",
            )


def superfluous(
    complete: Sequence[CheckpointRef],
    policy: RetentionPolicy,
    protected: Collection[str] = (),
) -> list[CheckpointRef]:
    """The checkpoints to delete, oldest first.

    Args:
        complete: verified complete ones, in any order.
        policy: what to keep.
        protected: names that stay: the best, the one that this attempt resumed from.
    """
    ordered = sorted(complete)
    last = set(ordered[-policy.keep_last :])

    def stays(ref: CheckpointRef) -> bool:
        every = policy.keep_every is not None and ref.step % policy.keep_every == 0
        return ref in last or ref.name in protected or every

    return [ref for ref in ordered if not stays(ref)]


def apply_retention(
    storage: Storage, policy: RetentionPolicy, protected: Collection[str] = ()
) -> list[str]:
    """Delete what the policy does not keep; call after a publish, on rank 0 only.

    A failure is logged and ends the round: the next publish tries again.

    Returns:
        Names of the deleted checkpoints.
    """
    deleted: list[str] = []
    try:
        complete = [ref for ref, _ in complete_checkpoints(storage)]
        for ref in superfluous(complete, policy, protected):
            delete_checkpoint(storage, ref)
            deleted.append(ref.name)
    except CogvxError as error:
        log.warning("old checkpoints were not deleted", extra={"reason": str(error)})
    if deleted:
        log.info("old checkpoints deleted", extra={"checkpoints": deleted})
    return deleted


def delete_checkpoint(storage: Storage, ref: CheckpointRef) -> None:
    """Delete one checkpoint, manifest first."""
    storage.delete([ref.manifest])
    storage.delete([entry.key for entry in storage.list(f"{ref.folder}/")])


def sweep(storage: Storage, attempt: int) -> list[str]:
    """Delete what older attempts left unfinished; call at start, on rank 0 only.

    Folders without a manifest, and uploads neither completed nor aborted, both of attempts with
    a smaller number only: never by age, never of our own.

    Returns:
        Names of the checkpoints and keys of the uploads that went.
    """
    gone: list[str] = []
    for ref in checkpoint_refs(storage):
        if ref.attempt < attempt and not _has_manifest(storage, ref):
            keys = [entry.key for entry in storage.list(f"{ref.folder}/")]
            storage.delete(keys)
            # Some servers show the folder of an upload that was only begun.
            gone += [ref.name] if keys else []
    for upload in storage.list_uploads():
        owner = attempt_of_key(upload.key)
        if owner is not None and owner < attempt:
            storage.abort_upload(upload)
            gone.append(upload.key)
    if gone:
        log.info("remains of older attempts deleted", extra={"names": gone})
    return gone


def _has_manifest(storage: Storage, ref: CheckpointRef) -> bool:
    try:
        storage.stat(ref.manifest)
    except ObjectMissingError:
        return False
    return True
