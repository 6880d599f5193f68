"""A shard is opened only with the members that its manifest names."""

from __future__ import annotations

import gc
import hashlib
import io
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from app.data.local_files import LocalFiles
from app.data.shards.index import index_digest, index_shard
from app.data.shards.manifest import ShardEntry
from app.data.shards.opened import OpenShard, check_content, open_shard
from app.errors import DataError
from app.storage.local import LocalStorage
from tests.support.shards import samples, tar_bytes, write_shard


def entry_of(path: Path) -> ShardEntry:
    data = path.read_bytes()
    index = index_shard(io.BytesIO(data), len(data), path.name)
    return ShardEntry(
        name=path.name,
        bytes=len(data),
        etag=None,
        modified=None,
        sha256=hashlib.sha256(data).hexdigest(),
        samples=len(index.samples()),
        index="a.index.json",
        index_sha256=index_digest(index),
    )


def opened(path: Path, entry: ShardEntry) -> OpenShard:
    storage = LocalStorage(path.parent)
    return open_shard(LocalFiles(storage, {e.key: e for e in storage.list()}, None), entry)


def test_members_have_the_bytes_that_tar_gives(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tar", samples(["x", "y"], video=os.urandom(900)))

    shard = opened(path, entry_of(path))

    with tarfile.open(path) as archive:
        expected = {info.name: archive.extractfile(info).read() for info in archive}  # type: ignore[union-attr]
    read = {f"{m.key}.{m.suffix}": shard.read(m) for s in shard.samples for m in s.values()}
    assert read == expected
    assert shard.url == f"{tmp_path}/a.tar"


def test_a_shard_with_other_members_than_the_manifest_says_is_not_opened(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tar", samples(["x", "y"]))
    entry = entry_of(path)
    path.write_bytes(tar_bytes(samples(["x", "z"])))  # of the same size

    with pytest.raises(DataError, match="its index was"):
        opened(path, entry)
    with pytest.raises(DataError, match="its index was"):
        check_content(str(tmp_path), entry, path)


def test_a_download_with_the_right_members_and_other_bytes_is_refused(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tar", samples(["x"], video=b"v" * 700))
    entry = entry_of(path)
    check_content("s3://bucket", entry, path)
    path.write_bytes(path.read_bytes().replace(b"vvv", b"vwv", 1))

    with pytest.raises(DataError, match="its sha256 was"):
        check_content("s3://bucket", entry, path)
    check_content("s3://bucket", replace(entry, sha256=None), path)


def test_a_shard_that_is_cut_under_the_run_is_noticed_and_its_file_is_closed_at_the_end(
    tmp_path: Path,
) -> None:
    path = write_shard(tmp_path / "a.tar", samples(["x", "y"]))
    shard = opened(path, entry_of(path))
    first, last = shard.samples[0]["mp4"], shard.samples[1]["txt"]
    os.truncate(path, last.offset + 1)

    assert shard.read(first) == b"v" * 700
    with pytest.raises(DataError, match=r"member y\.txt is cut"):
        shard.read(last)

    def holds() -> bool:
        links = Path("/proc/self/fd").iterdir()
        return str(path) in {os.readlink(link) for link in links if link.is_symlink()}

    assert holds()
    del shard
    gc.collect()
    assert not holds()
