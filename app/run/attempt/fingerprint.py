"""What a weight file or folder holds, wherever it lies: a digest of names, sizes and samples.

Multi-gigabyte weights cannot be hashed at every start. Two models of one architecture differ
nearly everywhere, so a few blocks of each file tell them apart; a copy in another place, with
other times and ETags, has the same digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from app.storage.fetch import object_entries
from app.storage.opening import is_remote, local_path, open_storage, split_s3_url

BLOCK_BYTES = 4096
BLOCKS = 5  # of one file: both ends, and evenly between
WEIGHT_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".model")

Read = Callable[[int, int], bytes]  # start, stop


def fingerprint(url: str) -> str | None:
    """The digest, 32 hexadecimal digits; None where nothing lies.

    Args:
        url: of a file or folder, local or s3://.

    Raises:
        CogvxError: the storage cannot be used, or there is no such object.
    """
    found = _remote_files(url) if is_remote(url) else _local_files(local_path(url))
    weights = [file for file in found if file[0].endswith(WEIGHT_SUFFIXES)] or found
    digest = hashlib.sha256()
    for name, size_bytes, read in sorted(weights, key=lambda file: file[0]):
        digest.update(f"\0{name}\0{size_bytes}\0".encode())
        for start in _starts(size_bytes):
            digest.update(read(start, min(start + BLOCK_BYTES, size_bytes)))
    return digest.hexdigest()[:32] if weights else None


def _starts(size_bytes: int) -> list[int]:
    last = max(0, size_bytes - BLOCK_BYTES)
    return sorted({last * block // (BLOCKS - 1) for block in range(BLOCKS)}) if size_bytes else []


def _local_files(path: Path) -> list[tuple[str, int, Read]]:
    if path.is_file():
        return [("", path.stat().st_size, _local_read(path))]
    files = [file for file in path.rglob("*") if file.is_file()]
    return [
        (file.relative_to(path).as_posix(), file.stat().st_size, _local_read(file))
        for file in files
    ]


def _local_read(path: Path) -> Read:
    def read(start: int, stop: int) -> bytes:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(stop - start)

    return read


def _remote_files(url: str) -> list[tuple[str, int, Read]]:
    bucket, key = split_s3_url(url)
    storage = open_storage(f"s3://{bucket}")

    def read_of(name: str) -> Read:
        return lambda start, stop: storage.read_range(name, start, stop)

    return [
        (entry.key[len(key) :].lstrip("/"), entry.size_bytes, read_of(entry.key))
        for entry in object_entries(storage, key, url)
    ]
