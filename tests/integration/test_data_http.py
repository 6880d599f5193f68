"""Shards over http: a real server on this machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from app.config.schema.data import DataConfig, ShardDataConfig
from app.data.check.sample import CheckRules
from app.data.check.scan import ScanSettings, check_dataset
from app.data.opening import LoaderRequest, open_loader
from app.data.order.share import Share
from app.data.pack import PackRules, pack
from app.data.shards.captions import TextRules
from app.errors import AccessDeniedError, ConfigError, DataError
from app.storage.http import HttpStorage
from app.storage.objects import Entry, ObjectMissingError, Storage
from app.storage.opening import open_storage
from app.storage.retry import Clock
from app.storage.settings import StorageSettings
from tests.support.clip_files import write_folder
from tests.support.http_server import FileServer, file_server

QUICK = StorageSettings(range_bytes=1 << 16, deadline_s=20.0)
NO_WAIT = Clock(uniform=lambda low, high: 0.0)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three packed shards of two clips, with their manifest."""
    root = tmp_path_factory.mktemp("http")
    folder = write_folder(root / "clips", {name: f"about {name}" for name in "abcdef"})
    pack(str(folder), str(root / "www" / "set"), PackRules(shard_bytes=16 << 10))
    return root / "www"


@pytest.fixture
def server(shards: Path) -> Iterator[FileServer]:
    with file_server(shards) as server:
        yield server


def config(server: FileServer, tmp_path: Path) -> DataConfig:
    return DataConfig(
        target="data_video.VideoDataset",
        implementation="",
        params=ShardDataConfig(image_size=(32, 48), num_frames=9, fps=8),
        cache_dir=str(tmp_path / "cache"),
    )


def epoch(data: DataConfig, path: str) -> list[tuple[str, str, str]]:
    """(key, caption, digest of the frames) of each sample of an epoch, in order."""
    request = LoaderRequest(paths=[path], share=Share(0, 1, 2), seed=3)
    found = []
    with open_loader(data, request) as loader:
        for batch in loader.batches(0, loader.steps_for_epochs(1)):
            for key, words, clip in zip(batch["keys"], batch["txt"], batch["mp4"], strict=True):
                digest = hashlib.sha256(clip.numpy().tobytes()).hexdigest()
                found.append((key, words, digest))
    return found


@pytest.mark.parametrize("form", ["set", "set/*.tar", "set/clips-{000000..000002}.tar"])
def test_shards_over_http_give_the_samples_of_the_folder(
    server: FileServer, shards: Path, tmp_path: Path, form: str
) -> None:
    data = config(server, tmp_path)

    there = epoch(data, f"{server.url}/{form}")

    assert there == epoch(replace(data, cache_dir=str(tmp_path / "other")), str(shards / form))
    assert len(there) == 6
    assert any("bytes=" in line for line in server.log)


def test_faults_between_change_no_sample(server: FileServer, shards: Path, tmp_path: Path) -> None:
    data = config(server, tmp_path)
    server.faults = ["503", "cut", "reset", "wrong", "cut"]

    there = epoch(data, f"{server.url}/set")

    assert there == epoch(replace(data, cache_dir=str(tmp_path / "other")), str(shards / "set"))
    assert server.faults == []


def test_a_server_without_pages_needs_names_or_a_manifest(
    server: FileServer, shards: Path, tmp_path: Path
) -> None:
    server.has_pages = False
    data = config(server, tmp_path)

    named = epoch(data, f"{server.url}/set/clips-{{000000..000002}}.tar")

    assert named == epoch(data, f"{server.url}/set")  # the manifest names them
    with pytest.raises(ConfigError, match="no list of its files"):
        epoch(data, server.url)


def test_foreign_shards_are_scanned_by_ranges_and_nothing_is_written_there(
    server: FileServer, shards: Path, tmp_path: Path
) -> None:
    plain = shards / "plain"
    plain.mkdir()
    (plain / "x-0.tar").write_bytes((shards / "set" / "clips-000000.tar").read_bytes())

    found = epoch(config(server, tmp_path), f"{server.url}/plain/x-{{0..0}}.tar")

    assert len(found) == 2
    assert [path.name for path in plain.iterdir()] == ["x-0.tar"]
    assert set(server.counts()) == {"HEAD", "GET"}


def test_data_check_reads_over_http(server: FileServer, shards: Path) -> None:
    census = check_dataset(f"{server.url}/set", CheckRules(), TextRules(), ScanSettings(workers=2))

    assert (census.samples, census.shards, census.problems) == (6, 3, ())


# the storage itself


@pytest.fixture
def storage(server: FileServer) -> HttpStorage:
    return HttpStorage(f"{server.url}/set", QUICK, NO_WAIT)


def test_listing_follows_the_pages_below_the_address_only(server: FileServer, shards: Path) -> None:
    (shards / "a b" / "deep").mkdir(parents=True)
    (shards / "a b" / "deep" / "ü.tar").write_bytes(b"12345")
    storage = open_storage(server.url)

    found = {entry.key: entry.size_bytes for entry in storage.list("a b/")}

    assert found == {"a b/deep/ü.tar": 5}
    assert "a b" in storage.folders()
    assert not [line for line in server.log if "x.test" in line]


def test_objects_are_read_whole_and_by_range(
    storage: Storage, shards: Path, tmp_path: Path
) -> None:
    name = "clips-000001.tar"
    data = (shards / "set" / name).read_bytes()

    entry = storage.stat(name)
    receipt = storage.download(name, tmp_path / "x.tar", entry)

    assert entry.size_bytes == len(data) == receipt.size_bytes
    assert (tmp_path / "x.tar").read_bytes() == data
    assert storage.read_range(name, 100, 5000) == data[100:5000]
    assert storage.read_range(name, 7, 7) == b""
    assert json.loads(storage.read_small("dataset.manifest.json"))["samples_total"] == 6


def test_what_is_missing_short_or_changed_is_an_error(
    storage: Storage, shards: Path, tmp_path: Path
) -> None:
    size = (shards / "set" / "clips-000001.tar").stat().st_size

    with pytest.raises(ObjectMissingError):
        storage.stat("nothing.tar")
    with pytest.raises(DataError):
        storage.read_range("clips-000001.tar", size - 1, size + 10)
    with pytest.raises(DataError, match=f"has {size} bytes, expected 5"):
        storage.download("clips-000001.tar", tmp_path / "x", Entry("x", 5, None, None))


def test_a_server_without_ranges_is_refused(server: FileServer, storage: Storage) -> None:
    server.has_ranges = False

    with pytest.raises(ConfigError, match="does not support ranges"):
        storage.read_range("clips-000001.tar", 0, 10)


def test_nothing_can_be_written(storage: Storage, tmp_path: Path) -> None:
    for write in (
        lambda: storage.write_small("x", b""),
        lambda: storage.upload(tmp_path / "x", "x"),
        lambda: storage.delete(["x"]),
    ):
        with pytest.raises(AccessDeniedError, match="over http"):
            write()


@pytest.mark.parametrize(
    "url", ["https://me:secret@host/x", "http://", "https://host/x?token=secret", "http://[::1"]
)
def test_addresses_with_secrets_or_without_a_host_are_refused(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_storage(url)
    assert "secret" not in str(caught.value)
