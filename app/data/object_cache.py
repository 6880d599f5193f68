"""Objects of a bucket as files on the node's disk: one download per node, a bound on the space.

All processes of a node share one directory. A file's name is a digest of the object's URL and
identity, so two buckets with a `000.tar` never mix and a replaced object is another file. Locks
are `flock`s: the kernel frees them when a process dies.

    <digest>.obj        a complete object, checked before it got this name
    <digest>.lock       held by whoever downloads it, then removed; others wait here and then find
                        the file
    <digest>.part       being downloaded, by the holder of the lock
    <digest>.reserved   sparse file of the size that a running download will need
    wants/<process>.want  names that a process will read soon, locked while it lives
    evict.lock          held while files come and go; the sum of their bytes (cache_space.py)
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from app.data.cache_space import LOCK, OBJECT, RESERVED, CacheSpace, Protected, held, is_free
from app.errors import CogvxError, ConfigError, DataError
from app.storage.objects import Entry, Storage

log = logging.getLogger(__name__)

Check = Callable[[Path], None]  # raises DataError when the file is not what it should be
PART, WANT = ".part", ".want"
WANTS = "wants"  # a folder of their own, which is short however many objects there are
# The storage writes `.<digest>.part.part-...` first; only a killed process leaves it.
_UNFINISHED = re.compile(r"\.?([0-9a-f]{32})\.(?:part.*|reserved|lock)")
WAIT_S = 0.2
GIB = 1 << 30
AFTER_FULL_DISK = 0.8  # of the bound, when the disk was full before the bound was reached


@dataclass(frozen=True, slots=True)
class CachedObject:
    """One object to have on disk, and the check of its content (not of its size: always)."""

    storage: Storage
    entry: Entry
    check: Check | None = None

    @property
    def url(self) -> str:
        return f"{self.storage.url}/{self.entry.key}"

    @property
    def name(self) -> str:
        identity = self.entry.etag or f"modified {self.entry.modified}"
        text = f"{self.url}\0{self.entry.size_bytes}\0{identity}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]


class NoRoomError(Exception):
    """The bound is reached and every file will be read soon: wait, or be urgent."""


class ObjectCache:
    """The directory and its bound. Safe to use from several threads and processes.

    Args:
        folder: on the node's own disk; made when missing.
        limit_bytes: space for all processes of the node together.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self._want_lock = threading.Lock()
        self._space = CacheSpace(folder, limit_bytes)
        try:
            (folder / WANTS).mkdir(parents=True, exist_ok=True)
            process = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
            self._want_path = folder / WANTS / f"{process}{WANT}"
            self._want = self._want_path.open("w+")
        except OSError as problem:
            raise ConfigError(
                f"the cache folder cannot be used: {problem.strerror}",
                where=f"data.cache_dir: {folder}",
                fix="name a folder on the node's disk that may be written",
            ) from problem
        fcntl.flock(self._want, fcntl.LOCK_EX)
        self._remove_leftovers()

    def get(self, target: CachedObject, *, urgent: bool = True) -> Path:
        """The object's file; downloads it if no process of this node has.

        Args:
            target: what to have.
            urgent: a reader waits for it: files that are read later may be removed for it.

        Raises:
            NoRoomError: not urgent, and the cache is full.
            DataError: the object is damaged, twice.
            InputMissingError, AccessDeniedError, RetryableError: from the storage.
        """
        path = self.folder / f"{target.name}{OBJECT}"
        if self._present(path, target):
            return path
        with held(self.folder / f"{target.name}{LOCK}"):
            if not self._present(path, target):
                try:
                    self._download(target, path, urgent)
                except DataError as problem:
                    log.warning("damaged", extra={"url": target.url, "what": problem.what})
                    self._download(target, path, urgent)
        return path

    def discard(self, target: CachedObject) -> None:
        """Remove a file that its reader found damaged; the next `get` fetches it again."""
        self._space.remove(self.folder / f"{target.name}{OBJECT}")

    def announce(self, names: Iterable[str]) -> None:
        """Publish which names this process reads soon, so that no other removes them."""
        with self._want_lock:
            self._want.seek(0)
            self._want.truncate()
            self._want.write("\n".join(names))
            self._want.flush()

    def close(self) -> None:
        """End this process's announcement; the files stay for the next run."""
        with suppress(FileNotFoundError):
            self._want_path.unlink()
        self._want.close()

    def _present(self, path: Path, target: CachedObject) -> bool:
        try:
            if path.stat().st_size != target.entry.size_bytes:
                self._space.remove(path)
                return False
            os.utime(path)  # least recently used goes first
        except FileNotFoundError:
            return False
        return True

    def _download(self, target: CachedObject, path: Path, urgent: bool) -> None:
        """Called with the object's lock held."""
        part = path.with_suffix(PART)
        self._reserve(target, urgent)
        try:
            try:
                self._fetch(target, part)
            except OSError as problem:
                if problem.errno != errno.ENOSPC:
                    raise
                self._space.shrink(AFTER_FULL_DISK, self._protected(urgent))
                self._fetch(target, part)
            self._space.keep(target.name, part)
        except BaseException:
            self._space.release(target.name)
            raise
        log.debug("shard cached", extra={"url": target.url, "bytes": target.entry.size_bytes})

    def _fetch(self, target: CachedObject, part: Path) -> None:
        try:
            target.storage.download(target.entry.key, part, target.entry)
            if target.check is not None:
                target.check(part)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def _reserve(self, target: CachedObject, urgent: bool) -> None:
        """Count the bytes of a download before it begins."""
        needed = target.entry.size_bytes
        if needed > self.limit_bytes:
            raise ConfigError(
                f"a file of {needed / GIB:.3f} GiB does not fit into the cache of "
                f"{self.limit_bytes / GIB:.3f} GiB: {target.url}",
                where="data.cache_gib",
                fix="use a larger cache or smaller shards",
            )
        while not self._space.reserve(target.name, needed, self._protected(urgent)):
            if not urgent:
                raise NoRoomError
            time.sleep(WAIT_S)  # the space is reserved by running downloads: they end

    def _protected(self, urgent: bool) -> Callable[[], Protected]:
        """Names whose files stay, strictest first.

        Files that no process has announced go first. A reader that waits may also take what is
        read later, by this process before others: it costs them a download, and refusing would
        stop every rank, because they wait for each other.
        """

        def names() -> Protected:
            mine, others = self._announced_names()
            return (mine | others, others, set()) if urgent else (mine | others,)

        return names

    def _announced_names(self) -> tuple[set[str], set[str]]:
        """Names announced by this process, and by the other living ones."""
        mine: set[str] = set()
        others: set[str] = set()
        for path in (self.folder / WANTS).glob(f"*{WANT}"):
            with suppress(FileNotFoundError):
                if path == self._want_path:
                    mine.update(path.read_text().split())
                elif _is_dead(path):
                    path.unlink()
                else:
                    others.update(path.read_text().split())
        return mine, others

    def _remove_leftovers(self) -> None:
        """Delete partial files whose download died, and locks of downloads that ended: all free."""
        for path in self.folder.iterdir():
            match = _UNFINISHED.fullmatch(path.name)
            if match is not None and is_free(self.folder / f"{match[1]}{LOCK}"):
                self._space.remove(path) if path.suffix == RESERVED else path.unlink(
                    missing_ok=True
                )


def _is_dead(want: Path) -> bool:
    """Whether the process that wrote a .want file is gone: its lock is free."""
    with want.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


class Prefetcher:
    """Downloads objects in the order in which they will be read, ahead of the reader.

    `expect` counts coming reads of an object and `done` counts one off. An object with expected
    reads is needed; at most `ahead_bytes` of needed objects are downloaded ahead.
    """

    def __init__(self, cache: ObjectCache, ahead_bytes: int, threads: int = 2) -> None:
        self._cache = cache
        self._ahead_bytes = ahead_bytes
        self._reads: dict[str, int] = {}  # name -> expected reads, in order of the first one
        self._objects: dict[str, CachedObject] = {}
        self._begun: set[str] = set()
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._run, name=f"prefetch-{i}", daemon=True)
            for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def expect(self, target: CachedObject) -> None:
        """One read of this object is coming."""
        with self._changed:
            self._reads[target.name] = self._reads.get(target.name, 0) + 1
            if target.name not in self._objects:
                self._objects[target.name] = target
                self._cache.announce(self._reads)
                self._changed.notify_all()

    def done(self, target: CachedObject) -> None:
        """One expected read is over."""
        with self._changed:
            left = self._reads.get(target.name, 0) - 1
            if left > 0:
                self._reads[target.name] = left
            elif target.name in self._reads:
                del self._reads[target.name], self._objects[target.name]
                self._begun.discard(target.name)
                self._cache.announce(self._reads)
                self._changed.notify_all()

    def close(self) -> None:
        """Stop after the downloads that run now."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _next(self) -> CachedObject | None:
        """The first object not begun yet, if it is inside the bound. Called with the lock."""
        ahead = 0
        for name in self._reads:
            target = self._objects[name]
            if name not in self._begun:
                # The first one always: a bound below one object would stop everything.
                fits = ahead + target.entry.size_bytes <= self._ahead_bytes
                return target if fits or not ahead else None
            ahead += target.entry.size_bytes
        return None

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closed and self._next() is None:
                    self._changed.wait()
                if self._closed:
                    return
                target = self._next()
                assert target is not None
                self._begun.add(target.name)
            try:
                self._cache.get(target, urgent=False)
            except NoRoomError:
                with self._changed:
                    self._begun.discard(target.name)
                    self._changed.wait(timeout=1.0)
            except (CogvxError, OSError) as problem:
                # The reader meets the same problem, with the sample's name; here it is a hint.
                log.warning("prefetch failed", extra={"url": target.url, "problem": str(problem)})
