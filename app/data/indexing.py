"""Indexes and manifest of shards that other programs made, before a run needs them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from app.data.names import checked_address
from app.data.shards.manifest import MANIFEST_NAME
from app.data.shards.survey import Progress, SurveyRules, survey
from app.data.shards.urls import parse_shard_path
from app.errors import AccessDeniedError
from app.storage.opening import open_storage

READ_ONLY = "a run would read the shards' headers itself: allow writing beside the shards"


@dataclass(frozen=True, slots=True)
class IndexReport:
    """What a dataset holds, by its indexes; `scanned`: shards whose headers were read now."""

    manifests: tuple[str, ...]
    shards: int
    samples: int
    left_out: int
    scanned: int


def index_shards(path: str, scratch: Path, txt_key: str, progress: Progress) -> IndexReport:
    """Read the headers of every shard that no index describes, and keep indexes and manifest.

    Args:
        path: as in `args.train_data`: a folder, prefix, glob or brace expression of shards.
        scratch: a folder for locks.
        txt_key: member with the caption; as in the run's configuration.

    Raises:
        AccessDeniedError: nothing may be written beside the shards.
        InputMissingError, DataError: as a run would.
    """
    patterns = parse_shard_path(checked_address(path, "the address of a dataset"))
    scans: dict[str, int] = {}

    def scanned(folder: str, done: int, total: int) -> None:
        scans[folder] = done
        progress(done, total)

    folders = []
    for folder in dict.fromkeys(pattern.folder for pattern in patterns):
        here = [pattern for pattern in patterns if pattern.folder == folder]
        storage = open_storage(folder, follow_links=True)
        found = survey(
            storage, here, scratch, SurveyRules(txt_key), progress=partial(scanned, folder)
        )
        if not found.indexes.writable:
            raise AccessDeniedError(
                "the indexes cannot be kept beside the shards", where=storage.url, fix=READ_ONLY
            )
        folders.append(found)
    shards = [shard for found in folders for shard in found.shards]
    return IndexReport(
        manifests=tuple(f"{found.storage.url}/{MANIFEST_NAME}" for found in folders),
        shards=len(shards),
        samples=sum(shard.samples for shard in shards),
        left_out=sum(shard.left_out for shard in shards),
        scanned=sum(scans.values()),
    )
