"""A check and training agree on which clips are too short, with the same skip and rate."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from app.cli.main import main
from app.config.schema.data import SFTDataConfig, ShardDataConfig
from app.data.bad_clip import BadClipError
from app.data.sources.settings import SourceSettings
from app.data.sources.sft import SFTSource
from app.data.sources.webdataset import ShardSource
from tests.support.clip_files import encode
from tests.support.configs import layer, path_of
from tests.support.shards import write_shard

LENGTHS = (1, 2, 4, 5, 6, 7, 8, 11, 14, 20, 26)  # frames, at 8 per second


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    root = tmp_path_factory.mktemp("lengths")
    # Tiny plain frames: files of one frame fall below the least size of a file.
    size = (64, 96)
    return {
        f"{n:02}": encode(root / f"{n}.mp4", n, size, options=["-crf", "0"]).read_bytes()
        for n in LENGTHS
    }


@pytest.fixture(scope="module")
def folder(videos: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("folder")
    for name, video in videos.items():
        for key, content in ((f"videos/{name}.mp4", video), (f"labels/{name}.txt", b"words")):
            (root / key).parent.mkdir(exist_ok=True)
            (root / key).write_bytes(content)
    return root


@pytest.fixture(scope="module")
def shards(videos: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    members = [
        member
        for name, video in videos.items()
        for member in ((f"{name}.mp4", video), (f"{name}.txt", b"words"))
    ]
    return write_shard(tmp_path_factory.mktemp("shards") / "x.tar", members).parent


def trained(source: SFTSource | ShardSource) -> Iterator[tuple[str, str]]:
    """(name, reason) of each clip that the dataset class refuses."""
    with closing(source):
        for index in range(len(source)):
            try:
                source.read(index, index)
            except BadClipError as problem:
                yield Path(source.sample_id(index)[1]).stem, problem.reason


def checked(capsys: pytest.CaptureFixture[str], *words: str) -> list[tuple[str, str]]:
    capsys.readouterr()
    main(["data", "check", *words, "--json", "--workers", "1"])
    problems = json.loads(capsys.readouterr().out)["problems"]
    return [(Path(problem["key"]).stem, problem["reason"]) for problem in problems]


def recipe(tmp_path: Path, target: str, params: dict[str, object], **args: object) -> list[str]:
    content = {"data": {"target": f"data_video.{target}", "params": params}, "args": args}
    return ["--base", path_of("tiny/tiny"), layer(tmp_path, content)]


@pytest.mark.parametrize("skip", [0, 2, 3])
@pytest.mark.parametrize("fps", [4, 16])
@pytest.mark.parametrize("rule", ["exact", "sat"])
def test_a_folder(
    skip: int,
    fps: float,
    rule: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    params = {"video_size": [32, 48], "fps": fps, "max_num_frames": 9, "skip_frms_num": skip}
    config = SFTDataConfig(
        video_size=(32, 48), fps=fps, max_num_frames=9, skip_frms_num=float(skip)
    )
    refused = list(trained(SFTSource(config, str(folder), SourceSettings(frame_rule=rule))))

    base = recipe(tmp_path, "SFTDataset", params, frame_rule=rule)
    assert checked(capsys, str(folder), *base) == refused
    if rule == "exact":
        assert refused == [(f"{n:02}", "too_short") for n in LENGTHS if n <= 2 * skip]
        flags = ["--skip", str(skip), "--fps", str(fps)]
        assert checked(capsys, str(folder), *flags) == refused


@pytest.mark.parametrize("skip", [0, 2])
@pytest.mark.parametrize("rule", ["exact", "sat"])
def test_shards(
    skip: int, rule: str, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = {"image_size": [32, 48], "fps": 8, "num_frames": 9, "skip_frms_num": skip}
    config = ShardDataConfig(image_size=(32, 48), fps=8, num_frames=9, skip_frms_num=float(skip))
    settings = SourceSettings(frame_rule=rule, cache_dir=tmp_path / "cache")
    refused = list(trained(ShardSource(config, str(shards), settings)))

    base = recipe(tmp_path, "VideoDataset", params, frame_rule=rule)
    assert checked(capsys, str(shards), *base) == refused
    assert refused[-1:] != [("26", "too_short")]
    if rule == "exact":
        assert refused == [(f"{n:02}", "too_short") for n in LENGTHS if n <= 2 * skip]
        assert checked(capsys, str(shards), "--skip", str(skip), "--fps", "8") == refused


def test_without_a_word_the_skip_is_that_of_the_class(
    folder: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert checked(capsys, str(shards)) == []
    assert checked(capsys, str(folder)) == [(f"{n:02}", "too_short") for n in LENGTHS if n <= 6]
