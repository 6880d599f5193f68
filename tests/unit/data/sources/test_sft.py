from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
import torch

from app.config.schema.data import SFTDataConfig
from app.data.bad_clip import BadClipError
from app.data.sources.folder import label_key
from app.data.sources.settings import SourceSettings
from app.data.sources.sft import SFTSource
from app.errors import DataError, InputMissingError
from tests.support.clip_files import encode, number_of, write_folder

PARAMS = SFTDataConfig(video_size=(32, 48), fps=8.0, max_num_frames=9, skip_frms_num=3.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(
        tmp_path_factory.mktemp("sft"), {"b": "two\nlines", "a": " first ", "sub/c": "third"}
    )


def opened(folder: Path | str, **settings: object) -> SFTSource:
    return SFTSource(PARAMS, str(folder), SourceSettings(**settings))  # type: ignore[arg-type]


def test_samples_are_sorted_and_captions_found_by_relative_path(folder: Path) -> None:
    source = opened(folder)

    assert source.keys == ["videos/a.mp4", "videos/b.mp4", "videos/sub/c.mp4"]
    assert [source.original(i).caption for i in range(3)] == ["first", "two\nlines", "third"]
    assert source.shard_sizes() == [3]


def test_an_item_has_upstream_keys_and_the_exact_frames(folder: Path) -> None:
    source = opened(folder)

    item = source[1]  # 20 frames at 8 fps
    source.close()

    assert item["mp4"].shape == (9, 3, 32, 48)
    assert item["mp4"].dtype == torch.uint8
    assert [number_of(frame) for frame in item["mp4"]] == list(range(3, 12))
    assert (item["txt"], item["num_frames"], item["fps"]) == ("two\nlines", 9, 8.0)
    assert item["key"] == "videos/b.mp4"


def test_upstream_rule_gives_upstream_frames(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": "x"}, frames=40, fps=24.0)
    source = opened(tmp_path, frame_rule="sat")

    item = source[0]  # 40 / 24 * 8 > 9: e = int(3 + 9 / 8 * 24) = 30, step = 27 // 9 = 3
    source.close()

    assert [number_of(frame) for frame in item["mp4"]] == list(range(3, 30, 3))


def test_the_folder_videos_itself_can_be_named(folder: Path) -> None:
    source = opened(f"{folder}/videos/")

    assert [source.original(i).caption for i in range(3)] == ["first", "two\nlines", "third"]


@pytest.mark.parametrize(
    ("key", "label"),
    [
        ("videos/a.mp4", "labels/a.txt"),
        ("set/videos/sub/a.b.mp4", "set/labels/sub/a.b.txt"),
        ("my_videos/videos/videos.mp4", "my_videos/labels/videos.txt"),
        ("beside.mp4", "beside.txt"),
    ],
)
def test_caption_paths(key: str, label: str) -> None:
    assert label_key(key) == label


def test_missing_and_blank_captions_are_counted_and_named_before_the_start(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": "x", "b": None, "c": " \n"}, frames=4)

    with pytest.raises(DataError, match="2 of 3 videos have no caption") as caught:
        opened(tmp_path)

    assert "videos/b.mp4" in caught.value.what
    assert "labels/c.txt is blank" in caught.value.what
    assert "missing_captions" in caught.value.fix


def test_missing_captions_can_be_empty_texts(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": "x", "b": None, "c": " \n"}, frames=4)
    source = opened(tmp_path, missing_captions="empty")

    assert [source.original(i).caption for i in range(3)] == ["x", "", ""]


def test_captions_are_utf8(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": "x"}, frames=4)
    (tmp_path / "labels" / "a.txt").write_bytes(b"caf\xe9" * 10)

    with pytest.raises(BadClipError, match="not UTF-8"):
        opened(tmp_path).original(0)


def test_no_video_is_an_error_that_mentions_shards(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"")

    with pytest.raises(InputMissingError) as caught:
        opened(tmp_path)

    assert "VideoDataset" in caught.value.fix


def test_a_cut_video_names_its_file(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": "x"})
    path = tmp_path / "videos" / "a.mp4"
    path.write_bytes(path.read_bytes()[:1500])
    source = opened(tmp_path)

    with pytest.raises(BadClipError) as caught:
        source[0]
    source.close()

    assert caught.value.reason == "truncated"
    assert caught.value.where == str(path)
    assert caught.value.exit_code == 65


def test_a_video_that_changes_under_the_run_is_an_error(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": "x"})
    source = opened(tmp_path)
    encode(tmp_path / "videos" / "a.mp4", frames=40)

    with pytest.raises(DataError, match="bytes when the run began"):
        source[0]


def test_the_fingerprint_follows_names_and_sizes(tmp_path: Path, folder: Path) -> None:
    write_folder(tmp_path, {"a": "x"})
    before = opened(tmp_path).fingerprint()
    assert opened(tmp_path).fingerprint() == before

    encode(tmp_path / "videos" / "b.mp4")
    (tmp_path / "labels" / "b.txt").write_text("y")

    assert opened(tmp_path).fingerprint() != before


def test_the_seam_takes_upstream_arguments(folder: Path) -> None:
    args = Namespace(seed=3, compat="sat", data_config={"cache_dir": str(folder / "cache")})

    source = SFTSource.create_dataset_function(
        str(folder), args, video_size=(32, 48), fps=8, max_num_frames=9, skip_frms_num=3.0
    )

    assert len(source) == 3
    assert source.original(1).caption == "two"  # upstream: the first line only
    source.close()


def test_a_random_start_depends_on_the_position_alone(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": "x"}, frames=50)
    source = opened(tmp_path, temporal_crop="random", seed=5)

    starts = [number_of(source.read(0, position)["mp4"][0]) for position in (0, 1, 2, 3, 0)]
    source.close()

    assert starts[0] == starts[4]
    assert len(set(starts)) > 1
