"""`cogvx data check` and buckets over a bucket."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from app.cli.main import main
from app.config.schema.data import Bucket, DataConfig, ShardDataConfig
from app.data.opening import LoaderRequest, open_loader
from app.data.order.share import Share
from app.data.pack import PackRules, pack
from app.storage.opening import open_storage
from tests.support.clip_files import encode, write_folder
from tests.support.s3_servers import RunningServer, set_environment


@pytest.fixture
def prefix(rclone_server: RunningServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    set_environment(monkeypatch, rclone_server.environment)
    return f"s3://{rclone_server.bucket}/{tmp_path.name}"


def found(capsys: pytest.CaptureFixture[str]) -> list[tuple[str, str, str]]:
    report = json.loads(capsys.readouterr().out)
    return [(one["source"], one["key"], one["reason"]) for one in report["problems"]]


def test_a_folder_in_a_bucket_is_checked(
    prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(tmp_path / "set", {"a": "fine", "b": None})
    (folder / "videos" / "c.mp4").write_bytes((folder / "videos" / "a.mp4").read_bytes()[:2000])
    (folder / "labels" / "c.txt").write_text("cut")
    storage = open_storage(prefix)
    for path in folder.rglob("*.*"):
        storage.upload(path, path.relative_to(folder).as_posix())

    code = main(["data", "check", prefix, "--json"])

    assert code == 65
    assert found(capsys) == [
        (prefix, "videos/b.mp4", "no_caption"),
        (prefix, "videos/c.mp4", "truncated"),
    ]


def test_shards_in_a_bucket_are_checked_and_left_as_they_are(
    prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(tmp_path / "set", {name: f"about {name}" for name in "abcd"})
    pack(str(folder), prefix, PackRules(shard_bytes=9000))
    storage = open_storage(prefix)
    whole = tmp_path / "whole.tar"
    storage.download("clips-000000.tar", whole)
    (tmp_path / "cut.tar").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    storage.upload(tmp_path / "cut.tar", "extra-000000.tar")
    before = storage.list()

    codes = [main(["data", "check", f"{prefix}/clips-*.tar"])]
    capsys.readouterr()
    codes.append(main(["data", "check", prefix, "--json"]))

    assert codes == [0, 65]
    assert found(capsys) == [(f"{prefix}/extra-000000.tar", "extra-000000.tar", "damaged_shard")]
    assert storage.list() == before


def test_buckets_of_foreign_shards_are_scanned_by_ranges_once(prefix: str, tmp_path: Path) -> None:
    for number in range(4):
        size = (32, 48) if number % 2 else (48, 32)
        encode(tmp_path / "set" / "videos" / f"{number}.mp4", size=size)
        label = tmp_path / "set" / "labels" / f"{number}.txt"
        label.parent.mkdir(exist_ok=True)
        label.write_text("words")
    pack(str(tmp_path / "set"), prefix, PackRules())
    storage = open_storage(prefix)
    storage.delete(["clips-000000.sizes.json"])
    config = DataConfig(
        target="data_video.VideoDataset",
        implementation="",
        params=ShardDataConfig(image_size=(32, 48), num_frames=9, fps=8),
        buckets=(Bucket(9, 32, 48), Bucket(9, 48, 32)),
        cache_dir=str(tmp_path / "cache"),
    )

    request = LoaderRequest(paths=[prefix], share=Share(0, 1, 1), seed=1)
    with open_loader(config, request) as loader:
        shapes = {b["keys"][0]: tuple(b["mp4"].shape[1:]) for b in loader.batches(0, 4)}
        first = loader.cursor(0)

    assert shapes == {
        f"clips-000000.tar:{n}": (9, 3, *((32, 48) if n % 2 else (48, 32))) for n in range(4)
    }
    assert "clips-000000.sizes.json" in {entry.key for entry in storage.list()}
    with open_loader(replace(config, cache_dir=str(tmp_path / "other")), request) as loader:
        assert loader.cursor(0) == first
