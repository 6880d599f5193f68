"""What a check says of the names in a folder, of mixed folders and of films that are odd."""

from __future__ import annotations

import os
from dataclasses import replace
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


def test_names_that_cannot_be_used_and_hidden_files(tmp_path: Path, video: bytes) -> None:
    write_folder(tmp_path, {"a": "fine"})
    for name in ("b\\c.mp4", "d\ne.mp4", "f.mp4 ", "._a.mp4"):
        (tmp_path / "videos" / name).write_bytes(video)

    census = check(tmp_path)

    assert reasons(census) == [
        (r"'videos/d\ne.mp4'", "unusable_name"),
        ("'videos/f.mp4 '", "unusable_name"),
        ("videos/b\\c.mp4", "unusable_name"),
    ]
    assert census.left_out.startswith("3 of 4 videos are left out: unusable_name 3")


def test_linked_folders_are_checked(tmp_path: Path, video: bytes) -> None:
    write_folder(tmp_path / "set", {"a": "fine"})
    write_folder(tmp_path / "other", {"b": "fine", "c": None})
    for kind in ("videos", "labels"):
        (tmp_path / "set" / kind / "more").symlink_to(tmp_path / "other" / kind)

    census = check(tmp_path / "set")

    assert census.samples == 3
    assert reasons(census) == [("videos/more/c.mp4", "no_caption")]


def test_tables_of_captions_are_read_and_their_faults_are_named(
    tmp_path: Path, video: bytes
) -> None:
    write_folder(tmp_path, {"a": None, "b": "one", "c": None})
    table = tmp_path / "metadata.csv"
    rows = "file_name,text\nvideos/a.mp4,fine\nvideos/b.mp4,other\nvideos/lost.mp4,words\n"
    table.write_text(rows)

    assert reasons(check(tmp_path)) == [
        ("videos/b.mp4", "two_captions"),
        ("videos/c.mp4", "no_caption"),
        ("videos/lost.mp4", "no_video"),
    ]

    table.write_text(rows + "videos/c.mp4,a cat, asleep\n")
    assert reasons(check(tmp_path)) == [
        ("metadata.csv", "bad_metadata"),
        ("videos/a.mp4", "no_caption"),
        ("videos/c.mp4", "no_caption"),
    ]


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("name", ["x.tar.gz", "x.TAR", "x.tgz"])
def test_a_shard_that_is_not_read_is_a_fault(
    name: str, beside: bool, tmp_path: Path, video: bytes
) -> None:
    path = write_shard(tmp_path / "y.tar", [("0.mp4", video), ("0.txt", b"words")])
    (tmp_path / name).write_bytes(path.read_bytes())
    if not beside:
        path.unlink()

    census = check(tmp_path)

    assert reasons(census) == [(name, "unsupported_suffix")]
    assert census.samples == int(beside)


def test_a_hidden_shard_is_no_shard(tmp_path: Path, video: bytes) -> None:
    write_shard(tmp_path / "x-000.tar", [("0.mp4", video), ("0.txt", b"words")])
    (tmp_path / "._x-000.tar").write_bytes(b"\x00\x05\x16\x07" + bytes(4000))

    census = check(tmp_path)

    assert (census.shards, census.samples, reasons(census)) == (1, 1, [])


def test_dots_in_the_names_of_a_shard_are_named(tmp_path: Path, video: bytes) -> None:
    write_shard(tmp_path / "x.tar", [("a.v1.mp4", video), ("a.v1.txt", b"words")])

    (problem,) = check(tmp_path).problems

    assert (problem.key, problem.reason) == ("a.v1.mp4", "dots_in_name")
    assert "2 dots" in problem.detail


def test_the_trigger_word_counts_as_tokens(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": "two words"})
    rules = CheckRules(most_tokens=3, count_tokens=lambda text: len(text.split()))

    for prefix, faults in (("one", 0), ("one two", 1)):
        found = check_dataset(
            str(tmp_path),
            replace(rules, caption_prefix=prefix),
            TextRules(),
            ScanSettings(workers=1),
        )
        assert len(found.problems) == faults
