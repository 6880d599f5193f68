"""A local folder is read in place, a bucket through the cache of the node."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.data.local_files import OPEN_ATTEMPTS, LocalFiles
from app.data.object_cache import CachedObject, ObjectCache
from app.errors import DataError, InputMissingError
from app.storage.local import LocalStorage
from app.storage.objects import Entry, Receipt


class Bucket(LocalStorage):
    """A folder that says it is a bucket."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.url = "s3://bucket/data"
        self.downloads: list[str] = []

    def download(self, key: str, path: Path, expect: Entry | Receipt | None = None) -> Receipt:
        self.downloads.append(key)
        return super().download(key, path, expect)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.mp4").write_bytes(b"twelve bytes")
    return tmp_path / "data"


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[ObjectCache]:
    opened = ObjectCache(tmp_path / "cache", limit_bytes=1 << 20)
    yield opened
    opened.close()


def listed(storage: LocalStorage) -> dict[str, Entry]:
    return {entry.key: entry for entry in storage.list()}


def test_a_local_file_is_read_in_place(folder: Path, cache: ObjectCache) -> None:
    storage = LocalStorage(folder)
    files = LocalFiles(storage, listed(storage), cache)

    with files.open("a.mp4") as file:
        assert os.fstat(file.fileno()).st_ino == (folder / "a.mp4").stat().st_ino
    assert files.read("a.mp4") == b"twelve bytes"
    assert not files.discard("a.mp4")


def test_a_local_file_that_changed_or_went_away_is_an_error(folder: Path) -> None:
    storage = LocalStorage(folder)
    files = LocalFiles(storage, listed(storage), None)

    (folder / "a.mp4").write_bytes(b"eleven byte")
    with pytest.raises(DataError, match="12 bytes when the run began and has 11 now"):
        files.open("a.mp4")
    (folder / "a.mp4").unlink()
    with pytest.raises(InputMissingError, match="the file is gone"):
        files.open("a.mp4")


def test_an_object_of_a_bucket_is_fetched_once_and_again_after_it_was_found_damaged(
    folder: Path, cache: ObjectCache
) -> None:
    bucket = Bucket(folder)
    files = LocalFiles(bucket, listed(bucket), cache)

    assert [files.read("a.mp4"), files.read("a.mp4")] == [b"twelve bytes"] * 2
    assert bucket.downloads == ["a.mp4"]

    assert files.discard("a.mp4")
    files.read("a.mp4")
    assert bucket.downloads == ["a.mp4", "a.mp4"]


def test_a_file_that_the_cache_evicts_again_and_again_ends_with_an_error(
    folder: Path, tmp_path: Path
) -> None:
    class FullCache(ObjectCache):
        asked = 0

        def get(self, target: CachedObject, *, urgent: bool = True) -> Path:
            self.asked += 1
            return tmp_path / "evicted"

    bucket, cache = Bucket(folder), FullCache(tmp_path / "cache", limit_bytes=1)

    with pytest.raises(DataError, match=r"use a larger data\.cache_gib"):
        LocalFiles(bucket, listed(bucket), cache).open("a.mp4")

    cache.close()
    assert cache.asked == OPEN_ATTEMPTS
