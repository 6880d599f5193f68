"""Which checkpoints are kept; deletion of the others and of what failed attempts left.

The manifest is deleted first: a half-deleted checkpoint counts as absent. No torch here.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

from app.checkpoint.catalog import checkpoint_refs, complete_checkpoints
from app.checkpoint.layout import CheckpointRef, attempt_of_key
from app.errors import AccessDeniedError, CogvxError
from app.storage.objects import Storage, Upload, stat_if_present

log = logging.getLogger(__name__)


def superfluous(
    complete: Sequence[CheckpointRef], keep_last: int, protected: Collection[str] = ()
) -> list[CheckpointRef]:
    """The checkpoints to delete, oldest first.

    Args:
        complete: verified complete ones, in any order.
        keep_last: how many of the last ones are kept, 1 or more.
        protected: names that are kept: the best, the one that this attempt resumed from.
    """
    return [ref for ref in sorted(complete)[:-keep_last] if ref.name not in protected]


def apply_retention(storage: Storage, keep_last: int, protected: Collection[str] = ()) -> list[str]:
    """Delete superfluous checkpoints; call after a publish, on rank 0 only.

    A failure is logged: the next publish tries again.

    Returns:
        Names of the deleted checkpoints.
    """
    deleted: list[str] = []
    try:
        complete = [ref for ref, _ in complete_checkpoints(storage)]
        for ref in superfluous(complete, keep_last, protected):
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
    a smaller number only: age does not count.

    Returns:
        Names of the checkpoints and keys of the uploads that were deleted.
    """
    gone: list[str] = []
    for ref in checkpoint_refs(storage):
        if ref.attempt < attempt and stat_if_present(storage, ref.manifest) is None:
            keys = [entry.key for entry in storage.list(f"{ref.folder}/")]
            storage.delete(keys)
            # Some servers show the folder of an upload that was only begun.
            gone += [ref.name] if keys else []
    for upload in _unfinished_uploads(storage):
        owner = attempt_of_key(upload.key)
        if owner is not None and owner < attempt:
            storage.abort_upload(upload)
            gone.append(upload.key)
    if gone:
        log.info("unfinished files of older attempts deleted", extra={"names": gone})
    return gone


def _unfinished_uploads(storage: Storage) -> Sequence[Upload]:
    """Uploads that were begun; none where the policy allows objects below a prefix only."""
    try:
        return storage.list_uploads()
    except AccessDeniedError as denied:
        log.warning(
            "unfinished uploads stay in the bucket: listing them is denied "
            "(s3:ListBucketMultipartUploads)",
            extra={"url": storage.url, "problem": denied.what},
        )
        return []
