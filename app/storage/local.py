"""Objects as files under a folder, with the same guarantees as a bucket."""

from __future__ import annotations

import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from app.errors import AccessDeniedError, DataError, InputMissingError
from app.storage.digests import file_digests, wrong_piece
from app.storage.failures import size_error
from app.storage.objects import (
    PIECE_BYTES,
    Entry,
    ObjectMissingError,
    Receipt,
    Upload,
    check_key,
    check_prefix,
)

# `.<name>.part-<id>`: an unfinished write, which a killed process leaves behind.
_PART = re.compile(r"\.(?P<name>.+)\.part-(?P<id>[0-9]+-[0-9a-f]{8})")
MOST_LINKS = 10_000  # linked folders of one listing


class LocalStorage:
    """A folder as a Storage; the first write creates it.

    `follow_links` lists what is below linked folders too: for data, which is only read. The
    folder of a run is also swept, and a link must not lead that outside.
    """

    def __init__(self, root: Path, *, follow_links: bool = False) -> None:
        self.url = str(root)
        self._root = root
        self._follow_links = follow_links

    def list(self, prefix: str = "") -> list[Entry]:
        """See Storage.list."""
        check_prefix(prefix, self.url)
        found = (
            _entry(key, path)
            for key, path in self._files(prefix)
            if _PART.fullmatch(path.name) is None
        )
        return sorted((entry for entry in found if entry is not None), key=lambda entry: entry.key)

    def folders(self, prefix: str = "") -> Sequence[str]:
        """See Storage.folders."""
        check_prefix(prefix, self.url)
        folder = self._root / prefix if prefix else self._root
        with self._errors(prefix):
            if not folder.is_dir():
                return []
            # A bucket has no empty folders.
            return sorted(
                child.name
                for child in folder.iterdir()
                if child.is_dir() and any(path.is_file() for path in child.rglob("*"))
            )

    def stat(self, key: str) -> Entry:
        """See Storage.stat."""
        with self._errors(key):
            entry = _entry(key, self._path(key))
        if entry is None:
            raise self._missing(key)
        return entry

    def read_small(self, key: str) -> bytes:
        """See Storage.read_small."""
        with self._errors(key):
            return self._path(key).read_bytes()

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        """See Storage.read_range."""
        with self._errors(key), self._path(key).open("rb") as file:
            file.seek(max(start, 0))
            data = file.read(max(stop - start, 0))
        if not 0 <= start <= stop or len(data) != stop - start:
            raise DataError(
                f"requested bytes {start}-{stop - 1}, the file has {len(data)} of them",
                where=self._where(key),
                fix="it was truncated or replaced; write it again",
            )
        return data

    def download(self, key: str, path: Path, expect: Entry | Receipt | None = None) -> Receipt:
        """See Storage.download."""
        with self._errors(key):
            receipt = _copy(self._path(key), path, key)
        if expect is not None and expect.size_bytes != receipt.size_bytes:
            path.unlink()
            raise size_error(self._where(key), receipt.size_bytes, expect.size_bytes)
        if isinstance(expect, Receipt):
            digests = file_digests(path, expect.piece_bytes)
            index = wrong_piece(expect.sha256, digests)
            if index is not None:
                path.unlink()
                raise DataError(
                    f"piece {index} has a different sha256 than recorded",
                    where=self._where(key),
                    fix="the file is damaged; write it again or take another one",
                )
            return Receipt(key, receipt.size_bytes, expect.piece_bytes, digests)
        return receipt

    def write_small(self, key: str, data: bytes) -> None:
        """See Storage.write_small."""
        with self._errors(key), self._written(key) as part:
            part.write_bytes(data)

    def upload(self, path: Path, key: str) -> Receipt:
        """See Storage.upload."""
        with self._errors(key), self._written(key) as part:
            return _copy(path, part, key)

    def delete(self, keys: Iterable[str]) -> None:
        """See Storage.delete."""
        for key in keys:
            path = self._path(key)
            with self._errors(key):
                path.unlink(missing_ok=True)
                self._prune(path.parent)

    def list_uploads(self, prefix: str = "") -> Sequence[Upload]:
        """See Storage.list_uploads: here the partial files of killed processes."""
        check_prefix(prefix, self.url)
        found = []
        for key, path in self._files(""):
            match = _PART.fullmatch(path.name)
            if match is not None:
                target = (Path(key).parent / match["name"]).as_posix()
                if target.startswith(prefix):
                    found.append(Upload(target, match["id"]))
        return sorted(found, key=lambda upload: (upload.key, upload.upload_id))

    def abort_upload(self, upload: Upload) -> None:
        """See Storage.abort_upload."""
        part = _part_of(self._path(upload.key), upload.upload_id)
        with self._errors(upload.key):
            part.unlink(missing_ok=True)
            self._prune(part.parent)

    def check_reachable(self, deadline_s: float | None = None) -> None:
        """See Storage.check_reachable: the folder exists, or can be created."""
        place = self._root.absolute()
        while not place.exists() and place != place.parent:
            place = place.parent
        if not place.is_dir():
            raise InputMissingError(
                "this is a file, not a folder", where=str(place), fix="name a folder"
            )
        needed = os.R_OK | os.X_OK if place == self._root.absolute() else os.W_OK | os.X_OK
        if not os.access(place, needed):
            raise AccessDeniedError(
                "no permission to use this folder",
                where=str(place),
                fix="change its owner or mode, or name another folder",
            )

    def identity(self) -> dict[str, str]:
        """See Storage.identity."""
        return {"url": self.url, "endpoint": "local", "credentials": f"uid {os.getuid()}"}

    def _path(self, key: str) -> Path:
        return self._root / check_key(key, self.url)

    def _where(self, key: str) -> str:
        return str(self._root / key)

    def _missing(self, key: str) -> ObjectMissingError:
        return ObjectMissingError(
            "there is no such file", where=self._where(key), fix="check the path"
        )

    def _files(self, prefix: str) -> Iterator[tuple[str, Path]]:
        start = self._root / prefix.rpartition("/")[0]
        with self._errors(prefix):
            if not start.is_dir():
                return
            walk = files_below(start) if self._follow_links else _files_of(os.walk(start))
            for path in walk:
                key = path.relative_to(self._root).as_posix()
                if key.startswith(prefix):
                    yield key, path

    @contextmanager
    def _written(self, key: str) -> Iterator[Path]:
        path = self._path(check_key(key, self.url))
        path.parent.mkdir(parents=True, exist_ok=True)
        part = _part_of(path, f"{os.getpid()}-{uuid.uuid4().hex[:8]}")
        try:
            yield part
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    def _prune(self, folder: Path) -> None:
        with suppress(OSError):  # not empty, or somebody just wrote into it
            while folder != self._root:
                folder.rmdir()
                folder = folder.parent

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise self._missing(key) from error
        except PermissionError as error:
            raise AccessDeniedError(
                "permission denied by the file system",
                where=self._where(key),
                fix="change the owner or mode of the file or its folder",
            ) from error


def files_below(start: Path) -> Iterator[Path]:
    """Everything below a folder that is not a folder, through linked folders too.

    A link to a folder that contains the link, or the start, is not followed: of each path a
    folder (by device and inode) may be a part only once.

    Raises:
        DataError: more than 10,000 linked folders: links that lead to each other.
        PermissionError: a folder may not be listed.
    """
    real = start.resolve()
    above = {str(start): frozenset(_identity(folder) for folder in (real, *real.parents))}
    links = 0

    def check(problem: OSError) -> None:
        if isinstance(problem, PermissionError):
            raise problem

    def folders() -> Iterator[tuple[str, list[str], list[str]]]:
        nonlocal links
        for folder, children, names in os.walk(start, followlinks=True, onerror=check):
            passed = above.pop(folder)
            for child in tuple(children):
                path = os.path.join(folder, child)
                links += os.path.islink(path)
                identity = _identity(path)
                if identity is None or identity in passed:
                    children.remove(child)
                else:
                    above[path] = passed | {identity}
            if links > MOST_LINKS:
                raise DataError(
                    f"there are more than {MOST_LINKS} linked folders",
                    where=str(start),
                    fix="remove links that lead to each other",
                )
            yield folder, children, names

    return _files_of(folders())


def _files_of(walk: Iterable[tuple[str, list[str], list[str]]]) -> Iterator[Path]:
    # os.walk and not rglob: a file that vanishes during the listing is not an error.
    return (Path(folder) / name for folder, _, names in walk for name in names)


def _identity(path: str | Path) -> tuple[int, int] | None:
    """Device and inode of what a path leads to; None where it leads nowhere."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _entry(key: str, path: Path) -> Entry | None:
    try:
        found = path.stat()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        return None  # it vanished, or is a link to nothing or to itself
    return Entry(key, found.st_size, None, found.st_mtime) if path.is_file() else None


def _part_of(path: Path, upload_id: str) -> Path:
    return path.with_name(f".{path.name}.part-{upload_id}")


def _copy(source: Path, target: Path, key: str) -> Receipt:
    part = target if _PART.fullmatch(target.name) else _part_of(target, f"{os.getpid()}-00000000")
    try:
        shutil.copyfile(source, part)
        receipt = Receipt(key, part.stat().st_size, PIECE_BYTES, file_digests(part))
        if part != target:
            os.replace(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return receipt
