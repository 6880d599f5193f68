"""What a check says of the names in a folder, of mixed folders and of films that are odd."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from app.data.check.sample import CheckRules
from app.data.check.scan import Census, ScanSettings, check_dataset
from app.data.pack import PackRules, pack
from app.data.shards.captions import TextRules
from tests.support.clip_files import encode, write_folder
from tests.support.shards import write_shard


def check(path: Path) -> Census:
    return check_dataset(str(path), CheckRules(), TextRules(), ScanSettings(workers=1))


def reasons(census: Census) -> list[tuple[str, str]]:
    return [(problem.key, problem.reason) for problem in census.problems]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return encode(tmp_path_factory.mktemp("video") / "a.mp4").read_bytes()


def test_captions_beside_their_videos_are_found(tmp_path: Path, video: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(video)
    (tmp_path / "a.txt").write_text("fine")
    (tmp_path / "b.mp4").write_bytes(video)

    assert reasons(check(tmp_path)) == [("b.mp4", "no_caption")]


def test_a_caption_beside_videos_that_none_of_them_has_is_a_fault(
    tmp_path: Path, video: bytes
) -> None:
    (tmp_path / "a.mp4").write_bytes(video)
    for name in ("a.txt", "b.txt", "c.flv", "c.txt", "README.txt", ".hidden.txt"):
        (tmp_path / name).write_text("words")

    assert reasons(check(tmp_path)) == [("b.txt", "no_video"), ("c.flv", "unsupported_suffix")]


@pytest.mark.parametrize("suffix", ["flv", "wmv", "gif", "ts", "3gp", "ogv", "m2ts", "FLV"])
def test_a_video_of_another_kind_is_one_fault_of_its_own_name(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "labels").mkdir()
    (tmp_path / "videos" / f"a.{suffix}").write_bytes(b"x")
    (tmp_path / "labels" / "a.txt").write_text("words")
    (tmp_path / "preview.gif").write_bytes(b"of a README")

    assert reasons(check(tmp_path)) == [(f"videos/a.{suffix}", "unsupported_suffix")]


def test_videos_that_are_no_files_are_unreadable(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": "fine"})
    (tmp_path / "videos" / "circle.mp4").symlink_to("circle.mp4")
    (tmp_path / "videos" / "gone.mp4").symlink_to("nowhere.mp4")
    os.mkfifo(tmp_path / "videos" / "pipe.mp4")
    for name in ("circle", "gone", "pipe"):
        (tmp_path / "labels" / f"{name}.txt").write_text("words")

    found = reasons(check(tmp_path))

    assert found == [(f"videos/{n}.mp4", "unreadable") for n in ("circle", "gone", "pipe")]


def test_a_shard_that_is_no_file_is_unreadable(tmp_path: Path, video: bytes) -> None:
    write_shard(tmp_path / "x-0.tar", [("0.mp4", video), ("0.txt", b"words")])
    (tmp_path / "x-1.tar").symlink_to("nowhere.tar")

    assert reasons(check(tmp_path)) == [("x-1.tar", "unreadable")]


def test_a_stray_shard_among_videos_hides_none_of_them(tmp_path: Path, video: bytes) -> None:
    write_folder(tmp_path, {"a": "fine", "b": None})
    write_shard(tmp_path / "x.tar", [("0.mp4", video), ("0.txt", b"words")])

    census = check(tmp_path)

    assert census.samples == 2
    assert reasons(census) == [("videos/b.mp4", "no_caption"), ("x.tar", "mixed_layout")]


def test_shards_packed_into_a_folder_of_their_own_are_another_dataset(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": "fine"})
    pack(str(tmp_path), str(tmp_path / "shards"), PackRules())

    census = check(tmp_path)

    assert (census.kind, census.samples, reasons(census)) == ("folder", 1, [])


def test_videos_among_shards_are_said_to_be_left_out_and_a_preview_is_none(
    tmp_path: Path, video: bytes
) -> None:
    for number in range(2):
        write_shard(
            tmp_path / f"x-{number}.tar", [(f"{number}.mp4", video), (f"{number}.txt", b"words")]
        )
    (tmp_path / "preview.mp4").write_bytes(video)
    assert reasons(check(tmp_path)) == []

    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(video)

    assert reasons(check(tmp_path)) == [("videos/a.mp4", "mixed_layout")]


def test_shards_without_a_sample_are_a_fault(tmp_path: Path, video: bytes) -> None:
    write_shard(tmp_path / "x-0.tar", [])

    assert reasons(check(tmp_path / "x-0.tar")) == [("x-0.tar", "no_samples")]
    assert reasons(check(tmp_path)) == [(tmp_path.name, "no_samples")]

    write_shard(tmp_path / "x-1.tar", [("0.mp4", video), ("0.txt", b"words")])
    assert reasons(check(tmp_path)) == []


@pytest.mark.parametrize("aspect", ["3/1", "1/4"])
def test_pixels_that_are_not_square_are_no_fault(tmp_path: Path, aspect: str) -> None:
    encode(tmp_path / "videos" / "a.mp4", options=["-vf", f"setsar={aspect}"])
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("words")

    assert reasons(check(tmp_path)) == []
