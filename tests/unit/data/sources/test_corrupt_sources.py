"""Damaged and hostile data through the whole path: source, decoder, loader."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from app.config.schema.data import DataConfig, SFTDataConfig, ShardDataConfig
from app.data.loader import Loader
from app.data.opening import LoaderRequest, open_loader
from app.data.order.share import Share
from app.errors import DataError
from tests.support.clip_files import encode
from tests.support.corrupt_clips import BAD
from tests.support.shards import tar_bytes, write_shard

SLOW_TO_MAKE = ("bomb_8192", "disguised_bomb")  # test_corrupt_clips has them
PLANTED = {name: reason for name, (_, reason) in BAD.items() if name not in SLOW_TO_MAKE}
GOOD = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight clips, and one of every kind of damage."""
    root = tmp_path_factory.mktemp("planted")
    videos = {f"good{i}": encode(root / f"made/{i}.mp4", 20 + i).read_bytes() for i in range(GOOD)}
    videos |= {name: BAD[name][0](root / "made") for name in PLANTED}
    for name, blob in videos.items():
        for kind, content in (("videos", blob), ("labels", f"about {name}".encode())):
            place = root / f"data/{kind}/{name}.{'mp4' if kind == 'videos' else 'txt'}"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
    return root / "data"


SFT = DataConfig(
    target="data_video.SFTDataset",
    implementation="app.data.sources.sft:SFTSource",
    params=SFTDataConfig(video_size=(32, 48), fps=8, max_num_frames=9, skip_frms_num=0),
    num_workers=2,
)
SHARDS = replace(
    SFT,
    target="data_video.VideoDataset",
    implementation="app.data.sources.webdataset:ShardSource",
    params=ShardDataConfig(image_size=(32, 48), num_frames=9, fps=8),
)


def loader_of(config: DataConfig, place: Path, cache: Path) -> Loader:
    request = LoaderRequest(paths=[str(place)], share=Share(0, 1, 2), seed=1)
    return open_loader(replace(config, cache_dir=str(cache)), request)


def files_below(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def epoch(loader: Loader) -> Iterator[tuple[str, str]]:
    """Every (key, caption) of an epoch; what was found is agreed after each step, as in a run."""
    for batch in loader.batches(0, loader.steps_for_epochs(1)):
        assert batch["mp4"].shape == (2, 9, 3, 32, 48)
        loader.quarantine.agree(news.id for news in loader.quarantine.take_news())
        yield from zip(batch["keys"], batch["txt"], strict=True)


def test_each_damaged_clip_of_a_folder_is_counted_once_by_one_reason(
    folder: Path, tmp_path: Path
) -> None:
    before = files_below(folder)
    found: list[tuple[str, str]] = []
    with loader_of(SFT, folder, tmp_path) as loader:
        used = []
        for batch in loader.batches(0, loader.steps_for_epochs(1)):
            used += batch["keys"]
            news = loader.quarantine.take_news()
            found += [(bad.key, bad.reason) for bad in news]
            loader.quarantine.agree(bad.id for bad in news)

    assert sorted(found) == sorted((f"videos/{n}.mp4", reason) for n, reason in PLANTED.items())
    assert {Path(key).stem for key in used} == {f"good{i}" for i in range(GOOD)}
    assert len(used) == GOOD + len(PLANTED)  # every place is filled
    assert files_below(folder) == before
    assert files_below(tmp_path) == {}


def test_members_with_hostile_names_are_left_out_and_land_nowhere(
    folder: Path, tmp_path: Path
) -> None:
    video = (folder / "videos/good1.mp4").read_bytes()
    names = ("sound", "../../escaped", "/absolute", "a/../../b", "twice", "twice", "link")
    members: list[tuple[str, bytes] | tarfile.TarInfo] = []
    for name in names[:-1]:
        members += [(f"{name}.mp4", video), (f"{name}.txt", b"words")]
    link = tarfile.TarInfo("link.mp4")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    members += [link, ("link.txt", b"words")]
    shards = write_shard(tmp_path / "in/shards/a.tar", members).parent
    with loader_of(SHARDS, shards, tmp_path / "cache") as loader:
        used = set(epoch(loader))
        source = loader.source
        left_out = {one.key: one.reason for one in source.left_out()}

    assert used == {("a.tar:sound", "words")}
    assert left_out == {
        "../../escaped": "unsafe_name",
        "/absolute": "unsafe_name",
        "a/../../b": "unsafe_name",
        "twice": "duplicate_key",
        "link": "not_a_file",
    }
    outside = [path for path in files_below(tmp_path) if "cache" not in path.parts]
    assert {path.parent for path in outside} == {shards}
    assert not Path("/absolute.mp4").exists()


def whole_shard(folder: Path) -> bytes:
    video = (folder / "videos/good1.mp4").read_bytes()
    return tar_bytes(
        member for i in range(4) for member in ((f"c{i}.mp4", video), (f"c{i}.txt", b"words"))
    )


@pytest.mark.parametrize("part", [0.1, 0.3, 0.6])
def test_a_shard_cut_in_the_middle_is_refused_by_name(
    part: float, folder: Path, tmp_path: Path
) -> None:
    whole = whole_shard(folder)
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/a.tar").write_bytes(whole)
    (tmp_path / "shards/cut.tar").write_bytes(whole[: int(len(whole) * part)])

    with pytest.raises(DataError, match="damaged") as caught:
        loader_of(SHARDS, tmp_path / "shards", tmp_path / "cache")

    assert caught.value.where.endswith("cut.tar")


def test_a_compressed_shard_is_refused_and_not_unpacked(folder: Path, tmp_path: Path) -> None:
    bomb = io.BytesIO()
    with gzip.open(bomb, "wb", compresslevel=9) as file:
        file.write(whole_shard(folder) + bytes(32 << 20))  # 32 MiB of zeros in 32 KiB
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/a.tar").write_bytes(bomb.getvalue())

    with pytest.raises(DataError, match="not an uncompressed tar"):
        loader_of(SHARDS, tmp_path / "shards", tmp_path / "cache")

    assert sum(len(data) for data in files_below(tmp_path).values()) < 100_000


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"json": b"[" * 100_000}, "bad_metadata"),
        ({"json": b'{"fps": 8, "fill": "' + b"x" * (2 << 20) + b'"}'}, "bad_metadata"),
        ({"txt": b"\xff\xfe not utf-8 \xff"}, "bad_caption"),
        ({"txt": b"word " * 20_000}, "bad_caption"),
        ({"txt": bytes(4)}, "bad_caption"),
        ({"json": b'{"caption": "\\ud800 lone"}'}, "bad_caption"),
        ({"json": b'{"caption": ["a", "b"]}'}, "bad_caption"),
        ({"txt": b"  \n "}, "empty_caption"),
    ],
)
def test_words_that_cannot_be_used_are_counted_too(
    members: dict[str, bytes], reason: str, folder: Path, tmp_path: Path
) -> None:
    video = (folder / "videos/good1.mp4").read_bytes()
    sample = {"mp4": video, "txt": b"words", **members}
    good = [("a.mp4", video), ("a.txt", b"words")]
    bad = [(f"b.{suffix}", data) for suffix, data in sample.items()]
    shards = write_shard(tmp_path / "shards/x.tar", [*good, *bad]).parent

    with loader_of(replace(SHARDS, num_workers=0), shards, tmp_path / "cache") as loader:
        batch = next(loader.batches(0, 1))
        (news,) = loader.quarantine.take_news()

    assert (news.shard, news.key, news.reason) == ("x.tar", "b", reason)
    assert batch["keys"] == ["x.tar:a"] * 2
