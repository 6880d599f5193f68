"""Shards on this node's disk: opened by their index, checked against the manifest."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from app.data.local_files import LocalFiles
from app.data.shards.index import Member, ShardIndex, index_digest, index_shard
from app.data.shards.manifest import ShardEntry, changed
from app.data.shards.survey import file_sha256
from app.errors import DataError


class OpenShard:
    """One shard on this node's disk: its samples, and their bytes by position."""

    def __init__(self, url: str, descriptor: int, index: ShardIndex) -> None:
        self.url = url
        self.index = index
        self.samples = index.samples()
        self._descriptor = descriptor

    def read(self, member: Member) -> bytes:
        """Bytes of a member; safe from several threads."""
        data = os.pread(self._descriptor, member.size, member.offset)
        if len(data) != member.size:
            raise DataError(
                f"member {member.key}.{member.suffix} is cut",
                where=self.url,
                fix="the shard changed under the run: restore it, then start the run again",
            )
        return data

    def __del__(self) -> None:
        # Dropped from the table while another thread still reads: closed when that one is done.
        os.close(self._descriptor)


def open_shard(files: LocalFiles, entry: ShardEntry) -> OpenShard:
    """Open a shard and make sure that its members are those of the manifest."""
    with files.open(entry.name) as file:
        index = _checked_index(file, entry, files.storage.url)
        return OpenShard(f"{files.storage.url}/{entry.name}", os.dup(file.fileno()), index)


def check_content(url: str, entry: ShardEntry, path: Path) -> None:
    """Check a downloaded shard: its members, and its digest where the manifest has one."""
    with path.open("rb") as file:
        _checked_index(file, entry, url)
    if entry.sha256 is not None and (found := file_sha256(path)) != entry.sha256:
        raise changed(url, entry, "sha256", entry.sha256, found)


def _checked_index(file: BinaryIO, entry: ShardEntry, url: str) -> ShardIndex:
    index = index_shard(file, entry.bytes, f"{url}/{entry.name}")
    digest = index_digest(index)
    if digest != entry.index_sha256:
        raise changed(url, entry, "index", entry.index_sha256, digest)
    return index
