"""The data path against real S3 servers, undisturbed and hurt."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.config.schema.data import DataConfig, OrderConfig, SFTDataConfig, ShardDataConfig
from app.data.opening import LoaderRequest, open_loader
from app.data.order.share import Share
from app.data.pack import PackRules, pack
from app.data.shards.manifest import MANIFEST_NAME
from app.errors import DataError, InputMissingError
from app.storage.opening import open_storage
from tests.support.clip_files import write_folder
from tests.support.fault_proxy import FaultProxy
from tests.support.s3_servers import RunningServer, set_environment

SHARDS = ShardDataConfig(image_size=(32, 48), num_frames=9, fps=8.0, skip_frms_num=3.0)
SFT = SFTDataConfig(video_size=(32, 48), fps=8.0, max_num_frames=9, skip_frms_num=3.0)
CLIPS = 9
STEPS = 5  # of two samples: a little more than an epoch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = {f"c{i}": f"caption {i}" for i in range(CLIPS)}
    return write_folder(tmp_path_factory.mktemp("clips"), names)


@pytest.fixture(params=["rclone", "moto"])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> RunningServer:
    running: RunningServer = request.getfixturevalue(f"{request.param}_server")
    set_environment(monkeypatch, running.environment)
    return running


@pytest.fixture
def rclone(rclone_server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> RunningServer:
    set_environment(monkeypatch, rclone_server.environment)
    return rclone_server


@pytest.fixture
def packed(folder: Path, rclone: RunningServer, tmp_path: Path) -> Iterator[str]:
    """Shards of two or three clips in a bucket."""
    url = f"s3://{rclone.bucket}/{tmp_path.name}"
    pack(str(folder), url, PackRules(shard_bytes=9000))
    storage = open_storage(url)  # before a test points the environment at a proxy
    yield url
    storage.delete([entry.key for entry in storage.list()])


def stream(config: DataConfig, url: str, share: Share, start: int = 0) -> list[str]:
    """Key, caption and digest of the pixels of every sample that a rank gets."""
    request = LoaderRequest(paths=[url], share=share, seed=11)
    found = []
    with open_loader(config, request) as loader:
        for batch in loader.batches(start, STEPS):
            for key, text, video in zip(batch["keys"], batch["txt"], batch["mp4"], strict=True):
                digest = hashlib.sha256(video.numpy().tobytes()).hexdigest()
                found.append(f"{key} {text} {digest}")
    return found


def shard_config(cache: Path, workers: int = 2) -> DataConfig:
    return DataConfig(
        target="data_video.VideoDataset",
        implementation="",
        params=SHARDS,
        num_workers=workers,
        cache_dir=str(cache),
        order=OrderConfig(lanes=2, window=3),
    )


ALONE = Share(rank=0, world_size=1, micro_batch=2)


def test_a_bucket_gives_the_same_batches_as_a_folder(
    server: RunningServer, folder: Path, tmp_path: Path
) -> None:
    url = f"s3://{server.bucket}/{tmp_path.name}"
    pack(str(folder), url, PackRules(shard_bytes=9000))
    pack(str(folder), str(tmp_path / "local"), PackRules(shard_bytes=9000))

    remote = stream(shard_config(tmp_path / "cache"), url, ALONE)
    local = stream(shard_config(tmp_path / "cache"), str(tmp_path / "local"), ALONE)

    assert remote == local
    assert len(set(remote)) == CLIPS


def test_ranks_and_workers_share_one_stream_and_one_cache(packed: str, tmp_path: Path) -> None:
    whole = stream(shard_config(tmp_path / "cache"), packed, ALONE)
    ranks = [
        stream(shard_config(tmp_path / "cache", workers), packed, Share(rank, 2, 1))
        for rank, workers in ((0, 0), (1, 3))
    ]

    assert [sample for pair in zip(*ranks, strict=True) for sample in pair] == whole
    shards = [entry for entry in open_storage(packed).list() if entry.key.endswith(".tar")]
    assert len(list((tmp_path / "cache").glob("*.obj"))) == len(shards) > 2


def test_starting_at_a_step_gives_the_rest(packed: str, tmp_path: Path) -> None:
    config = shard_config(tmp_path / "cache")

    assert stream(config, packed, ALONE, start=3) == stream(config, packed, ALONE)[6:]


def test_a_folder_in_a_bucket_gives_the_same_batches_as_on_disk(
    rclone: RunningServer, folder: Path, tmp_path: Path
) -> None:
    storage = open_storage(f"s3://{rclone.bucket}/{tmp_path.name}")
    for path in sorted(folder.rglob("*.*")):
        storage.upload(path, path.relative_to(folder).as_posix())
    config = DataConfig(
        target="data_video.SFTDataset",
        implementation="",
        params=SFT,
        num_workers=2,
        cache_dir=str(tmp_path / "cache"),
    )

    remote = stream(config, storage.url, ALONE)

    assert remote == stream(config, str(folder), ALONE)


def test_foreign_shards_are_scanned_by_ranged_reads_once(packed: str, tmp_path: Path) -> None:
    expected = stream(shard_config(tmp_path / "one"), packed, ALONE)
    storage = open_storage(packed)
    storage.delete([e.key for e in storage.list() if e.key.endswith(".json")])

    assert stream(shard_config(tmp_path / "two"), packed, ALONE) == expected
    assert MANIFEST_NAME in {entry.key for entry in storage.list()}


def test_a_tenth_of_hurt_requests_changes_no_sample(
    packed: str, rclone: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = stream(shard_config(tmp_path / "calm"), packed, ALONE)
    kinds = ("status", "reset_before", "reset_body", "stall", "truncate", "short_ok")
    rules = [
        {"kind": kind, "rate": 0.05, "match": "GET", "delay_s": 0.3, "after_bytes": 700}
        for kind in kinds
    ]

    with FaultProxy(rclone.port, rules, seed=5) as proxy:
        set_environment(monkeypatch, rclone.behind(f"http://127.0.0.1:{proxy.port}"))
        hurt = stream(shard_config(tmp_path / "hurt"), packed, ALONE)
        faults = sum(proxy.stats().get(kind, 0) for kind in kinds)

    assert hurt == expected
    assert faults > 0


def test_a_flipped_bit_is_fetched_again(
    packed: str, rclone: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = stream(shard_config(tmp_path / "calm"), packed, ALONE)
    rule = {"kind": "corrupt", "match": r"GET .*\.tar", "limit": 1, "after_bytes": 2000}

    with FaultProxy(rclone.port, [rule], seed=1) as proxy:
        set_environment(monkeypatch, rclone.behind(f"http://127.0.0.1:{proxy.port}"))
        found = stream(shard_config(tmp_path / "flipped"), packed, ALONE)

        assert proxy.stats().get("corrupt") == 1
    assert found == expected


def test_bits_that_flip_every_time_are_an_error_with_the_shard(
    packed: str, rclone: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream(shard_config(tmp_path / "calm"), packed, ALONE)
    rule = {"kind": "corrupt", "match": r"GET .*\.tar", "after_bytes": 2000}

    with FaultProxy(rclone.port, [rule], seed=1) as proxy:
        set_environment(monkeypatch, rclone.behind(f"http://127.0.0.1:{proxy.port}"))
        with pytest.raises(DataError) as caught:
            stream(shard_config(tmp_path / "flipped"), packed, ALONE)

    assert ".tar" in caught.value.where
    assert caught.value.exit_code == 65


def test_a_removed_shard_is_exit_code_66(packed: str, tmp_path: Path) -> None:
    storage = open_storage(packed)
    gone = next(entry.key for entry in storage.list() if entry.key.endswith(".tar"))
    storage.delete([gone])

    with pytest.raises(InputMissingError) as caught:
        stream(shard_config(tmp_path / "cache"), packed, ALONE)

    assert caught.value.where == f"{packed}/{gone}"


@pytest.mark.parametrize("wrong", ["nothing/here/", "nothing.tar"])
def test_a_wrong_key_is_exit_code_66(packed: str, tmp_path: Path, wrong: str) -> None:
    with pytest.raises(InputMissingError) as caught:
        stream(shard_config(tmp_path / "cache"), f"{packed}/{wrong}", ALONE)

    assert "nothing" in caught.value.where


def test_an_overwritten_shard_is_an_error_before_the_start(packed: str, tmp_path: Path) -> None:
    storage = open_storage(packed)
    stream(shard_config(tmp_path / "cache"), packed, ALONE)
    storage.write_small("clips-000001.tar", storage.read_small("clips-000000.tar") + b"\0" * 512)

    with pytest.raises(DataError, match="its size was"):
        stream(shard_config(tmp_path / "cache"), packed, ALONE)
