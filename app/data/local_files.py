"""Objects of one folder as files that can be opened, whether the folder is local or a bucket."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from app.data.names import is_hidden
from app.data.object_cache import CachedObject, Check, ObjectCache, Prefetcher
from app.errors import AccessDeniedError, DataError, InputMissingError
from app.storage.local import files_below
from app.storage.objects import Entry, Storage
from app.storage.opening import is_remote

OPEN_ATTEMPTS = 5  # a cached file may be evicted between its check and its opening


class LocalFiles:
    """The objects of one storage, opened as local files.

    Args:
        storage: the folder or bucket.
        entries: its objects, by key, as listed at start.
        cache: where remote objects are kept; None is allowed for a local folder only.
        prefetcher: gets coming reads announced; may be None.
    """

    def __init__(
        self,
        storage: Storage,
        entries: Mapping[str, Entry],
        cache: ObjectCache | None,
        prefetcher: Prefetcher | None = None,
    ) -> None:
        self.storage = storage
        self.entries = entries
        self._cache = cache if is_remote(storage.url) else None
        self._prefetcher = prefetcher if self._cache is not None else None
        self._checks: dict[str, Check] = {}
        assert self._cache is not None or not is_remote(storage.url)

    def check_with(self, key: str, check: Check) -> None:
        """Have the content of a remote object checked when it is downloaded."""
        self._checks[key] = check

    def open(self, key: str) -> BinaryIO:
        """The object, open for reading; fetches it first if need be.

        Raises:
            InputMissingError: it is gone.
            DataError: it has another size than listed, or fails its check.
        """
        if self._cache is None:
            return self._open_local(key)
        for _ in range(OPEN_ATTEMPTS):
            path = self._cache.get(self._cached(key))
            try:
                return path.open("rb")
            except FileNotFoundError:
                continue
        raise DataError(
            "the file disappears from the cache again and again",
            where=f"{self.storage.url}/{key}",
            fix="use a larger data.cache_gib: it is smaller than what the ranks read at a time",
        )

    def discard(self, key: str) -> bool:
        """Forget a cached copy that its reader found damaged; False when there is none."""
        if self._cache is None:
            return False
        self._cache.discard(self._cached(key))
        return True

    def read(self, key: str) -> bytes:
        """The whole object."""
        with self.open(key) as file:
            return file.read()

    def expect(self, key: str) -> None:
        """One `open` of this object is coming."""
        if self._prefetcher is not None:
            self._prefetcher.expect(self._cached(key))

    def done(self, key: str) -> None:
        """One expected `open` is over."""
        if self._prefetcher is not None:
            self._prefetcher.done(self._cached(key))

    def _cached(self, key: str) -> CachedObject:
        return CachedObject(self.storage, self.entries[key], self._checks.get(key))

    def _open_local(self, key: str) -> BinaryIO:
        path = Path(self.storage.url) / key
        try:
            size = path.stat().st_size
            if size != self.entries[key].size_bytes:
                raise DataError(
                    f"the file had {self.entries[key].size_bytes} bytes when the run began and "
                    f"has {size} now",
                    where=str(path),
                    fix="do not change data under a run; start it again",
                )
            return path.open("rb")
        except FileNotFoundError as problem:
            raise InputMissingError(
                "the file is gone", where=str(path), fix="restore it, then start the run again"
            ) from problem
        except PermissionError as problem:
            raise AccessDeniedError(
                "the file may not be read", where=str(path), fix="change its owner or mode"
            ) from problem


def unlisted(storage: Storage, within: str, listed: Container[str]) -> Iterator[str]:
    """Names of a local folder that no listing shows: links to nothing, pipes, devices.

    Args:
        storage: any; only a local one has such names.
        within: prefix to look below.
        listed: keys that its listing shows.
    """
    if is_remote(storage.url):
        return
    root = Path(storage.url)
    for path in files_below(root / within):
        key = path.relative_to(root).as_posix()
        if key not in listed and not is_hidden(key):
            yield key
