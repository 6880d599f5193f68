"""From paths to the shards of a run: listing, manifest, index, and every check before the start."""

from __future__ import annotations

import fcntl
import fnmatch
import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from app import __version__
from app.data.left_out import UNREADABLE, UNSUPPORTED, UNUSABLE, WHY, LeftOut, summary
from app.data.local_files import unlisted
from app.data.names import SHARD_SUFFIX, is_hidden, name_fault, shard_fault, shown
from app.data.shards.captions import sidecar_name
from app.data.shards.index import INDEX_VERSION, RangeFile, ShardIndex, index_digest, index_shard
from app.data.shards.manifest import (
    MANIFEST_NAME,
    DatasetManifest,
    ShardEntry,
    changed,
    identity_change,
    index_key,
    missing_shard,
    sizes_key,
    updated,
)
from app.data.shards.urls import SHARD_FIX, ShardPattern
from app.errors import AccessDeniedError, ConfigError, DataError, InputMissingError
from app.storage.http import HttpStorage
from app.storage.objects import Entry, ObjectMissingError, Storage
from app.storage.opening import is_remote

log = logging.getLogger(__name__)

SCAN_THREADS = 8
NAMES_SHOWN = 5
SHARDS_NAMED = 8  # of those with samples that are left out, the ones whose indexes are read
RESCAN, ERROR = "rescan", "error"
# Members besides `.txt` and the configured caption key that may hold a caption.
CAPTION_MEMBERS = frozenset({"txt", "json", "id"})


@dataclass(frozen=True, slots=True)
class Folder:
    """One folder of shards: how to reach it, what is in it, which shards are requested."""

    storage: Storage
    entries: Mapping[str, Entry]  # by key, all of them (side files too)
    shards: tuple[ShardEntry, ...]  # the requested ones, sorted by name; repeated ones repeat
    indexes: IndexFiles


class ShardFault(NamedTuple):
    """A file that is a shard by its name and cannot be read: a short word, and a sentence."""

    key: str
    reason: str
    detail: str


class IndexFiles:
    """Where the indexes and the manifest of a folder are kept: beside the shards, or here.

    A folder that may not be written gets them below `fallback`, on this node.
    """

    def __init__(self, storage: Storage, fallback: Path) -> None:
        self._storage = storage
        self.url = storage.url
        digest = hashlib.sha256(storage.url.encode()).hexdigest()[:32]
        self._fallback = fallback / "manifests" / digest
        self.writable = True

    def read(self, key: str) -> bytes | None:
        """A side file, or None; what is with the shards comes first."""
        try:
            return self._storage.read_small(key)
        except ObjectMissingError:
            path = self._fallback / key
            return path.read_bytes() if path.is_file() else None

    def write(self, key: str, data: bytes) -> None:
        """Keep a side file."""
        if self.writable:
            try:
                self._storage.write_small(key, data)
                return
            except (AccessDeniedError, OSError):
                log.info("shards are read-only", extra={"url": self._storage.url})
                self.writable = False
        path = self._fallback / key
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        part.write_bytes(data)
        part.replace(path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One process of the node at a time: the others then find the files."""
        self._fallback.mkdir(parents=True, exist_ok=True)
        with (self._fallback / "survey.lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def current(self, shards: Mapping[str, ShardEntry]) -> dict[str, ShardEntry]:
        """Shards without those of which older rules, which knew fewer videos, left some out."""
        with ThreadPoolExecutor(SCAN_THREADS) as pool:
            outdated = pool.map(self._is_outdated, shards.values())
            return {
                name: shards[name] for name, old in zip(shards, outdated, strict=True) if not old
            }

    def _is_outdated(self, shard: ShardEntry) -> bool:
        data = self.read(shard.index) if shard.left_out else None
        try:
            return data is not None and ShardIndex.from_json(data, shard.index).is_outdated
        except DataError:
            return False

    def index(self, shard: ShardEntry) -> ShardIndex | None:
        """The index of a shard; one that is lost, damaged or of another content is made again.

        None when the shard is not the one of the manifest either: opening it says how.
        """
        data = self.read(shard.index)
        where = f"{self._storage.url}/{shard.index}"
        try:
            index = None if data is None else ShardIndex.from_json(data, where)
        except DataError:
            index = None
        if index is not None and index_digest(index) == shard.index_sha256:
            return index
        log.warning("the index of a shard cannot be used: reading the shard", extra={"url": where})
        try:
            index = _walked(self._storage, shard.name, shard.bytes)
        except (DataError, InputMissingError):
            return None
        if index_digest(index) != shard.index_sha256:
            return None
        self.write(shard.index, index.to_json(shard.name))
        return index


@dataclass(frozen=True, slots=True)
class SurveyRules:
    """How to survey: the caption's member name, and what a changed shard means."""

    caption_key: str = "caption"
    on_changed_shard: str = ERROR


def survey(
    storage: Storage, patterns: Sequence[ShardPattern], cache_dir: Path, rules: SurveyRules
) -> Folder:
    """List a folder, compare it with its manifest, scan what the manifest does not know.

    Args:
        storage: opened on the folder.
        patterns: the requested shards of this folder.
        cache_dir: for side files when the folder may not be written, and for locks.
        rules: see SurveyRules.

    Raises:
        InputMissingError: the folder has no shard, or a named one is not there.
        DataError: a shard changed, is damaged, or cannot be read because of its name.
    """
    entries = entries_of(storage, patterns)
    faults = shard_faults(storage, entries, patterns)
    if faults:
        first = "; ".join(f"{shown(one.key)} ({one.detail})" for one in faults[:NAMES_SHOWN])
        more = f"; and {len(faults) - NAMES_SHOWN} more" if len(faults) > NAMES_SHOWN else ""
        raise DataError(
            f"{len(faults)} shards cannot be read: {first}{more}", where=storage.url, fix=SHARD_FIX
        )
    files = IndexFiles(storage, cache_dir)
    with files.locked():
        old = _read_manifest(storage.url, files)
        known = old.by_name()
        requested = sorted(matching_shards(storage.url, entries, set(known), patterns))
        for name in requested:
            if name not in entries:
                raise missing_shard(f"{storage.url}/{name}")
        names = list(dict.fromkeys(requested))
        fresh = _checked([known[name] for name in names if name in known], entries, storage, rules)
        if old.index_version < INDEX_VERSION:
            fresh = files.current(fresh)
        new = [name for name in names if name not in fresh]
        if new:
            log.info("scanning shards", extra={"url": storage.url, "shards": len(new)})
            scan = partial(scan_shard, storage, files, caption_key=rules.caption_key)
            with ThreadPoolExecutor(SCAN_THREADS) as pool:
                fresh |= {shard.name: shard for shard in pool.map(scan, [entries[n] for n in new])}
        known |= fresh
        lacking = {name for name, shard in known.items() if shard.left_out}
        new_manifest = DatasetManifest(
            tuple(known[name] for name in sorted(known)),
            old.made_by,
            # A folder of which nothing was left out needs no new manifest.
            INDEX_VERSION if lacking and lacking <= set(names) else old.index_version,
        )
        if new_manifest != old:
            files.write(MANIFEST_NAME, new_manifest.to_json())
    _report_left_out(files, list(fresh.values()))
    return Folder(storage, entries, tuple(fresh[name] for name in requested), files)


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
    index = _walked(storage, entry.key, entry.size_bytes)
    shard = shard_entry(entry, index, caption_key)
    files.write(shard.index, index.to_json(entry.key))
    return shard


def _walked(storage: Storage, key: str, size: int) -> ShardIndex:
    """The index of a shard by ranged reads of its headers."""
    read: Callable[[int, int], bytes] = partial(storage.read_range, key)
    return index_shard(RangeFile(read, size), size, f"{storage.url}/{key}")  # type: ignore[arg-type]


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
