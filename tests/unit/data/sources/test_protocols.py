"""What a source tells of a sample without decoding it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from app.config.schema.data import SFTDataConfig, ShardDataConfig
from app.data.bad_clip import BadClipError
from app.data.pack import PackRules, pack
from app.data.sources.protocols import Originals
from app.data.sources.settings import SourceSettings
from app.data.sources.sft import SFTSource
from app.data.sources.webdataset import ShardSource
from tests.support.clip_files import write_folder

SFT = SFTDataConfig(video_size=(32, 48), fps=8.0, max_num_frames=9, skip_frms_num=0.0)
SHARDS = ShardDataConfig(image_size=(32, 48), num_frames=9, fps=8.0)
NAMES = ["a", "b", "c"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("in")
    return write_folder(folder, {name: f"caption of {name}" for name in NAMES})


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "clips"))


def opened(folder: Path, kind: str, tmp_path: Path) -> Originals:
    settings = SourceSettings(cache_dir=tmp_path / "node", on_changed_shard="rescan")
    if kind == "folder":
        return SFTSource(SFT, str(folder), settings)
    return ShardSource(SHARDS, str(folder), settings)


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_an_original_is_the_file_and_its_caption(kind: str, folder: Path, tmp_path: Path) -> None:
    place = folder
    if kind == "shards":
        place = tmp_path / "tars"
        pack(str(folder), str(place), PackRules(shard_bytes=4000))

    source = opened(place, kind, tmp_path)

    originals = [source.original(index) for index in range(3)]
    videos = [(folder / f"videos/{name}.mp4").read_bytes() for name in NAMES]
    assert [one.video for one in originals] == videos
    assert [one.caption for one in originals] == [f"caption of {name}" for name in NAMES]
    assert len({source.name(index) for index in range(3)}) == 3
    item = source.read(1, 1)  # type: ignore[attr-defined]
    assert item["key"] == originals[1].key


@pytest.mark.parametrize("change", ["video", "caption", "time"])
def test_a_changed_file_changes_the_identity_of_its_sample_alone(
    change: str, folder: Path, tmp_path: Path
) -> None:
    before = opened(folder, "folder", tmp_path)
    old = [before.identity(index) for index in range(3)]
    if change == "video":
        shutil.copy(folder / "videos/a.mp4", folder / "videos/b.mp4")
    elif change == "caption":
        (folder / "labels/b.txt").write_text("another caption")
    else:
        os.utime(folder / "videos/b.mp4", (1, 1))

    after = opened(folder, "folder", tmp_path)

    changed = [old[index] != after.identity(index) for index in range(3)]
    assert changed == [False, True, False]


def test_a_copied_shard_that_was_packed_by_us_keeps_its_identity(
    folder: Path, tmp_path: Path
) -> None:
    pack(str(folder), str(tmp_path / "tars"), PackRules())
    before = opened(tmp_path / "tars", "shards", tmp_path)
    old = [before.identity(index) for index in range(3)]
    for path in (tmp_path / "tars").glob("*.tar"):
        os.utime(path, (1, 1))

    after = opened(tmp_path / "tars", "shards", tmp_path)

    assert [after.identity(index) for index in range(3)] == old


def test_a_repacked_shard_has_another_identity(folder: Path, tmp_path: Path) -> None:
    pack(str(folder), str(tmp_path / "tars"), PackRules())
    old = opened(tmp_path / "tars", "shards", tmp_path).identity(0)
    (folder / "labels/b.txt").write_text("caption of B")  # as long as before
    pack(str(folder), str(tmp_path / "tars"), PackRules(overwrite=True))

    assert opened(tmp_path / "tars", "shards", tmp_path).identity(0) != old


def test_a_caption_that_cannot_be_used_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "labels/b.txt").write_bytes(b"caf\xe9 in latin-1, long enough to be read later")
    source = opened(folder, "folder", tmp_path)

    with pytest.raises(BadClipError) as caught:
        source.original(1)

    assert caught.value.reason == "bad_caption"
    assert caught.value.where == f"{folder}/videos/b.mp4"
