"""One contract for every storage: a folder, rclone with and without ETags, and moto."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.errors import DataError, InputMissingError
from app.storage.objects import Entry, ObjectMissingError, Receipt, Storage
from app.storage.opening import open_storage
from app.storage.s3 import S3Storage
from app.storage.settings import MIB, StorageSettings
from tests.support.s3_servers import RunningServer, rclone, set_environment

KINDS = ("local", "rclone", "rclone_etags", "moto")


@pytest.fixture(scope="module")
def rclone_etags(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with rclone(tmp_path_factory.mktemp("etags"), etags=True) as server:
        yield server


@pytest.fixture(params=KINDS)
def storage(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Storage:
    if request.param == "local":
        return open_storage(str(tmp_path / "root"))
    name = request.param if request.param == "rclone_etags" else f"{request.param}_server"
    server: RunningServer = request.getfixturevalue(name)
    set_environment(monkeypatch, server.environment)
    # Small ranges and the smallest parts of S3, so that small files take every path.
    settings = StorageSettings(
        endpoint=server.environment["AWS_ENDPOINT_URL_S3"],
        range_bytes=MIB,
        part_bytes=5 * MIB,
        deadline_s=20,
    )
    return S3Storage(server.bucket, f"contract/{tmp_path.name}", settings)


def file_of(path: Path, size_bytes: int) -> bytes:
    data = os.urandom(size_bytes)
    path.write_bytes(data)
    return data


def test_a_small_object_comes_back(storage: Storage) -> None:
    storage.write_small("a/b.json", b"{}")

    assert storage.read_small("a/b.json") == b"{}"
    assert storage.stat("a/b.json").size_bytes == 2


def test_an_overwritten_object_has_the_new_content(storage: Storage) -> None:
    storage.write_small("a.json", b"first and longer")
    storage.write_small("a.json", b"second")

    assert storage.read_small("a.json") == b"second"


def test_an_empty_object_is_an_object(storage: Storage, tmp_path: Path) -> None:
    storage.write_small("empty", b"")

    assert storage.read_small("empty") == b""
    assert [entry.key for entry in storage.list()] == ["empty"]
    assert storage.download("empty", tmp_path / "x").sha256 == ()
    assert (tmp_path / "x").read_bytes() == b""


def test_a_listing_is_recursive_and_sorted(storage: Storage) -> None:
    for key in ("b/2", "a", "b/1", "b/c/3", "bb"):
        storage.write_small(key, key.encode())

    assert [entry.key for entry in storage.list()] == ["a", "b/1", "b/2", "b/c/3", "bb"]
    assert [entry.key for entry in storage.list("b/")] == ["b/1", "b/2", "b/c/3"]
    assert [entry.key for entry in storage.list("b")] == ["b/1", "b/2", "b/c/3", "bb"]
    assert storage.list("nothing/") == []
    assert [entry.size_bytes for entry in storage.list("b/c/")] == [5]


def test_folders_are_one_level_below_a_prefix(storage: Storage) -> None:
    for key in ("top", "checkpoints/one/a", "checkpoints/two/b/c", "checkpoints/file"):
        storage.write_small(key, b"x")

    assert list(storage.folders()) == ["checkpoints"]
    assert list(storage.folders("checkpoints")) == ["one", "two"]
    assert list(storage.folders("checkpoints/")) == ["one", "two"]
    assert list(storage.folders("nothing")) == []


def test_a_stat_agrees_with_the_listing(storage: Storage) -> None:
    storage.write_small("a", b"12345")

    assert storage.stat("a") == storage.list()[0]


@pytest.mark.parametrize("call", ["stat", "read_small", "read_range", "download"])
def test_a_missing_object_is_named(storage: Storage, tmp_path: Path, call: str) -> None:
    arguments: tuple[object, ...] = {
        "read_range": ("gone/x.tar", 0, 4),
        "download": ("gone/x.tar", tmp_path / "x"),
    }.get(call, ("gone/x.tar",))

    with pytest.raises(ObjectMissingError, match=r"gone/x\.tar") as caught:
        getattr(storage, call)(*arguments)

    assert caught.value.exit_code == 66
    assert not list(tmp_path.glob("*x*"))


@pytest.mark.parametrize("size_bytes", [0, 1, MIB - 1, MIB, 3 * MIB + 7, 11 * MIB + 1])
def test_a_file_goes_up_and_comes_down(storage: Storage, tmp_path: Path, size_bytes: int) -> None:
    data = file_of(tmp_path / "in.bin", size_bytes)

    sent = storage.upload(tmp_path / "in.bin", "folder/x.bin")
    received = storage.download("folder/x.bin", tmp_path / "out.bin", sent)

    assert (tmp_path / "out.bin").read_bytes() == data
    assert sent == received
    assert sent.size_bytes == size_bytes
    assert sent.sha256 == ((hashlib.sha256(data).hexdigest(),) if data else ())


def test_a_range_is_read(storage: Storage, tmp_path: Path) -> None:
    data = file_of(tmp_path / "in.bin", 3 * MIB)
    storage.upload(tmp_path / "in.bin", "x.bin")

    assert storage.read_range("x.bin", 5, 5 + 2 * MIB) == data[5 : 5 + 2 * MIB]
    assert storage.read_range("x.bin", 3 * MIB - 1, 3 * MIB) == data[-1:]
    assert storage.read_range("x.bin", 7, 7) == b""


@pytest.mark.parametrize("span", [(0, 11), (10, 12), (50, 60), (-1, 4)])
def test_a_range_past_the_end_is_a_data_error(storage: Storage, span: tuple[int, int]) -> None:
    storage.write_small("x.bin", b"0123456789")

    with pytest.raises(DataError, match=r"x\.bin"):
        storage.read_range("x.bin", *span)


def test_a_download_of_another_size_is_refused(storage: Storage, tmp_path: Path) -> None:
    storage.write_small("x.bin", b"0123456789")

    with pytest.raises(DataError, match=r"10 bytes.*\n.*x\.bin"):
        storage.download("x.bin", tmp_path / "out", Entry("x.bin", 9, None, None))

    assert list(tmp_path.glob("*out*")) == []


def test_a_download_with_another_digest_is_refused(storage: Storage, tmp_path: Path) -> None:
    file_of(tmp_path / "in.bin", 10)
    receipt = storage.upload(tmp_path / "in.bin", "x.bin")
    storage.write_small("x.bin", b"0123456789")

    with pytest.raises(DataError, match=r"piece 0 .*\n.*x\.bin"):
        storage.download("x.bin", tmp_path / "out", receipt)

    assert list(tmp_path.glob("*out*")) == []


def test_digests_of_smaller_pieces_are_compared(storage: Storage, tmp_path: Path) -> None:
    data = file_of(tmp_path / "in.bin", 100)
    storage.upload(tmp_path / "in.bin", "x.bin")
    pieces = [hashlib.sha256(data[at : at + 40]).hexdigest() for at in (0, 40, 80)]

    good = storage.download("x.bin", tmp_path / "out", Receipt("x.bin", 100, 40, tuple(pieces)))
    wrong = Receipt("x.bin", 100, 40, (pieces[0], pieces[0], pieces[2]))

    assert good.sha256 == tuple(pieces)
    with pytest.raises(DataError, match="piece 1"):
        storage.download("x.bin", tmp_path / "out2", wrong)


def test_deleted_objects_are_gone_and_missing_ones_are_fine(storage: Storage) -> None:
    for key in ("a/1", "a/2", "b"):
        storage.write_small(key, b"x")

    storage.delete(["a/1", "a/2", "never-there"])

    assert [entry.key for entry in storage.list()] == ["b"]
    assert list(storage.folders()) == []


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../a", "a/../b", "./a", "a\x00b", "a\\b"])
def test_a_key_outside_of_the_root_is_refused(storage: Storage, tmp_path: Path, key: str) -> None:
    file_of(tmp_path / "in.bin", 1)
    calls = (
        lambda: storage.read_small(key),
        lambda: storage.write_small(key, b"x"),
        lambda: storage.upload(tmp_path / "in.bin", key),
        lambda: storage.delete([key]),
    )

    for call in calls:
        with pytest.raises(DataError, match="key"):
            call()


@pytest.mark.parametrize("key", ["Upper", "a b", "ä", "a+b", "a:b"])
def test_names_that_people_give_come_back(storage: Storage, tmp_path: Path, key: str) -> None:
    storage.write_small(f"given/{key}", b"x")
    file_of(tmp_path / "in.bin", 10)
    storage.upload(tmp_path / "in.bin", f"given/{key}.bin")

    assert storage.read_small(f"given/{key}") == b"x"
    assert [entry.key for entry in storage.list("given/")] == [f"given/{key}", f"given/{key}.bin"]


def test_there_are_no_unfinished_uploads_after_an_upload(storage: Storage, tmp_path: Path) -> None:
    file_of(tmp_path / "in.bin", 6 * MIB)

    storage.upload(tmp_path / "in.bin", "checkpoints/x.bin")

    assert list(storage.list_uploads()) == []


def test_the_place_is_reachable_and_says_who_we_are(storage: Storage) -> None:
    storage.check_reachable()

    identity = storage.identity()

    assert identity["url"] == storage.url
    assert not any(
        "secret" in value or os.environ.get("AWS_SECRET_ACCESS_KEY", "?") in value
        for value in identity.values()
    )


def test_a_missing_bucket_is_an_input_error(
    rclone_server: RunningServer, moto_server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for server in (rclone_server, moto_server):
        set_environment(monkeypatch, server.environment)

        with pytest.raises(InputMissingError, match="no bucket 'absent'"):
            open_storage("s3://absent/x").check_reachable()
        with pytest.raises(InputMissingError, match="s3://absent/x"):
            open_storage("s3://absent/x").list()


def test_foreign_keys_of_any_sane_kind_are_read(
    rclone_server: RunningServer, moto_server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = ["Videos/clip 1 (ä).mp4", "Videos/50%+1&x=y#z?.mp4"]
    for server in (rclone_server, moto_server):
        set_environment(monkeypatch, server.environment)
        storage = S3Storage(
            "bucket", "Foreign Keys", StorageSettings.from_environment(server.environment)
        )
        for key in keys:
            storage._control.get().put(f"Foreign Keys/{key}", key.encode())

        assert {entry.key for entry in storage.list("Videos/")} == set(keys)
        for key in keys:
            assert storage.read_small(key) == key.encode()
            assert storage.read_range(key, 0, 4) == key.encode()[:4]


def test_a_listing_of_many_pages_is_whole(
    rclone_server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, rclone_server.environment)
    storage = open_storage(f"s3://{rclone_server.bucket}/{tmp_path.name}")
    storage.write_small("x/0000", b"")
    assert rclone_server.folder is not None
    for number in range(1, 1205):
        (rclone_server.folder / tmp_path.name / "x" / f"{number:04}").touch()
    time.sleep(1.1)  # the server remembers a folder for a second

    assert [entry.key for entry in storage.list()] == [f"x/{n:04}" for n in range(1205)]
