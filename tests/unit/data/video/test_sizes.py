from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from app.config.schema.data import Bucket, SFTDataConfig, ShardDataConfig
from app.data.opening import LoaderRequest, open_loader
from app.data.order.share import Share
from app.data.pack import PackRules, pack
from app.data.sources.settings import SourceSettings
from app.data.sources.sft import SIZES_NAME, SFTSource
from app.data.sources.webdataset import ShardSource
from app.data.video.decoder import VideoDecoder
from app.data.video.sizes import ClipSize, read_size, sizes_from_json, sizes_to_json
from app.errors import ConfigError
from tests.support.clip_files import encode, write_folder
from tests.support.configs import TINY, base, layer, load
from tests.support.planted_faults import FAULTS, FINE

FOLDER = SFTDataConfig(video_size=(32, 48), fps=8, max_num_frames=9, skip_frms_num=0)
SHARDS = ShardDataConfig(image_size=(32, 48), num_frames=9, fps=8)


def size_in(path: Path, probes: list[bytes]) -> ClipSize | None:
    data = path.read_bytes()

    def probe(blob: bytes) -> object:
        probes.append(blob)
        decoder = VideoDecoder()
        try:
            return decoder.probe(blob)
        finally:
            decoder.close()

    return read_size(lambda start, stop: data[start:stop], len(data), probe)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(FINE))
def test_the_movie_box_says_what_a_decoder_shows(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.mp4"
    FINE[name](path)
    shown: list[tuple[int, int]] = []
    decoder = VideoDecoder()
    probes: list[bytes] = []

    try:
        facts = decoder.decode(
            path.read_bytes(), lambda facts: [0], lambda _, frame: shown.append(frame.shape[:2])
        )
        size = size_in(path, probes)
    finally:
        decoder.close()

    assert size is not None
    assert (size.rows, size.columns) == shown[0]
    assert size.frames == facts.reported if name != "fragmented" else facts.frames
    assert size.fps == pytest.approx(facts.fps, rel=1e-3)
    assert len(probes) == (1 if name == "fragmented" else 0)


@pytest.mark.parametrize(
    "name", ["cut-in-half", "zero-bytes", "text", "audio-only", "bomb", "cinepak"]
)
def test_a_video_that_cannot_be_used_has_no_size(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.mp4"
    FAULTS[name][0](path)

    assert size_in(path, []) is None


def test_only_heads_of_boxes_and_the_movie_box_are_read(tmp_path: Path) -> None:
    data = encode(tmp_path / "a.mp4", options=["-movflags", "+faststart"]).read_bytes()
    read: list[tuple[int, int]] = []

    def range_of(start: int, stop: int) -> bytes:
        read.append((start, stop))
        return data[start:stop]

    read_size(range_of, len(data), lambda blob: pytest.fail("decoded"))

    pictures = data.index(b"mdat")
    assert max(stop for _, stop in read) <= pictures


def test_sizes_of_other_data_are_not_believed() -> None:
    sizes = [ClipSize(480, 720, 100, 23.976), None]

    data = sizes_to_json(sizes, "abc")

    assert sizes_from_json(data, "abc") == sizes_from_json(data, None, 2) == sizes
    assert sizes_from_json(data, "abc", 3) is None
    assert sizes_from_json(b"[" * 200_000, "abc") is None
    assert sizes_from_json(data.replace(b"100", b"1e999"), "abc") is None
    assert sizes_from_json(data, "abd") is None
    assert sizes_from_json(data[:-9], "abc") is None
    assert sizes_from_json(None, "abc") is None


def test_a_folder_is_looked_through_once(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", {"a": "one", "b": "two"})
    (tmp_path / "set" / "videos" / "c.mp4").write_bytes(b"x" * 2000)
    (tmp_path / "set" / "labels" / "c.txt").write_text("broken")
    settings = SourceSettings(cache_dir=tmp_path / "cache")
    source = SFTSource(FOLDER, str(tmp_path / "set"), settings)

    first = source.shapes.sizes()

    assert first == [ClipSize(48, 64, 20, 8.0), ClipSize(48, 64, 21, 8.0), None]
    kept = tmp_path / "set" / SIZES_NAME
    content = json.loads(kept.read_text())
    content["sizes"][0] = [1, 2, 3, 4.0]
    kept.write_text(json.dumps(content))
    assert source.shapes.sizes()[0] == ClipSize(1, 2, 3, 4.0)  # from the file
    settings.decoders.close()


def test_packing_writes_the_sizes_that_a_scan_finds(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", {"a": "one", "b": "two", "c": "three"})
    out = tmp_path / "shards"
    pack(str(tmp_path / "set"), str(out), PackRules(shard_bytes=8 << 10))
    settings = SourceSettings(cache_dir=tmp_path / "cache")
    files = sorted(out.glob("*.sizes.json"))
    source = ShardSource(SHARDS, str(out), settings)

    packed = source.shapes.sizes()
    for file in files:
        file.unlink()
    scanned = source.shapes.sizes()

    assert packed == scanned == [ClipSize(48, 64, n, 8.0) for n in (20, 21, 22)]
    assert sorted(out.glob("*.sizes.json")) == files
    assert len(files) == len(list(out.glob("*.tar"))) == 3
    settings.decoders.close()


def two_sizes(root: Path) -> Path:
    """Four wide and four tall clips, two of the tall ones short."""
    for number in range(4):
        encode(root / "videos" / f"w{number}.mp4", size=(32, 48))
        encode(root / "videos" / f"x{number}.mp4", size=(48, 32), frames=20 if number < 2 else 6)
    (root / "labels").mkdir()
    for video in (root / "videos").iterdir():
        (root / "labels" / f"{video.stem}.txt").write_text(video.stem)
    return root


def test_every_batch_of_a_run_with_buckets_has_one_size(tmp_path: Path) -> None:
    root = two_sizes(tmp_path / "set")
    buckets = layer(
        tmp_path,
        {
            "data": {
                "target": "data_video.SFTDataset",
                "params": {
                    "video_size": [32, 48],
                    "fps": 8,
                    "max_num_frames": 9,
                    "skip_frms_num": 0,
                },
                "buckets": ["9x32x48", [9, 48, 32], "5x48x32"],
                "cache_dir": str(tmp_path / "cache"),
            },
            "args": {"train_data": [str(root)]},
        },
    )
    data = load(*base("tiny/tiny", buckets)).data
    assert data is not None
    assert data.buckets == (Bucket(9, 32, 48), Bucket(9, 48, 32), Bucket(5, 48, 32))

    request = LoaderRequest(paths=data.train, share=Share(0, 1, 2), seed=1)
    with open_loader(replace(data, num_workers=2), request) as loader:
        steps = loader.steps_for_epochs(1)
        batches = list(loader.batches(0, steps))
        cursor = loader.cursor(3)

    assert steps == 4
    shapes = {key: tuple(b["mp4"].shape[1:]) for b in batches for key in b["keys"]}
    assert shapes == {
        **{f"videos/w{n}.mp4": (9, 3, 32, 48) for n in range(4)},
        **{f"videos/x{n}.mp4": (9, 3, 48, 32) for n in (0, 1)},
        **{f"videos/x{n}.mp4": (5, 3, 48, 32) for n in (2, 3)},
    }
    assert cursor.order == "buckets 9x32x48*2 9x48x32*2 5x48x32*2"


def test_batches_by_cost_give_cheap_buckets_more_clips(tmp_path: Path) -> None:
    root = two_sizes(tmp_path / "set")
    data = load(*TINY).data
    assert data is not None
    chosen = replace(
        data,
        train=(str(root),),
        params=FOLDER,
        buckets=(Bucket(9, 32, 48), Bucket(5, 48, 32)),
        bucket_batch="cost",
        cache_dir=str(tmp_path / "cache"),
    )
    request = LoaderRequest(
        paths=chosen.train, share=Share(0, 1, 2), seed=1, cost=lambda bucket: bucket.frames - 1.0
    )

    with open_loader(chosen, request) as loader:
        counts = {len(batch["keys"]): batch["mp4"].shape[1] for batch in loader.batches(0, 4)}

    assert counts == {2: 9, 4: 5}
    with pytest.raises(ConfigError, match="not known for this network"):
        open_loader(chosen, replace(request, cost=None))
