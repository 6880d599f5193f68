from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import webdataset

from app.config.schema.data import ShardDataConfig
from app.data.bad_clip import BadClipError
from app.data.pack import PackRules, pack
from app.data.sources.settings import SourceSettings
from app.data.sources.webdataset import ShardSource
from app.errors import DataError, InputMissingError
from tests.support.clip_files import encode, number_of, write_folder
from tests.support.shards import write_shard

NAMES = [f"clip{i}" for i in range(7)]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven clips of 20 .. 26 frames in shards of two or three."""
    root = tmp_path_factory.mktemp("packed")
    write_folder(root / "in", {name: f"about {name}" for name in NAMES})
    size = max(path.stat().st_size for path in (root / "in" / "videos").iterdir())
    pack(str(root / "in"), str(root / "out"), PackRules(shard_bytes=2 * size + 9000))
    return root / "out"


@pytest.fixture(scope="module")
def blob(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return encode(tmp_path_factory.mktemp("blob") / "a.mp4", frames=40, fps=16.0).read_bytes()


def opened(path: Path | str, tmp_path: Path, **changes: object) -> ShardSource:
    params = {"image_size": (32, 48), "num_frames": 9, "fps": 8.0, "skip_frms_num": 3.0}
    settings = {"cache_dir": tmp_path / "cache"}
    for name, value in changes.items():
        (params if name in ShardDataConfig.__slots__ else settings)[name] = value
    return ShardSource(
        ShardDataConfig(**params),  # type: ignore[arg-type]
        str(path),
        SourceSettings(**settings),  # type: ignore[arg-type]
    )


def test_every_packed_clip_comes_back(packed: Path, tmp_path: Path) -> None:
    source = opened(packed, tmp_path)

    items = [source[index] for index in range(len(source))]
    source.close()

    assert len(source.shard_sizes()) > 1
    assert sum(source.shard_sizes()) == 7
    assert [item["txt"] for item in items] == [f"about {name}" for name in NAMES]
    assert {tuple(item["mp4"].shape) for item in items} == {(9, 3, 32, 48)}
    assert [number_of(frame) for frame in items[4]["mp4"]] == list(range(3, 12))
    assert items[0]["key"] == "clips-000000.tar:clip0"


def test_another_reader_finds_the_same_samples(packed: Path) -> None:
    shards = [str(path) for path in sorted(packed.glob("*.tar"))]

    found = list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=False))

    assert [sample["txt"].decode() for sample in found] == [f"about {name}" for name in NAMES]
    assert json.loads(found[2]["json"])["num_frames"] == 22


def test_a_subset_and_the_first_shards(packed: Path, tmp_path: Path) -> None:
    whole = opened(packed, tmp_path).shard_sizes()

    assert opened(f"{packed}/clips-00000{{0..1}}.tar", tmp_path).shard_sizes() == whole[:2]
    assert opened(packed, tmp_path, nshards=1).shard_sizes() == whole[:1]
    twice = opened(f";{packed}*2", tmp_path).shard_sizes()
    assert twice == [size for size in whole for _ in range(2)]


def test_captions_come_from_member_sidecar_json_and_text_in_this_order(
    blob: bytes, tmp_path: Path
) -> None:
    fields = json.dumps({"caption": "from json"}).encode()
    write_shard(
        tmp_path / "d" / "x.1.tar",
        [
            *[("a.mp4", blob), ("a.caption", b"from member"), ("a.json", fields), ("a.txt", b"t")],
            *[("b.mp4", blob), ("b.id", b"17-$#%@&4"), ("b.json", fields)],
            *[("c.mp4", blob), ("c.json", fields), ("c.txt", b"t")],
            *[("d.mp4", blob), ("d.txt", b"from text\n")],
        ],
    )
    record = {"key": "17", "caption": "from sidecar", "duration": "2.5", "fps": 16}
    (tmp_path / "d" / "x.meta.jsonl").write_text("not json\n" + json.dumps(record) + "\n")
    source = opened(tmp_path / "d", tmp_path, meta_names=("duration", "fps", "caption"))

    captions = [source[index]["txt"] for index in range(4)]
    source.close()

    assert captions == ["from member", "from sidecar", "from json", "from text"]


def test_the_caption_key_can_be_named(blob: bytes, tmp_path: Path) -> None:
    fields = json.dumps({"caption": "short", "long_caption": "long"}).encode()
    write_shard(tmp_path / "d" / "x.tar", [("a.mp4", blob), ("a.json", fields)])
    source = opened(tmp_path / "d", tmp_path, txt_key="long_caption")

    assert source[0]["txt"] == "long"
    source.close()


def test_samples_without_caption_members_are_refused_before_the_start(
    blob: bytes, tmp_path: Path
) -> None:
    write_shard(tmp_path / "d" / "x.tar", [("a.mp4", blob), ("b.mp4", blob), ("b.txt", b"t")])

    with pytest.raises(DataError, match=r"1 of 2 samples have no caption: x\.tar:a"):
        opened(tmp_path / "d", tmp_path)
    assert opened(tmp_path / "d", tmp_path, missing_captions="empty")[0]["txt"] == ""


def test_a_blank_caption_names_shard_and_sample(blob: bytes, tmp_path: Path) -> None:
    write_shard(tmp_path / "d" / "x.tar", [("a.mp4", blob), ("a.txt", b" ")])

    with pytest.raises(BadClipError) as caught:
        opened(tmp_path / "d", tmp_path)[0]

    assert caught.value.reason == "empty_caption"
    assert caught.value.where.endswith("x.tar, sample a")


def test_upstream_rule_uses_the_metadata_and_a_start_by_position(
    blob: bytes, tmp_path: Path
) -> None:
    # 40 frames at 16 fps: every second frame, from a random start.
    fields = json.dumps({"caption": "c", "fps": 16.0, "duration": 2.5}).encode()
    write_shard(tmp_path / "d" / "x.tar", [("a.mp4", blob), ("a.json", fields)])
    source = opened(tmp_path / "d", tmp_path, frame_rule="sat", seed=4)

    clips = [[number_of(f) for f in source.read(0, p)["mp4"]] for p in (0, 1, 2, 3, 0)]
    source.close()

    assert clips[0] == clips[4]
    assert len({clip[0] for clip in clips}) > 1
    assert all(clip == list(range(clip[0], clip[0] + 18, 2)) for clip in clips)


def test_upstream_rule_reads_rate_and_length_from_the_video_where_metadata_lacks_them(
    blob: bytes, tmp_path: Path
) -> None:
    write_shard(tmp_path / "d" / "x.tar", [("a.mp4", blob), ("a.txt", b"c")])
    source = opened(tmp_path / "d", tmp_path, frame_rule="sat")

    first, second, *_ = (number_of(f) for f in source[0]["mp4"])
    source.close()

    assert second - first == 2


def test_upstream_rule_refuses_short_clips(blob: bytes, tmp_path: Path) -> None:
    fields = json.dumps({"caption": "c", "fps": 16.0, "duration": 1.2}).encode()
    write_shard(tmp_path / "d" / "x.tar", [("a.mp4", blob), ("a.json", fields)])

    source = opened(tmp_path / "d", tmp_path, frame_rule="sat")
    with pytest.raises(BadClipError) as caught:
        source[0]
    source.close()

    assert caught.value.reason == "too_short"


def test_a_shard_rewritten_under_the_run_is_an_error(blob: bytes, tmp_path: Path) -> None:
    path = write_shard(tmp_path / "d" / "x.tar", [("a.mp4", blob), ("a.txt", b"c")])
    source = opened(tmp_path / "d", tmp_path)
    size = path.stat().st_size
    write_shard(path, [("b.mp4", blob), ("b.txt", b"c")])
    assert path.stat().st_size == size

    with pytest.raises(DataError, match="its index was"):
        source[0]


def test_a_wrong_path_is_exit_code_66(tmp_path: Path) -> None:
    with pytest.raises(InputMissingError) as caught:
        opened(tmp_path / "nothing.tar", tmp_path)

    assert caught.value.exit_code == 66
    assert caught.value.where.endswith("nothing.tar")


def test_the_fingerprint_is_the_same_in_another_place(packed: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in packed.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    for path in copy.glob("*.tar"):
        os.utime(path, (9, 9))

    assert opened(copy, tmp_path).fingerprint() == opened(packed, tmp_path).fingerprint()


def test_another_sidecar_is_other_data(tmp_path: Path, blob: bytes) -> None:
    write_shard(tmp_path / "d" / "x.tar", [("a.mp4", blob), ("a.id", b"17")])
    sidecar = tmp_path / "d" / "x.meta.jsonl"
    fingerprints = []
    for caption in ("one", "two"):
        sidecar.write_text(json.dumps({"key": "17", "caption": caption}))
        fingerprints.append(opened(tmp_path / "d", tmp_path).fingerprint())

    assert fingerprints[0] != fingerprints[1]
    sidecar.write_text(json.dumps({"key": "17", "caption": "one"}))
    assert opened(tmp_path / "d", tmp_path).fingerprint() == fingerprints[0]
