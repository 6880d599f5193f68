"""The space of the node's cache folder: one running sum for all processes, and what makes room.

`evict.lock` is held while files come and go. Its content is the sum of their bytes, so that
nothing is counted again at each download; it is emptied before a change and written after it, so
that a process that dies in between leaves a sum that the next one counts anew.
"""

from __future__ import annotations

import fcntl
import os
from collections import deque
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path

OBJECT, RESERVED, LOCK = ".obj", ".reserved", ".lock"
SPACE = f"evict{LOCK}"

# Names whose files stay, strictest set first: the next one counts where that leaves no room.
Protected = tuple[Set[str], ...]


class CacheSpace:
    """The bytes of a folder's objects and reservations, held below a bound.

    Args:
        folder: of the cache.
        limit_bytes: for all processes of the node together.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._oldest: deque[tuple[int, Path]] = deque()  # (time of use in ns, file), of one listing

    def reserve(self, name: str, needed: int, protected: Callable[[], Protected]) -> bool:
        """Set `needed` bytes aside for a download of `name`, if they are there or can be freed.

        The caller waits, or does without, when it returns False.
        """
        with self._changed() as used:
            if used.bytes + needed > self._limit_bytes:
                self._free(used, self._limit_bytes - needed, protected())
            if used.bytes + needed > self._limit_bytes:
                return False
            with (self._folder / f"{name}{RESERVED}").open("wb") as file:
                file.truncate(needed)
            used.bytes += needed
            return True

    def keep(self, name: str, part: Path) -> None:
        """The download of `name` has arrived in `part`: it becomes the object of this name."""
        with self._changed():  # of the same size as its reservation: the sum stays
            os.replace(part, self._folder / f"{name}{OBJECT}")
            (self._folder / f"{name}{RESERVED}").unlink(missing_ok=True)

    def release(self, name: str) -> None:
        """The download of `name` has failed."""
        self.remove(self._folder / f"{name}{RESERVED}")

    def remove(self, path: Path) -> None:
        """Delete an object or a reservation, if it is there."""
        with self._changed() as used:
            used.bytes -= _unlinked(path)

    def shrink(self, share: float, protected: Callable[[], Protected]) -> None:
        """Free space until only this share of what is used now is left."""
        with self._changed() as used:
            self._free(used, int(share * used.bytes), protected())

    def _free(self, used: _Used, target: int, protected: Protected) -> None:
        """Remove the least recently used files that are not protected until `target` is met."""
        self._remove_oldest(used, target, protected[0])
        if used.bytes > target:  # what the last listing knew is used up, or has been read since
            used.bytes = self._list()
            for names in protected:
                self._remove_oldest(used, target, names)

    def _remove_oldest(self, used: _Used, target: int, protected: Set[str]) -> None:
        kept: deque[tuple[int, Path]] = deque()
        while self._oldest and used.bytes > target:
            used_at, path = self._oldest.popleft()
            if path.stem in protected:
                kept.append((used_at, path))
            elif _time_of_use(path) == used_at:
                used.bytes -= _unlinked(path)
        self._oldest.extendleft(reversed(kept))

    def _list(self) -> int:
        """Look at every file; the sum of their bytes."""
        total, found = 0, []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if entry.name.endswith((OBJECT, RESERVED)):
                    with suppress(FileNotFoundError):
                        status = entry.stat()
                        total += status.st_size
                        if entry.name.endswith(OBJECT):
                            found.append((status.st_mtime_ns, Path(entry.path)))
        self._oldest = deque(sorted(found))
        return total

    @contextmanager
    def _changed(self) -> Iterator[_Used]:
        """The sum, which the caller brings up to date with the files that it changes."""
        with (self._folder / SPACE).open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            text = file.read()
            file.truncate(0)
            used = _Used(int(text) if text.isdecimal() else self._list())
            yield used
            file.write(str(max(used.bytes, 0)))


class _Used:
    """Bytes of all objects and reservations."""

    def __init__(self, number: int) -> None:
        self.bytes = number


def _unlinked(path: Path) -> int:
    """Remove a file; the bytes that it had, 0 where there is none."""
    try:
        size = path.stat().st_size
        path.unlink()
    except FileNotFoundError:
        return 0
    return size


def _time_of_use(path: Path) -> int | None:
    with suppress(FileNotFoundError):
        return path.stat().st_mtime_ns
    return None


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, which is removed when it is let go.

    Who waited for a file that has been removed meanwhile waits again for the new one.
    """
    while True:
        with path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if _is_at(file.fileno(), path):
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return


def is_free(path: Path) -> bool:
    """Whether nobody holds the lock file `path`; a free one is removed."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if _is_at(file.fileno(), path):
            path.unlink(missing_ok=True)
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
