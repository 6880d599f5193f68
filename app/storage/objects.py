"""What a storage offers: objects by key, and facts about them.

A key is relative to the storage's root, with `/` between its parts. Three implementations
ship: `local.LocalStorage`, `s3.S3Storage` and, to read only, `http.HttpStorage`; one contract test
runs against them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from app.errors import DataError, InputMissingError

MAX_KEY_BYTES = 1024  # the limit of S3
OWN_KEY = re.compile(r"[a-z0-9._-]+(?:/[a-z0-9._-]+)*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def check_key(key: str, where: str) -> str:
    """Return a key that stays below its root on any storage.

    Raises:
        DataError: empty, too long, absolute, with `.`, `..` or empty parts, or control characters.
    """
    parts = key.split("/")
    bad = (
        not key
        or len(key.encode("utf-8", "surrogatepass")) > MAX_KEY_BYTES
        or any(part in ("", ".", "..") for part in parts)
        or "\\" in key
        or _CONTROL.search(key) is not None
    )
    if bad:
        raise DataError(
            f"{key[:200]!r} is not a valid key",
            where=where,
            fix="a key is relative, has no empty, '.' or '..' part and at most 1024 bytes",
        )
    return key


def check_own_key(key: str, where: str) -> str:
    """Return a key fit for objects that cogvx writes: lower case, digits, `.`, `_`, `-`, `/`.

    Raises:
        DataError: the key has other characters.
    """
    check_key(key, where)
    if OWN_KEY.fullmatch(key) is None:
        raise DataError(
            f"{key[:200]!r} is not a valid name for an object that cogvx writes",
            where=where,
            fix="use lower-case letters, digits, '.', '_', '-' and '/' only",
        )
    return key


def check_prefix(prefix: str, where: str) -> str:
    """Return a listing prefix: empty, or a key that may end with a slash."""
    if prefix:
        check_key(prefix.removesuffix("/"), where)
    return prefix


PIECE_BYTES = 64 * 2**20  # one sha256 per piece: a partial read can be verified


class ObjectMissingError(InputMissingError):
    """There is no object under this key."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One object as a listing shows it."""

    key: str
    size_bytes: int
    etag: str | None  # None: the server gives none (an empty ETag counts as none)
    modified: float | None  # seconds since the epoch, by the server's clock; whole ones on S3


@dataclass(frozen=True, slots=True)
class Receipt:
    """What was transferred: size and one sha256 (hex) per piece, the last piece shorter."""

    key: str
    size_bytes: int
    piece_bytes: int
    sha256: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload that was started and neither completed nor aborted."""

    key: str
    upload_id: str


class Storage(Protocol):
    """Objects by key. Implemented by local.py, s3.py and, to read, http.py.

    Every call may raise AccessDeniedError (77), and RetryableError (138) when the storage does
    not answer before the deadline. Messages name the URL of the object, never a secret.
    """

    url: str

    def list(self, prefix: str = "") -> list[Entry]:
        """Every object whose key begins with `prefix`, at any depth, sorted by key."""
        ...

    def folders(self, prefix: str = "") -> Sequence[str]:
        """Names one level below the folder `prefix`, sorted, without slashes."""
        ...

    def stat(self, key: str) -> Entry:
        """Size and identity of one object; ObjectMissingError if there is none."""
        ...

    def read_small(self, key: str) -> bytes:
        """Read the whole object; ObjectMissingError if there is none."""
        ...

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        """Read bytes [start, stop); DataError when the object does not have them all."""
        ...

    def download(self, key: str, path: Path, expect: Entry | Receipt | None = None) -> Receipt:
        """Copy the object to a local file, whole or not at all.

        `expect` names size and identity (Entry) or size and digests (Receipt); DataError when
        the object differs, with the key and the first wrong piece.
        """
        ...

    def write_small(self, key: str, data: bytes) -> None:
        """Write the whole object or nothing; a reader never sees half of one."""
        ...

    def upload(self, path: Path, key: str) -> Receipt:
        """Copy a local file to an object; a reader never sees half of it."""
        ...

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; one that does not exist is fine."""
        ...

    def list_uploads(self, prefix: str = "") -> Sequence[Upload]:
        """Unfinished uploads to keys below `prefix`."""
        ...

    def abort_upload(self, upload: Upload) -> None:
        """Discard an unfinished upload; one that does not exist is fine."""
        ...

    def check_reachable(self, deadline_s: float | None = None) -> None:
        """Check once, before any work, that the place exists and may be used.

        Raises InputMissingError (no such bucket), AccessDeniedError, or RetryableError when
        there is no answer within `deadline_s` (default: the deadline of every operation).
        """
        ...

    def identity(self) -> dict[str, str]:
        """Which storage, whose credentials: names of endpoints and providers, never a secret."""
        ...


def stat_if_present(storage: Storage, key: str) -> Entry | None:
    """As `Storage.stat`; None when there is no such object."""
    try:
        return storage.stat(key)
    except ObjectMissingError:
        return None


def read_if_present(storage: Storage, key: str) -> bytes | None:
    """As `Storage.read_small`; None when there is no such object."""
    try:
        return storage.read_small(key)
    except ObjectMissingError:
        return None
