"""What lies beside a shard and follows from it: whether it still does.

A run makes a lost or damaged side file again, so none of this stops it; but somebody or something
changed the dataset's files, and a reader that goes by them alone reads something else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from app.data.check.sample import Problem
from app.data.shards.index import ShardIndex
from app.data.shards.manifest import ShardEntry, sizes_key
from app.data.video.sizes import sizes_from_json
from app.errors import CogvxError
from app.storage.objects import Entry, Storage

BAD_INDEX = "bad_index"


def side_file_problems(
    storage: Storage, entries: Mapping[str, Entry], known: ShardEntry, index: ShardIndex
) -> Iterator[Problem]:
    """Faults of the index and the sizes of a shard that is itself as the manifest says.

    Args:
        entries: what lies in the folder.
        known: the manifest's line of the shard.
        index: what lies in the shard.
    """
    faults = {
        known.index: _of_index(storage, entries, known, index),
        sizes_key(known.name): _of_sizes(storage, entries, known, index),
    }
    for key, detail in faults.items():
        if detail is not None:
            yield Problem(f"{storage.url}/{known.name}", key, BAD_INDEX, detail)


def _of_index(
    storage: Storage, entries: Mapping[str, Entry], known: ShardEntry, index: ShardIndex
) -> str | None:
    if known.index not in entries:
        return "the manifest names it, and it is not there"
    try:
        written = ShardIndex.from_json(storage.read_small(known.index), known.index)
    except CogvxError as problem:
        return problem.what
    return None if written == index else "it does not say what lies in the shard"


def _of_sizes(
    storage: Storage, entries: Mapping[str, Entry], known: ShardEntry, index: ShardIndex
) -> str | None:
    """A shard need not have sizes: the first run that wants them makes them.

    Where `cogvx data pack` did not, they may be older than the shard: such a run makes them again.
    """
    of = known.index_sha256 if known.sha256 is not None else None
    count = len(index.samples()) if known.sha256 is not None else None
    if sizes_key(known.name) not in entries:
        return None
    try:
        sizes = sizes_from_json(storage.read_small(sizes_key(known.name)), of, count)
    except CogvxError as problem:
        return problem.what
    return "these are not the sizes of the shard's videos" if sizes is None else None
