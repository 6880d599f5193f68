"""Which files of a folder are its videos, through the dataset class and the listing under it."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from pathlib import Path

import pytest

from app.config.schema.data import SFTDataConfig
from app.data.sources.folder import list_folder
from app.data.sources.settings import SourceSettings
from app.data.sources.sft import SFTSource
from app.errors import ConfigError, DataError, InputMissingError
from tests.support.clip_files import encode

PARAMS = SFTDataConfig(video_size=(32, 48), fps=8.0, max_num_frames=9, skip_frms_num=3.0)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return encode(tmp_path_factory.mktemp("video") / "a.mp4").read_bytes()


def put(root: Path, names: list[str], video: bytes, kind: str = "mp4") -> None:
    """videos/<name> and its caption `about <name>` for each name, which may have a suffix."""
    for name in names:
        path = root / "videos" / (name if "." in name else f"{name}.{kind}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(video)
        label = root / "labels" / f"{name.rpartition('.')[0] or name}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text(f"about {name}")


def opened(path: Path | str, **settings: object) -> SFTSource:
    return SFTSource(PARAMS, str(path), SourceSettings(**settings))  # type: ignore[arg-type]


def captions(source: SFTSource) -> list[str]:
    return [source.original(index).caption for index in range(len(source))]


def test_linked_folders_are_followed(tmp_path: Path, video: bytes) -> None:
    put(tmp_path / "set", ["1", "2", "3"], video)
    put(tmp_path / "other", ["4", "5"], video)
    for kind in ("videos", "labels"):
        (tmp_path / "set" / kind / "more").symlink_to(tmp_path / "other" / kind)

    source = opened(tmp_path / "set")

    assert source.keys == [
        *(f"videos/{n}.mp4" for n in "123"),
        *(f"videos/more/{n}.mp4" for n in "45"),
    ]
    assert captions(source) == [f"about {n}" for n in "12345"]
    assert source[4]["mp4"].shape == (9, 3, 32, 48)
    source.close()


@pytest.mark.parametrize("named", ["", "videos"])
def test_the_folder_videos_may_be_a_link_itself(named: str, tmp_path: Path, video: bytes) -> None:
    put(tmp_path / "elsewhere", ["1", "2"], video)
    (tmp_path / "set").mkdir()
    for kind in ("videos", "labels"):
        (tmp_path / "set" / kind).symlink_to(tmp_path / "elsewhere" / kind)

    assert captions(opened(tmp_path / "set" / named)) == ["about 1", "about 2"]


def test_a_folder_that_is_linked_from_two_places_is_in_both(tmp_path: Path, video: bytes) -> None:
    put(tmp_path / "all", ["1"], video)
    for name in ("one", "two"):
        (tmp_path / "set" / name / "labels").mkdir(parents=True)
        (tmp_path / "set" / name / "videos").symlink_to(tmp_path / "all" / "videos")
        (tmp_path / "set" / name / "labels" / "1.txt").write_text(f"caption {name}")

    assert captions(opened(tmp_path / "set")) == ["caption one", "caption two"]


@pytest.mark.parametrize("target", [".", "..", "videos", "videos/sub"])
def test_a_link_to_a_folder_above_adds_nothing(target: str, tmp_path: Path, video: bytes) -> None:
    put(tmp_path, ["1", "sub/2"], video)
    (tmp_path / "videos" / "sub" / "loop").symlink_to(tmp_path / target)

    for path in (tmp_path, tmp_path / "videos"):
        assert opened(path).keys == ["videos/1.mp4", "videos/sub/2.mp4"]


def test_folders_that_link_to_each_other_end(tmp_path: Path, video: bytes) -> None:
    for own, other in (("a", "b"), ("b", "a")):
        (tmp_path / own).mkdir()
        (tmp_path / own / f"{own}.mp4").write_bytes(video)
        (tmp_path / own / "to").symlink_to(tmp_path / other)

    found = list_folder(str(tmp_path)).videos

    # Each is reached as itself and through the other one, and no further.
    assert found == ("a/a.mp4", "a/to/b.mp4", "b/b.mp4", "b/to/a.mp4")


def test_links_without_end_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.storage.local.MOST_LINKS", 50)
    for own in "abcdef":
        (tmp_path / own).mkdir()
        for other in "abcdef":
            (tmp_path / own / other).symlink_to(tmp_path / other)

    with pytest.raises(DataError, match="linked folders"):
        list_folder(str(tmp_path))


def test_files_of_the_desktop_are_not_samples(tmp_path: Path, video: bytes) -> None:
    put(tmp_path, ["1", "2", "3"], video)
    hidden = [
        *("videos/._1.mp4", "videos/.DS_Store", "labels/._1.txt", ".Trash-0/videos/x.mp4"),
        *("__MACOSX/videos/._1.mp4", "videos/.ipynb_checkpoints/1-checkpoint.mp4"),
        "videos/@eaDir/1.mp4",
    ]
    for name in hidden:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"\x00\x05\x16\x07" * 900)

    source = opened(tmp_path)

    assert captions(source) == ["about 1", "about 2", "about 3"]
    assert source.left_out() == []


ODD = ["a\\b.mp4", "new\nline.mp4", "tab\tbed.mp4", "trailing.mp4 "]


def test_names_that_cannot_be_used_are_listed_before_the_start_and_skipped(
    tmp_path: Path, video: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, ["1", "2"], video)
    put(tmp_path, ODD, video)
    (tmp_path / "videos" / os.fsdecode(b"\xe4.mp4")).write_bytes(video)

    with caplog.at_level(logging.WARNING):
        source = opened(tmp_path)

    assert captions(source) == ["about 1", "about 2"]
    left = {one.key: one.reason for one in source.left_out()}
    assert left == {f"videos/{name}": "unusable_name" for name in (*ODD, "\udce4.mp4")}
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("5 of 7 videos are left out: unusable_name 5 (")
    assert r"videos/a\b.mp4" in said
    assert source[0]["txt"] == "about 1"
    source.close()


KINDS = ["mp4", "MP4", "mov", "m4v", "mkv", "WebM", "avi", "MPG", "mpeg"]


def test_every_kind_is_a_video_and_the_content_says_how_it_is_read(
    tmp_path: Path, video: bytes
) -> None:
    for kind in KINDS:
        put(tmp_path, [f"clip-{kind}"], video, kind)
    source = opened(tmp_path)

    assert source.keys == sorted(f"videos/clip-{kind}.{kind}" for kind in KINDS)
    assert captions(source) == [f"about {key[7:].rpartition('.')[0]}" for key in source.keys]
    assert source[3]["mp4"].shape == (9, 3, 32, 48)
    source.close()


def test_what_is_still_not_read_is_named_with_its_count(
    tmp_path: Path, video: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, ["1", "2"], video)
    put(tmp_path, ["3.gif", "4.wmv", "5.flv", "6.ts", "7.rm"], video)
    (tmp_path / "logo.gif").write_bytes(b"of a README")

    with caplog.at_level(logging.WARNING):
        source = opened(tmp_path)

    assert len(source) == 2
    assert [record.getMessage() for record in caplog.records] == [
        "5 of 7 videos are left out: unsupported_suffix 5 "
        "(videos/3.gif, videos/4.wmv, videos/5.flv and 2 more)"
    ]


def test_upstream_reads_mp4_in_this_spelling_only(tmp_path: Path, video: bytes) -> None:
    put(tmp_path, ["1", "2.MP4", "3.mkv"], video)

    source = opened(tmp_path, caption_rule="sat")

    assert source.keys == ["videos/1.mp4"]
    assert [one.key for one in source.left_out()] == ["videos/2.MP4", "videos/3.mkv"]


def test_links_to_nothing_are_named(tmp_path: Path, video: bytes) -> None:
    put(tmp_path, ["1", "gone"], video)
    (tmp_path / "videos" / "gone.mp4").unlink()
    (tmp_path / "videos" / "gone.mp4").symlink_to("nowhere.mp4")

    assert [(one.key, one.reason) for one in opened(tmp_path).left_out()] == [
        ("videos/gone.mp4", "unreadable")
    ]


def test_a_folder_without_a_video_says_what_it_holds(tmp_path: Path, video: bytes) -> None:
    put(tmp_path, ["1.gif", "2.wmv"], video)

    with pytest.raises(InputMissingError, match=r"2 of 2 videos are left out.*1\.gif"):
        opened(tmp_path)


@pytest.mark.parametrize("end", [" ", "\n", "\t"])
def test_a_blank_behind_an_address_is_a_mistake_of_the_configuration(
    end: str, tmp_path: Path, video: bytes
) -> None:
    put(tmp_path, ["1"], video)

    with pytest.raises(ConfigError, match="ends with a blank"):
        opened(f"{tmp_path}{end}")


def test_a_dataset_of_mp4_files_keeps_its_fingerprint(tmp_path: Path, video: bytes) -> None:
    """The digest of names and sizes as the first version made it, written out by hand."""
    put(tmp_path, ["b", "sub/c"], video)
    lines = "".join(f'["videos/{n}.mp4", {len(video)}]\n' for n in ("b", "sub/c"))

    assert opened(tmp_path).fingerprint() == hashlib.sha256(lines.encode()).hexdigest()

    shutil.copytree(tmp_path / "videos", tmp_path / "videos" / ".hidden")
    assert opened(tmp_path).fingerprint() == hashlib.sha256(lines.encode()).hexdigest()
