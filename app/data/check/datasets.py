"""The samples of a dataset of any layout, for a check: nothing stops at the first fault.

A folder with videos and captions, or tar shards, local or in a bucket. What is wrong with a whole
shard or with a name is noted here; what is wrong with a sample is found in `sample.py`.
Nothing is written beside the data.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

from app.data.check.folder import folder_samples, holds_shards, mixed
from app.data.check.sample import Problem, Sample
from app.data.left_out import LeftOut, why
from app.data.names import checked_address, shown
from app.data.shards.captions import (
    TextRules,
    caption,
    metadata,
    read_sidecar,
)
from app.data.shards.index import Member, ShardIndex, index_digest, video_of, walk_shard
from app.data.shards.manifest import (
    MANIFEST_NAME,
    DatasetManifest,
    ShardEntry,
    identity_change,
    sizes_key,
)
from app.data.shards.survey import entries_of, file_sha256, matching_shards, shard_faults
from app.data.shards.urls import ShardPattern, parse_shard_path
from app.data.sources.folder import list_folder
from app.data.sources.settings import SAT, SourceSettings
from app.data.video.sizes import sizes_from_json
from app.errors import CogvxError, DataError, InputMissingError
from app.storage.objects import Entry, Storage
from app.storage.opening import is_remote, open_storage

DAMAGED = "damaged_shard"
UNSUITED = frozenset(
    {"too_short", "too_slow", "caption_too_long"}
)  # sound, but not what training needs


@dataclass(slots=True)
class Found:
    """A dataset on its way through a check. `samples` grows as shards are opened."""

    kind: str  # "folder" or "shards"
    problems: list[Problem] = field(default_factory=list)
    left_out: int = 0  # samples that problems of shards and names cost
    named: list[LeftOut] = field(default_factory=list)  # what training names as left out
    shards: int = 0
    total: int = 0  # samples known so far


def open_dataset(
    url: str, rules: TextRules, settings: SourceSettings
) -> tuple[Found, Iterator[list[Sample]]]:
    """Find out what is at a path, and how to get its samples.

    Args:
        url: as `train_data` names it.
        rules: names of captions and metadata in shards.
        settings: rules of a folder's captions.

    Returns:
        What is known, and groups of samples (a folder, or one shard each). A group can be read
        until the next one is taken.

    Raises:
        InputMissingError: nothing is there.
        ConfigError: a path of a kind that is not read.
    """
    patterns = parse_shard_path(checked_address(url, "the address of the dataset"))
    if not _is_plain_folder(patterns):
        found = Found("shards")
        return found, _shards(patterns, rules, found)
    folder = list_folder(patterns[0].folder, upstream=settings.caption_rule == SAT)
    is_shards = holds_shards(folder.entries, folder.within)
    found = Found("shards" if is_shards else "folder")
    found.problems += mixed(folder.storage.url, folder.entries, folder.within, is_shards=is_shards)
    if is_shards:
        return found, _shards(patterns, rules, found)
    found.named += folder.left_out
    samples, problems = folder_samples(folder, settings)
    found.problems += problems
    if not samples:
        found.problems += _shard_problems(folder.storage, folder.entries, patterns)
    if not samples and not found.problems:
        raise InputMissingError(
            "there are neither videos (*.mp4) nor shards (*.tar) here",
            where=url,
            fix="check the path; videos belong in videos/, their captions in labels/",
        )
    found.total = len(samples)
    return found, iter([samples])


def _is_plain_folder(patterns: Sequence[ShardPattern]) -> bool:
    first = patterns[0]
    return len(patterns) == 1 and not first.pattern and not first.skip_empty


def _shards(
    patterns: Sequence[ShardPattern], rules: TextRules, found: Found
) -> Iterator[list[Sample]]:
    """One group of samples per shard; what is wrong with the shard itself is noted."""
    for folder in dict.fromkeys(pattern.folder for pattern in patterns):
        storage = open_storage(folder, follow_links=True)
        here = [pattern for pattern in patterns if pattern.folder == folder]
        entries = entries_of(storage, here)
        known = _manifest(storage, entries, found)
        faults = _shard_problems(storage, entries, here)
        found.problems += faults
        try:
            names = matching_shards(folder, entries, set(known), here)
        except InputMissingError:
            if not faults:
                raise
            continue
        for name in dict.fromkeys(names):
            url = f"{storage.url}/{name}"
            if name not in entries:
                detail = "the manifest or the path names it, and it is not there"
                found.problems.append(Problem(url, name, "missing_shard", detail))
                continue
            found.shards += 1
            with _local(storage, entries[name], found) as path:
                if path is not None:
                    changed = _changed(storage, entries, known.get(name))
                    shard = _Shard(storage, url, name, path, rules, known.get(name), changed)
                    yield from _samples_of(shard, entries, found)


def _shard_problems(
    storage: Storage, entries: Mapping[str, Entry], patterns: Sequence[ShardPattern]
) -> list[Problem]:
    """Shards of which nothing is read, each a fault of its own name."""
    return [
        Problem(storage.url, shown(one.key), one.reason, one.detail)
        for one in shard_faults(storage, entries, patterns)
    ]


def _manifest(
    storage: Storage, entries: Mapping[str, Entry], found: Found
) -> Mapping[str, ShardEntry]:
    """The shards that a manifest beside the data names; empty when there is none."""
    if MANIFEST_NAME not in entries:
        return {}
    try:
        return DatasetManifest.from_json(storage.read_small(MANIFEST_NAME), storage.url).by_name()
    except DataError as problem:
        found.problems.append(Problem(storage.url, MANIFEST_NAME, "bad_manifest", problem.what))
        return {}


def _changed(
    storage: Storage, entries: Mapping[str, Entry], known: ShardEntry | None
) -> str | None:
    """How a shard differs from the manifest, as far as a listing shows it."""
    if known is None:
        return None
    try:
        change = identity_change(known, entries, storage.url)
    except DataError as problem:
        return problem.what
    # A digest says more than a time: a copied shard has another time and the same content.
    return change.what if change is not None and known.sha256 is None else None


@contextlib.contextmanager
def _local(storage: Storage, entry: Entry, found: Found) -> Iterator[Path | None]:
    """The shard as a file: itself, or a copy for as long as it is read."""
    if not is_remote(storage.url):
        yield Path(storage.url) / entry.key
        return
    with tempfile.TemporaryDirectory(prefix="cogvx-check-") as scratch:
        path: Path | None = Path(scratch) / "shard.tar"
        try:
            storage.download(entry.key, Path(scratch) / "shard.tar", entry)
        except CogvxError as problem:
            url = f"{storage.url}/{entry.key}"
            found.problems.append(Problem(url, entry.key, "unreadable", problem.what))
            path = None
        yield path


@dataclass(frozen=True, slots=True)
class _Shard:
    """A shard on this machine, what the manifest says of it, and how the listing differs."""

    storage: Storage
    url: str
    name: str
    path: Path
    rules: TextRules
    known: ShardEntry | None
    changed: str | None


def _samples_of(
    shard: _Shard, entries: Mapping[str, Entry], found: Found
) -> Iterator[list[Sample]]:
    """One group: the usable samples of a shard."""
    before = len(found.problems)
    try:
        with shard.path.open("rb") as file:
            index, damage = walk_shard(file, shard.path.stat().st_size)
    except OSError as problem:
        found.problems.append(Problem(shard.url, shard.name, "unreadable", str(problem)))
        return
    if damage is not None:
        found.problems.append(Problem(shard.url, shard.name, DAMAGED, damage))
    for key, reason in index.left_out:
        detail = why(LeftOut(shard.name, key, reason))
        found.problems.append(Problem(shard.url, key, reason, detail))
        found.named.append(LeftOut(shard.name, key, reason))
    found.left_out += len(index.left_out)
    descriptor = os.open(shard.path, os.O_RDONLY)
    try:
        samples = _samples(shard, index, descriptor)
        found.total += len(samples)
        yield samples
    finally:
        os.close(descriptor)
    # By now the samples were checked: what is wrong with them is among the problems.
    reasons = {problem.reason for problem in found.problems[before:]}
    changed = shard.changed or _other_content(shard)
    if changed is None and damage is None and shard.known is not None:
        found.problems += side_file_problems(shard.storage, entries, shard.known, index)
    if changed is not None and not _explained(shard, index, reasons):
        found.problems.append(Problem(shard.url, shard.name, "changed_shard", changed))


def _other_content(shard: _Shard) -> str | None:
    if shard.known is None or shard.known.sha256 in (None, file_sha256(shard.path)):
        return None
    return "its content is not what the manifest says (sha256)"


def _explained(shard: _Shard, index: ShardIndex, reasons: Set[str]) -> bool:
    """Whether faults inside a changed shard are the change, which is then not named again.

    `cogvx data pack` takes no faulty sample, so a fault in its shards came later. Shards of others
    may have had it all along; there it explains a change only where nothing moved.
    """
    if DAMAGED in reasons:
        return True
    if shard.known is None or not reasons - UNSUITED:
        return False
    return shard.known.sha256 is not None or index_digest(index) == shard.known.index_sha256


def _samples(shard: _Shard, index: ShardIndex, descriptor: int) -> list[Sample]:
    sidecar = cache(partial(read_sidecar, shard.storage, shard.name))

    def read(member: Member) -> bytes:
        return os.pread(descriptor, member.size, member.offset)

    def facts(sample: Mapping[str, Member]) -> Mapping[str, object]:
        return metadata(sample, read, sidecar, shard.rules)

    def words(sample: Mapping[str, Member]) -> str | None:
        return caption(sample, read, facts(sample), shard.rules)

    return [
        Sample(
            source=shard.url,
            key=video_of(sample).key,
            size_bytes=video_of(sample).size,
            video=partial(read, video_of(sample)),
            caption=partial(words, sample),
            metadata=partial(facts, sample),
        )
        for sample in index.samples()
    ]


BAD_INDEX = "bad_index"


def side_file_problems(
    storage: Storage, entries: Mapping[str, Entry], known: ShardEntry, index: ShardIndex
) -> Iterator[Problem]:
    """Faults of the index and the sizes of a shard that is itself as the manifest says.

    Args:
        entries: what is in the folder.
        known: the manifest's line of the shard.
        index: what is in the shard.
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
    return None if written == index else "it does not say what is in the shard"


def _of_sizes(
    storage: Storage, entries: Mapping[str, Entry], known: ShardEntry, index: ShardIndex
) -> str | None:
    """A shard need not have sizes: the first run that needs them makes them.

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
