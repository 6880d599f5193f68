"""Which checkpoints a run has, and which of them is the newest that is complete.

There is no pointer to the newest one: it could disagree with the files. No torch here.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator

from app.checkpoint.attempts import in_lineage, read_attempts
from app.checkpoint.layout import CHECKPOINTS, CheckpointRef
from app.checkpoint.manifest import CheckpointManifest
from app.errors import CheckpointError
from app.storage.objects import ObjectMissingError, Storage

log = logging.getLogger(__name__)


def checkpoint_refs(storage: Storage) -> list[CheckpointRef]:
    """Every folder of a checkpoint, complete or not, sorted by (attempt, step)."""
    found = (CheckpointRef.parse(name) for name in storage.folders(CHECKPOINTS))
    return sorted(ref for ref in found if ref is not None)


def read_manifest(storage: Storage, ref: CheckpointRef) -> CheckpointManifest:
    """The manifest of a checkpoint whose files are all there.

    Raises:
        ObjectMissingError: there is no manifest: the checkpoint was never finished.
        CheckpointError: the manifest is damaged, or a file is missing or of another size.
    """
    where = f"{storage.url}/{ref.manifest}"
    manifest = CheckpointManifest.from_json(storage.read_small(ref.manifest), where)
    if manifest.identity.ref != ref:
        raise CheckpointError(
            f"this is the manifest of {manifest.identity.ref.name}",
            where=where,
            fix="keep the folder's name when copying a checkpoint",
        )
    sizes = {entry.key: entry.size_bytes for entry in storage.list(f"{ref.folder}/")}
    for file in manifest.files:
        found = sizes.get(ref.file(file.name))
        if found != file.size_bytes:
            state = "is missing" if found is None else f"has {found} bytes"
            raise CheckpointError(
                f"{file.name} {state}, the manifest says {file.size_bytes} bytes",
                where=where,
                fix="take another checkpoint, or copy this one again",
            )
    return manifest


def complete_checkpoints(storage: Storage) -> Iterator[tuple[CheckpointRef, CheckpointManifest]]:
    """Complete checkpoints, forks included, newest first; each is checked when it is reached."""
    yield from _complete(storage, checkpoint_refs(storage))


def find_newest(storage: Storage, skip: Collection[str] = ()) -> CheckpointRef | None:
    """The newest complete checkpoint of the run's lineage, or None when it has none.

    Args:
        skip: names to skip, e.g. one found damaged when the user allowed a fallback.
    """
    attempts = read_attempts(storage)
    refs = [
        ref
        for ref in checkpoint_refs(storage)
        if ref.name not in skip and in_lineage(ref, attempts)
    ]
    return next((ref for ref, _ in _complete(storage, refs)), None)


def _complete(
    storage: Storage, refs: list[CheckpointRef]
) -> Iterator[tuple[CheckpointRef, CheckpointManifest]]:
    for ref in reversed(refs):
        try:
            manifest = read_manifest(storage, ref)
        except ObjectMissingError:
            log.info("checkpoint skipped: it was not finished", extra={"checkpoint": ref.name})
        except CheckpointError as error:
            log.warning("checkpoint skipped", extra={"checkpoint": ref.name, "reason": str(error)})
        else:
            yield ref, manifest
