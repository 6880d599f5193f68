"""sha256 per piece of a file, md5 of one request body."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from app.storage.objects import PIECE_BYTES

_BLOCK_BYTES = 2**20
_HASH_THREADS = 4  # hashlib releases the interpreter's lock


def piece_count(size_bytes: int, piece_bytes: int = PIECE_BYTES) -> int:
    """Number of pieces of a file; an empty file has none."""
    return -(-size_bytes // piece_bytes)


def piece_digest(path: Path, index: int, piece_bytes: int = PIECE_BYTES) -> str:
    """sha256 (hex) of one piece of a local file."""
    digest = hashlib.sha256()
    left = piece_bytes
    with path.open("rb") as file:
        file.seek(index * piece_bytes)
        while left > 0 and (block := file.read(min(_BLOCK_BYTES, left))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


def file_digests(path: Path, piece_bytes: int = PIECE_BYTES) -> tuple[str, ...]:
    """sha256 (hex) of every piece of a local file, in order."""
    count = piece_count(path.stat().st_size, piece_bytes)
    if count <= 1:
        return tuple(piece_digest(path, index, piece_bytes) for index in range(count))
    threads = min(count, _HASH_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        return tuple(pool.map(lambda i: piece_digest(path, i, piece_bytes), range(count)))


def wrong_piece(expected: Sequence[str], found: Sequence[str]) -> int | None:
    """Index of the first piece that differs, or None when all agree."""
    for index, (left, right) in enumerate(zip(expected, found, strict=False)):
        if left != right:
            return index
    return None if len(expected) == len(found) else min(len(expected), len(found))


def content_md5(data: bytes | memoryview) -> str:
    """The Content-MD5 header of a body: the one checksum that every S3 server verifies."""
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
