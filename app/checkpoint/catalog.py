"""Which checkpoints a run has, and which of them is the newest that is complete.

There is no pointer to the newest one: it could disagree with the files. No torch here.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence

from app.checkpoint.attempts import AttemptRecord, Lineage, read_attempts
from app.checkpoint.completion import Completion, read_completion
from app.checkpoint.json_file import FormatError
from app.checkpoint.layout import CHECKPOINTS, CheckpointRef
from app.checkpoint.manifest import CheckpointManifest
from app.errors import CheckpointError
from app.storage.objects import ObjectMissingError, Storage, stat_if_present

log = logging.getLogger(__name__)

MOST_NAMED = 5  # checkpoints in one message


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
    refused = Refusals(storage)
    for ref in reversed(checkpoint_refs(storage)):
        manifest = refused.manifest(ref)
        if manifest is not None:
            yield ref, manifest


def run_checkpoint(storage: Storage) -> CheckpointRef | None:
    """THE checkpoint of a run, for whoever uses its weights; None when it has none.

    That of complete.json while it counts, otherwise the newest complete one of the lineage.

    Raises:
        CheckpointError: as `find_newest`; or the one that complete.json names cannot be used.
    """
    attempts = read_attempts(storage)
    completion = read_completion(storage)
    if completion is None or not completion.counts(attempts):
        return find_newest(storage)
    return finished_checkpoint(storage, completion, attempts)


def checkpoint_of_step(storage: Storage, step: int) -> CheckpointRef | None:
    """The complete checkpoint of a step: that of the run's lineage, else of its newest fork.

    Raises:
        CheckpointError: there are some of this step, and none can be used.
    """
    attempts = read_attempts(storage)
    completion = read_completion(storage)
    counts = completion is not None and completion.counts(attempts)
    lineage = Lineage(attempts, completion.ref if completion is not None and counts else None)
    of_step = [ref for ref in checkpoint_refs(storage) if ref.step == step]
    refused = Refusals(storage)
    found = newest_whole(sorted(of_step, key=lambda ref: (ref in lineage, ref)), refused)
    if found is None and refused.reasons:
        raise refused.error(checkpoint_refs(storage))
    return found


def finished_checkpoint(
    storage: Storage, completion: Completion, attempts: Sequence[AttemptRecord]
) -> CheckpointRef | None:
    """The checkpoint of a finished run.

    Raises:
        CheckpointError: complete.json names one that cannot be used.
    """
    if completion.ref is None:  # a file of an earlier version names no checkpoint
        lineage = Lineage(attempts)
        of_step = [ref for ref in checkpoint_refs(storage) if ref.step == completion.step]
        refused = Refusals(storage)
        found = newest_whole(sorted(of_step, key=lambda ref: (ref in lineage, ref)), refused)
        return found if found is not None else find_newest(storage)
    try:
        read_manifest(storage, completion.ref)
    except ObjectMissingError as missing:
        raise CheckpointError(
            f"the run is finished with checkpoint {completion.ref.name}, which is not there",
            where=f"{storage.url}/{completion.ref.folder}",
            fix=_another(storage, completion.ref),
        ) from missing
    except FormatError:
        raise
    except CheckpointError as error:
        raise CheckpointError(
            error.what, where=error.where, fix=_another(storage, completion.ref)
        ) from error
    return completion.ref


def find_newest(
    storage: Storage,
    skip: Collection[str] = (),
    attempts: Sequence[AttemptRecord] | None = None,
) -> CheckpointRef | None:
    """The newest complete checkpoint of the run's lineage, or None when it has none.

    Folders without a manifest are unfinished saves. A damaged one is passed over with a warning
    while an older one is whole.

    Args:
        skip: names to skip, e.g. one found damaged when the user allowed a fallback.
        attempts: the starts that count; None: all that the run has.

    Raises:
        FormatError: another version of this program wrote the newest.
        CheckpointError: there are checkpoints, and none can be used.
    """
    refs = checkpoint_refs(storage)
    lineage = Lineage(read_attempts(storage) if attempts is None else attempts)
    refused = Refusals(storage)
    wanted = [ref for ref in refs if ref.name not in skip and ref in lineage]
    found = newest_whole(wanted, refused)
    if found is None and refused.reasons:
        raise refused.error(refs)
    return found


def newest_whole(refs: Sequence[CheckpointRef], refused: Refusals) -> CheckpointRef | None:
    """The last one of `refs` that is complete; why later ones are not is in `refused`.

    Raises:
        FormatError: a later one than that is of another format.
    """
    for ref in reversed(refs):
        if refused.manifest(ref, other_formats=False) is not None:
            return ref
    return None


class Refusals:
    """Looks at checkpoints, and remembers which of them cannot be used, and why."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.reasons: dict[str, str] = {}  # name of the checkpoint -> what is wrong

    def manifest(
        self, ref: CheckpointRef, *, other_formats: bool = True
    ) -> CheckpointManifest | None:
        """The manifest, or None.

        Raises:
            FormatError: of another format, unless `other_formats` are passed over too.
        """
        try:
            return read_manifest(self._storage, ref)
        except ObjectMissingError:
            log.info("checkpoint skipped: it was not finished", extra={"checkpoint": ref.name})
        except CheckpointError as error:
            if isinstance(error, FormatError) and not other_formats:
                raise self._other_format(ref, error) from error
            self.reasons[ref.name] = error.what
            # A whole sentence: commands that set up no log show nothing else.
            log.warning(
                "checkpoint %s is damaged and passed over: %s",
                ref.name,
                error.what,
                extra={"checkpoint": ref.name, "reason": error.what, "file": error.where},
            )
        return None

    def error(self, refs: Sequence[CheckpointRef]) -> CheckpointError:
        """That none can be used; names each, and the way on.

        Args:
            refs: every checkpoint of the run, forks included.
        """
        each = "; ".join(f"{name}: {why}" for name, why in self.reasons.items())
        return CheckpointError(
            f"the run has checkpoints, and none of them can be used: {each}",
            where=f"{self._storage.url}/{CHECKPOINTS}",
            fix=f"put the missing files back; {ways_on(self._storage, refs, self.reasons)}",
        )

    def _other_format(self, ref: CheckpointRef, error: FormatError) -> FormatError:
        ways = ways_on(self._storage, checkpoint_refs(self._storage), [ref.name, *self.reasons])
        what = f"checkpoint {ref.name} cannot be read: {error.what}"
        return FormatError(what, where=error.where, fix=f"{error.fix}; {ways}")


def ways_on(storage: Storage, refs: Sequence[CheckpointRef], without: Collection[str] = ()) -> str:
    """Words that name the whole checkpoints to go on from, and the start.

    Args:
        storage: the run's folder.
        refs: the checkpoints to look at.
        without: names of those that cannot be used.
    """
    names = [ref.name for ref in refs if ref.name not in without and _is_whole(storage, ref)]
    if not names:
        return "or begin again at step 0: --restart"
    listed = ", ".join(names[-MOST_NAMED:][::-1])
    return f"or go on from a whole one (--resume-from NAME: {listed}), or begin again: --restart"


def _another(storage: Storage, ref: CheckpointRef) -> str:
    refs = [other for other in checkpoint_refs(storage) if other != ref]
    return f"put its files back, {ways_on(storage, refs)}"


def _is_whole(storage: Storage, ref: CheckpointRef) -> bool:
    try:
        read_manifest(storage, ref)
    except (ObjectMissingError, CheckpointError):
        return False
    return True


def has_manifest(storage: Storage, ref: CheckpointRef) -> bool:
    """Whether the checkpoint was finished once, whatever became of it."""
    return stat_if_present(storage, ref.manifest) is not None
