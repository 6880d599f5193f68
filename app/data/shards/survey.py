"""From paths to the shards of a run: listing, manifest, index, and every check before the start."""

from __future__ import annotations

import fnmatch
import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, fields, replace
from functools import partial
from itertools import starmap
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from app import __version__
from app.data.left_out import UNREADABLE, UNSUPPORTED, UNUSABLE, WHY, LeftOut, summary
from app.data.local_files import unlisted
from app.data.names import SHARD_SUFFIX, is_hidden, name_fault, shard_fault, shown
from app.data.shards.captions import sidecar_name
from app.data.shards.index import INDEX_VERSION, ShardIndex, index_digest
from app.data.shards.index_files import SCAN_THREADS, IndexFiles, walked
from app.data.shards.manifest import (
    MANIFEST_NAME,
    DatasetManifest,
    ShardEntry,
    SidecarEntry,
    changed,
    identity_change,
    index_key,
    missing_shard,
    shard_row,
    sizes_key,
    updated,
)
from app.data.shards.urls import SHARD_FIX, ShardPattern
from app.distributed.shared_work import SharedWork
from app.errors import ConfigError, DataError, InputMissingError
from app.storage.http import HttpStorage
from app.storage.objects import Entry, ObjectMissingError, Storage
from app.storage.opening import is_remote

log = logging.getLogger(__name__)

NAMES_SHOWN = 5
MANY_SHARDS = 1000  # without an index: making them is announced with the command that does it
SMALLEST_BATCH, MOST_BATCHES = 256, 20  # of scanned shards between two manifests
SHARDS_NAMED = 8  # of those with samples that are left out, the ones whose indexes are read
RESCAN, ERROR = "rescan", "error"
# Members besides `.txt` and the configured caption key that may hold a caption.
CAPTION_MEMBERS = frozenset({"txt", "json", "id"})
Progress = Callable[[int, int], None]
Row = tuple[Any, ...]
_ENTRY_ROW: Callable[[Entry], Row] = attrgetter(*(field.name for field in fields(Entry)))


@dataclass(frozen=True, slots=True)
class Folder:
    """One folder of shards: how to reach it, what is in it, which shards are requested."""

    storage: Storage
    entries: Mapping[str, Entry]  # by key: the requested shards and what is beside them
    shards: tuple[ShardEntry, ...]  # the requested ones, sorted by name; repeated ones repeat
    indexes: IndexFiles
    sidecars: Mapping[str, str]  # name of each `.meta.jsonl` of a requested shard -> sha256


class ShardFault(NamedTuple):
    """A file that is a shard by its name and cannot be read: a short word, and a sentence."""

    key: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class SurveyRules:
    """How to survey: the caption's member name, and what a changed shard means."""

    caption_key: str = "caption"
    on_changed_shard: str = ERROR


def survey(
    storage: Storage,
    patterns: Sequence[ShardPattern],
    cache_dir: Path,
    rules: SurveyRules,
    shared: SharedWork | None = None,
    progress: Progress | None = None,
) -> Folder:
    """List a folder, compare it with its manifest, scan what the manifest does not know.

    Args:
        storage: opened on the folder.
        patterns: the requested shards of this folder.
        cache_dir: for side files when the folder may not be written, and for locks.
        rules: see SurveyRules.
        shared: the ranks that all survey this folder: the first one lists, each scans a part.
            A folder on disks is surveyed by every process: it may be another one on each node.
        progress: called with (shards scanned, shards to scan) while headers are read.

    Raises:
        InputMissingError: the folder has no shard, or a named one is not there.
        DataError: a shard changed, is damaged, or cannot be read because of its name.
    """
    files = IndexFiles(storage, cache_dir)
    alone = SharedWork()
    shared = shared if shared is not None and is_remote(storage.url) else alone
    found = _Survey(storage, patterns, files, rules, shared, progress or _no_progress)
    # Alone, the processes of a node take turns: the first one scans, the others find its manifest.
    with files.locked() if shared.is_alone else nullcontext():
        return found.folder()


@dataclass(slots=True)
class _Survey:
    """One survey; what is private to the first rank is empty on the others."""

    storage: Storage
    patterns: Sequence[ShardPattern]
    files: IndexFiles
    rules: SurveyRules
    shared: SharedWork
    progress: Progress
    _old: DatasetManifest = field(init=False)
    _known: dict[str, ShardEntry] = field(init=False)  # the manifest's shards, brought up to date
    _sidecars: dict[str, SidecarEntry] = field(init=False)

    def folder(self) -> Folder:
        begun = self.shared.once(self._begin)
        entries = {row[0]: Entry(*row) for row in begun["entries"]}
        fresh = {shard.name: shard for shard in starmap(ShardEntry, begun["fresh"])}
        scans = [entries[name] for name in begun["new"]]
        size = max(SMALLEST_BATCH, -(-len(scans) // MOST_BATCHES))
        for start in range(0, len(scans), size):
            log.info(
                "scanning shards",
                extra={"url": self.storage.url, "shards": len(scans), "scanned": start},
            )
            rows = self.shared.divided(scans[start : start + size], self._scanned)
            fresh |= {shard.name: shard for shard in starmap(ShardEntry, rows)}
            self.shared.once(partial(self._keep, rows))
            self.progress(start + len(rows), len(scans))
        sidecars = begun["sidecars"]
        unread = [entries[name] for name, digest in sidecars.items() if digest is None]
        digests = self.shared.divided(unread, self._digests)
        sidecars |= {entry.key: digest for entry, digest in zip(unread, digests, strict=True)}
        self.shared.once(partial(self._end, sidecars, sorted(fresh)))
        shards = tuple(fresh[name] for name in begun["requested"])
        return Folder(self.storage, entries, shards, self.files, sidecars)

    def _begin(self) -> dict[str, Any]:
        """The first rank's part before anything is scanned, as JSON."""
        entries = entries_of(self.storage, self.patterns)
        self._refuse(shard_faults(self.storage, entries, self.patterns))
        self._old = _read_manifest(self.storage.url, self.files)
        self._known = self._old.by_name()
        requested = sorted(
            matching_shards(self.storage.url, entries, set(self._known), self.patterns)
        )
        for name in requested:
            if name not in entries:
                raise missing_shard(f"{self.storage.url}/{name}")
        names = list(dict.fromkeys(requested))
        old = [self._known[name] for name in names if name in self._known]
        fresh = _checked(old, entries, self.storage, self.rules)
        if self._old.index_version < INDEX_VERSION:
            fresh = self.files.current(fresh)
        self._known |= fresh
        new = [name for name in names if name not in fresh]
        if len(new) > MANY_SHARDS:
            log.warning(
                "%d shards have no index yet: their headers are read now, which can take long; "
                "`cogvx data index %s` does it before a run",
                len(new),
                self.storage.url,
            )
        self._sidecars = {one.name: one for one in self._old.sidecars}
        beside = [name for name in map(sidecar_name, names) if name in entries]
        return {
            "requested": requested,
            "new": new,
            "fresh": [shard_row(shard) for shard in fresh.values()],
            "sidecars": {name: self._known_digest(entries[name]) for name in beside},
            "entries": [_ENTRY_ROW(entries[name]) for name in (*names, *beside)],
        }

    def _refuse(self, faults: Sequence[ShardFault]) -> None:
        if faults:
            first = "; ".join(f"{shown(one.key)} ({one.detail})" for one in faults[:NAMES_SHOWN])
            more = f"; and {len(faults) - NAMES_SHOWN} more" if len(faults) > NAMES_SHOWN else ""
            raise DataError(
                f"{len(faults)} shards cannot be read: {first}{more}",
                where=self.storage.url,
                fix=SHARD_FIX,
            )

    def _known_digest(self, entry: Entry) -> str | None:
        """The digest of a side file that is the one of the manifest still."""
        known = self._sidecars.get(entry.key)
        if known is not None and known.is_same(entry):
            return known.sha256
        self._sidecars[entry.key] = SidecarEntry(
            entry.key, entry.size_bytes, entry.etag or None, entry.modified, ""
        )
        return None

    def _scanned(self, entries: Sequence[Entry]) -> list[Row]:
        """Shards, as rows; the index of each is kept."""
        scan = partial(scan_shard, self.storage, self.files, caption_key=self.rules.caption_key)
        with ThreadPoolExecutor(SCAN_THREADS) as pool:
            return [shard_row(shard) for shard in pool.map(scan, entries)]

    def _digests(self, entries: Sequence[Entry]) -> list[str]:
        def digest(entry: Entry) -> str:
            return hashlib.sha256(self.storage.read_small(entry.key)).hexdigest()

        with ThreadPoolExecutor(SCAN_THREADS) as pool:
            return list(pool.map(digest, entries))

    def _keep(self, rows: Sequence[Row]) -> None:
        """Write what is known so far: a start that is interrupted continues from here."""
        self._known |= {shard.name: shard for shard in starmap(ShardEntry, rows)}
        self._write(self._old.index_version)

    def _end(self, sidecars: Mapping[str, str], names: Sequence[str]) -> None:
        """Write the manifest, if it is another one now, and name what is left out."""
        for name, digest in sidecars.items():
            self._sidecars[name] = replace(self._sidecars[name], sha256=digest)
        lacking = {name for name, shard in self._known.items() if shard.left_out}
        # A folder of which nothing was left out needs no new manifest.
        is_current = lacking and lacking <= set(names)
        self._write(INDEX_VERSION if is_current else self._old.index_version)
        _report_left_out(self.files, [self._known[name] for name in names])

    def _write(self, index_version: int) -> None:
        found = DatasetManifest(
            tuple(self._known[name] for name in sorted(self._known)),
            self._old.made_by,
            index_version,
            tuple(one for _, one in sorted(self._sidecars.items()) if one.sha256),
        )
        if found != self._old:
            self.files.write(MANIFEST_NAME, found.to_json())
            self._old = replace(found, index_version=self._old.index_version)


def _no_progress(done: int, total: int) -> None:
    """Where nobody watches."""


def entries_of(storage: Storage, patterns: Sequence[ShardPattern]) -> dict[str, Entry]:
    """What is in a folder, by key; over http, where listings may be missing, what is requested.

    Raises:
        ConfigError: an http server that shows neither a listing nor a manifest.
    """
    names = [pattern.pattern for pattern in patterns]
    by_name = all(pattern.is_name for pattern in patterns)
    if not isinstance(storage, HttpStorage):
        return _visible(storage.list(), names)
    if not by_name:
        try:
            return _visible(storage.list(), names)
        except ConfigError:
            manifest = _read_manifest(storage.url, IndexFiles(storage, Path("/nonexistent")))
            names = [shard.name for shard in manifest.shards]
            if not names:
                raise
    keys = [MANIFEST_NAME]
    for name in dict.fromkeys(names):
        keys += [name, index_key(name), sizes_key(name), sidecar_name(name)]

    def look(key: str) -> Entry | None:
        try:
            return storage.stat(key)
        except ObjectMissingError:
            return None

    with ThreadPoolExecutor(SCAN_THREADS) as pool:
        found = list(pool.map(look, keys))
    return {entry.key: entry for entry in found if entry is not None}


def _visible(entries: Iterable[Entry], named: Sequence[str]) -> dict[str, Entry]:
    """The files that are not hidden, by key; a hidden shard is read where it is named itself."""
    asked = set(named)
    return {entry.key: entry for entry in entries if not is_hidden(entry.key) or entry.key in asked}


def shard_faults(
    storage: Storage, entries: Mapping[str, Entry], patterns: Iterable[ShardPattern]
) -> list[ShardFault]:
    """Shards among what is requested of which no sample is read: part of the data would be missing.

    A glob that ends in `.tar` itself asks for nothing else.
    """
    found = []
    for key in entries:
        fault = shard_fault(key)
        if fault is not None:
            found.append(ShardFault(key, UNSUPPORTED, fault))
        elif key.rstrip().endswith(SHARD_SUFFIX) and (fault := name_fault(key)) is not None:
            found.append(ShardFault(key, UNUSABLE, fault))
    found += [
        ShardFault(key, UNREADABLE, WHY[UNREADABLE])
        for key in unlisted(storage, "", entries.keys())
        if key.endswith(SHARD_SUFFIX)
    ]
    globs = [pattern.pattern for pattern in patterns if not pattern.is_name]
    return sorted(
        one
        for one in found
        if any(not glob or fnmatch.fnmatchcase(one.key, glob) for glob in globs)
    )


def scan_shard(
    storage: Storage, files: IndexFiles, entry: Entry, *, caption_key: str
) -> ShardEntry:
    """Read a shard's headers, keep its index, describe it."""
    index = walked(storage, entry.key, entry.size_bytes)
    shard = shard_entry(entry, index, caption_key)
    files.write(shard.index, index.to_json(entry.key))
    return shard


def shard_entry(
    entry: Entry, index: ShardIndex, caption_key: str, sha256: str | None = None
) -> ShardEntry:
    """The manifest's line of a shard."""
    samples = index.samples()
    can_have = CAPTION_MEMBERS | {caption_key}
    return ShardEntry(
        name=entry.key,
        bytes=entry.size_bytes,
        etag=entry.etag or None,
        modified=entry.modified,
        sha256=sha256,
        samples=len(samples),
        index=index_key(entry.key),
        index_sha256=index_digest(index),
        no_caption=sum(1 for sample in samples if can_have.isdisjoint(sample)),
        left_out=len(index.left_out),
    )


def matching_shards(
    url: str, entries: Mapping[str, Entry], known: set[str], patterns: Iterable[ShardPattern]
) -> list[str]:
    """Names of the shards that the patterns stand for, each as often as it counts.

    Named ones and those of the manifest (`known`) are among them even if they are not there.

    Raises:
        InputMissingError: a pattern stands for no shard.
    """
    tars = sorted(
        {key for key in known if not is_hidden(key)}
        | {key for key in entries if key.endswith(SHARD_SUFFIX) and not is_hidden(key)}
    )
    found: list[str] = []
    for pattern in patterns:
        if pattern.is_name:
            names = [pattern.pattern]
        elif pattern.pattern:
            names = [key for key in tars if fnmatch.fnmatchcase(key, pattern.pattern)]
        else:
            names = tars
        if pattern.skip_empty:
            names = [name for name in names if name not in entries or entries[name].size_bytes]
        if not names:
            raise InputMissingError(
                f"no shard ({pattern.pattern or '*' + SHARD_SUFFIX}) here",
                where=url,
                fix="check the path or prefix; shards are uncompressed .tar files",
            )
        found += names * pattern.repeat
    return found


def _read_manifest(url: str, files: IndexFiles) -> DatasetManifest:
    """The manifest of the folder; an empty one when there is none."""
    data = files.read(MANIFEST_NAME)
    if data is None:
        return DatasetManifest((), f"cogvx {__version__}")
    return DatasetManifest.from_json(data, f"{url}/{MANIFEST_NAME}")


def _checked(
    shards: Sequence[ShardEntry], entries: Mapping[str, Entry], storage: Storage, rules: SurveyRules
) -> dict[str, ShardEntry]:
    """The shards that are still what the manifest says, by name.

    With `rescan` a changed one is left out, so that it is scanned again.
    """
    if rules.on_changed_shard not in (ERROR, RESCAN):
        raise ConfigError(
            f"on_changed_shard is '{rules.on_changed_shard}'",
            where="data.on_changed_shard",
            fix=f"use {ERROR} or {RESCAN}",
        )
    with ThreadPoolExecutor(SCAN_THREADS) as pool:
        results = list(pool.map(partial(_check_one, storage, entries), shards))
    fresh = {}
    for shard, result in zip(shards, results, strict=True):
        if isinstance(result, ShardEntry):
            fresh[shard.name] = result
        elif rules.on_changed_shard == ERROR:
            raise result
        else:
            log.warning("scanning a changed shard again", extra={"problem": result.what})
    return fresh


def _check_one(
    storage: Storage, entries: Mapping[str, Entry], shard: ShardEntry
) -> ShardEntry | DataError:
    """The shard as it is now, or what is wrong with it."""
    try:
        change = identity_change(shard, entries, storage.url)
    except DataError as problem:
        return problem
    if change is None:
        return shard
    if shard.sha256 is not None and isinstance(storage, HttpStorage):
        # A copy on a server has another time too; its content is checked when it is downloaded.
        return updated(shard, entries[shard.name])
    if shard.sha256 is None or is_remote(storage.url):
        return change
    # A local copy has another time; its content decides, and the next start knows.
    digest = file_sha256(Path(storage.url) / shard.name)
    if digest != shard.sha256:
        return changed(storage.url, shard, "sha256", shard.sha256, digest)
    return updated(shard, entries[shard.name])


def file_sha256(path: Path) -> str:
    """sha256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _report_left_out(files: IndexFiles, shards: Sequence[ShardEntry]) -> None:
    """Say how many samples are left out; the first names come from the indexes of a few shards."""
    lacking = [shard for shard in shards if shard.left_out]
    if not lacking:
        return
    named: list[LeftOut] = []
    unnamed = sum(shard.left_out for shard in lacking[SHARDS_NAMED:])
    for shard in lacking[:SHARDS_NAMED]:
        index = files.index(shard)
        if index is None:
            unnamed += shard.left_out
        else:
            named += [LeftOut(shard.name, key, reason) for key, reason in index.left_out]
    sentence = summary(named, sum(shard.samples for shard in shards), unnamed)
    log.warning(sentence, extra={"url": files.url})
