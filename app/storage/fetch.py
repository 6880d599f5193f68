"""Input files and folders (weights, text encoder, VAE): local ones in place, remote ones once.

One download per node: the processes of a node share `cache_dir`, the first one holds a lock and
the others find its result. The kernel frees the lock when a process dies.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.errors import AccessDeniedError, ConfigError, InputMissingError
from app.storage.objects import Entry, ObjectMissingError, Storage
from app.storage.opening import is_remote, local_path, open_storage, split_s3_url

log = logging.getLogger(__name__)


def fetch(url: str, cache_dir: Path) -> Path:
    """A local path with the file or folder that `url` names.

    Args:
        url: a local path, returned as it is, or `s3://bucket/key` of an object or folder.
        cache_dir: on this node's disk, shared by its processes; created if missing.

    Returns:
        The path; its last part is the last part of the URL. Do not write to it.

    Raises:
        InputMissingError: nothing is there; names the URL.
        DataError: a downloaded file differs in size from the listing.
    """
    if not is_remote(url):
        path = local_path(url)
        if not path.exists():
            raise InputMissingError(
                "there is no such file or folder",
                where=url,
                fix="check the path, and that its volume is mounted",
            )
        return path
    open_storage(url)  # rejects other schemes
    if not url.lower().startswith("s3://"):
        raise ConfigError(
            f"cannot fetch files from {url.partition(':')[0]}://",
            where=url,
            fix="put the file into a bucket, or give a local path",
        )
    bucket, key = split_s3_url(url)
    storage = open_storage(f"s3://{bucket}")
    entries = object_entries(storage, key, url)
    name = key.rpartition("/")[2] or bucket
    target = cache_dir / _digest(storage, entries) / name
    if target.exists():
        return target
    cache_dir.mkdir(parents=True, exist_ok=True)
    with _locked(target.parent.with_suffix(".lock")):
        if not target.exists():
            _download(storage, key, entries, target)
    return target


def file_version(url: str) -> str:
    """A digest of names, sizes and versions, which changes when the file or folder does.

    Raises:
        InputMissingError: nothing is there.
    """
    if is_remote(url):
        bucket, key = split_s3_url(url)
        storage = open_storage(f"s3://{bucket}")
        return _digest(storage, object_entries(storage, key, url))
    path = fetch(url, Path())
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    digest = hashlib.sha256()
    for file in files:
        stat = file.stat()
        name = file.relative_to(path.parent).as_posix()
        digest.update(f"\0{name}\0{stat.st_size}\0{stat.st_mtime_ns}".encode())
    return digest.hexdigest()[:32]


def object_entries(storage: Storage, key: str, url: str) -> list[Entry]:
    """The object itself, or every object of the folder."""
    if key and not url.endswith("/"):
        try:
            return [storage.stat(key)]
        except (ObjectMissingError, AccessDeniedError) as problem:
            # Denied: a policy for what is below the folder says nothing of its own name.
            log.debug("no object, looking for a folder", extra={"url": url, "why": problem.what})
    entries = storage.list(f"{key}/" if key else "")
    if not entries:
        raise InputMissingError(
            "there is no such object or folder",
            where=url,
            fix="check the URL, and that the upload to it has finished",
        )
    return entries


def _digest(storage: Storage, entries: list[Entry]) -> str:
    """Name of the cached copy; each version of an object has its own."""
    digest = hashlib.sha256(storage.url.encode())
    for entry in entries:
        version = entry.etag or f"modified {entry.modified}"
        digest.update(f"\0{entry.key}\0{entry.size_bytes}\0{version}".encode())
    return digest.hexdigest()[:32]


def _download(storage: Storage, key: str, entries: list[Entry], target: Path) -> None:
    folder = target.parent
    part = folder.with_suffix(".part")  # only this process writes it: it holds the lock
    if part.exists():
        shutil.rmtree(part)
    (part / target.name).parent.mkdir(parents=True)
    size_bytes = sum(entry.size_bytes for entry in entries)
    log.info(
        "fetching",
        extra={"url": f"{storage.url}/{key}", "files": len(entries), "bytes": size_bytes},
    )
    for entry in entries:
        inside = entry.key[len(key) :].lstrip("/") if entry.key != key else ""
        path = part / target.name / inside if inside else part / target.name
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.download(entry.key, path, entry)
    os.replace(part, folder)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
