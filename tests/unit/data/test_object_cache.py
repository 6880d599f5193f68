from __future__ import annotations

import fcntl
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.data.object_cache import CachedObject, NoRoomError, ObjectCache, Prefetcher
from app.errors import ConfigError, DataError
from app.storage.local import LocalStorage
from app.storage.objects import Entry, Receipt

KIB = 1024


class CountingStorage(LocalStorage):
    """A folder that stands for a bucket and counts downloads."""

    def __init__(self, root: Path, delay_s: float = 0.0) -> None:
        super().__init__(root)
        self.delay_s = delay_s
        self.downloads: list[str] = []

    def download(self, key: str, path: Path, expect: Entry | Receipt | None = None) -> Receipt:
        self.downloads.append(key)
        time.sleep(self.delay_s)
        return super().download(key, path, expect)


@pytest.fixture
def bucket(tmp_path: Path) -> CountingStorage:
    for name in ("a", "b", "c", "d"):
        (tmp_path / "bucket").mkdir(exist_ok=True)
        (tmp_path / "bucket" / name).write_bytes(name.encode() * 10 * KIB)
    return CountingStorage(tmp_path / "bucket")


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[ObjectCache]:
    opened = ObjectCache(tmp_path / "cache", limit_bytes=25 * KIB)
    yield opened
    opened.close()


def object_of(bucket: CountingStorage, key: str) -> CachedObject:
    return CachedObject(bucket, bucket.stat(key))


def cached(cache: ObjectCache) -> int:
    return len(list(cache.folder.glob("*.obj")))


def test_an_object_is_fetched_once(bucket: CountingStorage, cache: ObjectCache) -> None:
    first = cache.get(object_of(bucket, "a"))
    second = cache.get(object_of(bucket, "a"))

    assert first == second
    assert first.read_bytes() == b"a" * 10 * KIB
    assert bucket.downloads == ["a"]


def test_the_same_name_in_two_buckets_is_two_files(
    bucket: CountingStorage, cache: ObjectCache, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a").write_bytes(b"x" * 10 * KIB)
    other = CountingStorage(tmp_path / "other")

    assert cache.get(object_of(bucket, "a")).read_bytes()[:1] == b"a"
    assert cache.get(object_of(other, "a")).read_bytes()[:1] == b"x"


def test_a_replaced_object_is_another_file(bucket: CountingStorage, cache: ObjectCache) -> None:
    cache.get(object_of(bucket, "a"))
    path = Path(bucket.url) / "a"
    path.write_bytes(b"z" * 10 * KIB)
    os.utime(path, (5, 5))

    assert cache.get(object_of(bucket, "a")).read_bytes()[:1] == b"z"


def test_the_least_recently_used_file_makes_room(
    bucket: CountingStorage, cache: ObjectCache
) -> None:
    a, b = cache.get(object_of(bucket, "a")), cache.get(object_of(bucket, "b"))
    os.utime(a, (10, 10))
    os.utime(b, (20, 20))
    cache.get(object_of(bucket, "a"))  # used again: now b is the oldest

    cache.get(object_of(bucket, "c"))

    assert a.exists()
    assert not b.exists()
    assert cached(cache) == 2


def test_wanted_files_stay_until_someone_waits(bucket: CountingStorage, cache: ObjectCache) -> None:
    for key in ("a", "b"):
        cache.get(object_of(bucket, key))
    cache.announce([object_of(bucket, "a").name, object_of(bucket, "b").name])

    with pytest.raises(NoRoomError):
        cache.get(object_of(bucket, "c"), urgent=False)
    cache.get(object_of(bucket, "c"), urgent=True)

    assert cached(cache) == 2


def test_files_that_another_process_wants_go_last(
    bucket: CountingStorage, cache: ObjectCache
) -> None:
    neighbour = ObjectCache(cache.folder, cache.limit_bytes)
    theirs, mine = cache.get(object_of(bucket, "a")), cache.get(object_of(bucket, "b"))
    os.utime(theirs, (5, 5))
    neighbour.announce([object_of(bucket, "a").name])
    cache.announce([object_of(bucket, "b").name])

    with pytest.raises(NoRoomError):
        cache.get(object_of(bucket, "c"), urgent=False)
    cache.get(object_of(bucket, "c"))
    neighbour.close()

    assert theirs.exists()
    assert not mine.exists()


def test_someone_who_waits_is_never_refused(bucket: CountingStorage, cache: ObjectCache) -> None:
    neighbour = ObjectCache(cache.folder, cache.limit_bytes)
    for key in ("a", "b"):
        cache.get(object_of(bucket, key))
    neighbour.announce([object_of(bucket, "a").name, object_of(bucket, "b").name])

    found = cache.get(object_of(bucket, "c"))
    neighbour.close()

    assert found.exists()


def test_a_file_larger_than_the_cache_is_a_configuration_error(
    bucket: CountingStorage, tmp_path: Path
) -> None:
    small = ObjectCache(tmp_path / "small", limit_bytes=5 * KIB)

    with pytest.raises(ConfigError, match="does not fit") as caught:
        small.get(object_of(bucket, "a"))
    small.close()

    assert "cache_gib" in caught.value.where


def test_a_download_waits_for_space_that_another_one_reserves(
    bucket: CountingStorage, cache: ObjectCache
) -> None:
    reserved = cache.folder / ("e" * 32 + ".reserved")
    with reserved.open("wb") as file:
        file.truncate(20 * KIB)
    threading.Timer(0.5, reserved.unlink).start()

    began = time.monotonic()
    cache.get(object_of(bucket, "a"))

    assert time.monotonic() - began > 0.3


def test_what_a_dead_process_announced_does_not_count(
    bucket: CountingStorage, cache: ObjectCache
) -> None:
    for key in ("a", "b"):
        cache.get(object_of(bucket, key))
    dead = cache.folder / "wants/gone-1.want"
    dead.write_text("\n".join(object_of(bucket, key).name for key in ("a", "b")))

    cache.get(object_of(bucket, "c"), urgent=False)

    assert not dead.exists()


def test_a_damaged_download_is_repeated_once(bucket: CountingStorage, cache: ObjectCache) -> None:
    seen: list[bytes] = []

    def check(path: Path) -> None:
        seen.append(path.read_bytes()[:1])
        if len(seen) == 1:
            raise DataError("flipped", where="a", fix="again")

    path = cache.get(CachedObject(bucket, bucket.stat("a"), check))

    assert path.exists()
    assert bucket.downloads == ["a", "a"]


def test_an_object_that_stays_damaged_is_an_error_and_leaves_nothing(
    bucket: CountingStorage, cache: ObjectCache
) -> None:
    def check(path: Path) -> None:
        raise DataError("flipped", where="a", fix="again")

    with pytest.raises(DataError, match="flipped"):
        cache.get(CachedObject(bucket, bucket.stat("a"), check))

    assert [path.name for path in cache.folder.iterdir() if ".part" in path.name] == []
    assert cached(cache) == 0


def test_a_cut_file_in_the_cache_is_fetched_again(
    bucket: CountingStorage, cache: ObjectCache
) -> None:
    path = cache.get(object_of(bucket, "a"))
    path.write_bytes(b"a" * 100)

    assert cache.get(object_of(bucket, "a")).stat().st_size == 10 * KIB


def test_leftovers_of_killed_downloads_are_removed_and_running_ones_are_kept(
    bucket: CountingStorage, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    dead, alive = "d" * 32, "a" * 32
    for name in (f"{dead}.part", f".{dead}.part.part-7-ab", f"{dead}.reserved", f"{alive}.part"):
        (folder / name).write_bytes(b"x")
    with (folder / f"{alive}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        ObjectCache(folder, 100).close()

        assert [path.name for path in folder.glob("*.*") if path.suffix != ".lock"] == [
            f"{alive}.part"
        ]


def fetch_in_process(root: Path, folder: Path, counter: str) -> None:
    storage = CountingStorage(root, delay_s=0.3)
    cache = ObjectCache(folder, 10**6)
    cache.get(CachedObject(storage, storage.stat("a")))
    with open(counter, "a") as file:
        file.write("x" * len(storage.downloads))


def test_processes_of_a_node_share_one_download(bucket: CountingStorage, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    counter = str(tmp_path / "downloads")
    processes = [
        context.Process(
            target=fetch_in_process, args=(Path(bucket.url), tmp_path / "shared", counter)
        )
        for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)

    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert Path(counter).read_text() == "x"


def test_a_folder_that_cannot_be_made_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigError, match="cannot be used"):
        ObjectCache(tmp_path / "file" / "cache", 10)


def wait_for(check: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if check():
            return True
        time.sleep(0.01)
    return False


def test_prefetch_follows_the_order_and_stops_at_its_bound(
    bucket: CountingStorage, tmp_path: Path
) -> None:
    cache = ObjectCache(tmp_path / "cache", 10**6)
    prefetcher = Prefetcher(cache, ahead_bytes=21 * KIB, threads=1)
    for key in ("c", "a", "b"):
        prefetcher.expect(object_of(bucket, key))

    assert wait_for(lambda: bucket.downloads == ["c", "a"])
    time.sleep(0.1)
    assert bucket.downloads == ["c", "a"]
    prefetcher.done(object_of(bucket, "c"))
    assert wait_for(lambda: bucket.downloads == ["c", "a", "b"])
    prefetcher.close()
    cache.close()


def test_prefetch_waits_for_room_and_goes_on(bucket: CountingStorage, tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path / "cache", 15 * KIB)
    prefetcher = Prefetcher(cache, ahead_bytes=10**6, threads=2)
    for key in ("a", "b"):
        prefetcher.expect(object_of(bucket, key))
    assert wait_for(lambda: cached(cache) == 1)

    prefetcher.done(object_of(bucket, "a"))
    prefetcher.done(object_of(bucket, "b"))
    prefetcher.expect(object_of(bucket, "c"))

    assert wait_for(lambda: "c" in bucket.downloads)
    prefetcher.close()
    cache.close()
