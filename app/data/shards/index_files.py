"""The side files of a folder of shards: where they are kept, and indexes made again from shards."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from app.data.cache_space import held
from app.data.shards.index import RangeFile, ShardIndex, index_digest, index_shard
from app.data.shards.manifest import ShardEntry
from app.errors import AccessDeniedError, DataError, InputMissingError
from app.storage.objects import ObjectMissingError, Storage

log = logging.getLogger(__name__)

SCAN_THREADS = 8


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
        with held(self._fallback / "survey.lock"):
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
            index = walked(self._storage, shard.name, shard.bytes)
        except (DataError, InputMissingError):
            return None
        if index_digest(index) != shard.index_sha256:
            return None
        self.write(shard.index, index.to_json(shard.name))
        return index


def walked(storage: Storage, key: str, size: int) -> ShardIndex:
    """The index of a shard by ranged reads of its headers."""
    read: Callable[[int, int], bytes] = partial(storage.read_range, key)
    return index_shard(RangeFile(read, size), size, f"{storage.url}/{key}")  # type: ignore[arg-type]
