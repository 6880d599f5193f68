"""Captions of a folder, through the dataset class: where they come from and what contradicts."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest

from app.config.schema.data import SFTDataConfig, ShardDataConfig
from app.data.sources.latents import content_of
from app.data.sources.registered import MapSource
from app.data.sources.settings import SourceSettings
from app.data.sources.sft import SFTSource
from app.data.sources.webdataset import ShardSource
from app.errors import DataError
from tests.support.shards import write_shard

PARAMS = SFTDataConfig(video_size=(32, 48), fps=8.0, max_num_frames=9)
NFC, NFD = "caf\u00e9 \ud55c", "cafe\u0301 \u1112\u1161\u11ab"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def opened(root: Path, **settings: object) -> SFTSource:
    return SFTSource(PARAMS, str(root), SourceSettings(**settings))  # type: ignore[arg-type]


def captions(source: SFTSource) -> dict[str, str]:
    return {key: source.original(index).caption for index, key in enumerate(source.keys)}


def line(name: str, text: str) -> str:
    return json.dumps({"file_name": name, "text": text}) + "\n"


@pytest.mark.parametrize(("video", "label"), [(NFC, NFD), (NFD, NFC), (NFC, NFC), (NFD, NFD)])
def test_a_label_is_found_in_another_normal_form(video: str, label: str, tmp_path: Path) -> None:
    write(tmp_path, {f"videos/{video}.mp4": "v", f"labels/{label}.txt": "words"})

    assert captions(opened(tmp_path)) == {f"videos/{video}.mp4": "words"}


def test_of_two_normal_forms_each_video_has_its_own_label(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            f"{kind}/{name}.{end}": name
            for name in (NFC, NFD)
            for kind, end in (("videos", "mp4"), ("labels", "txt"))
        },
    )

    assert captions(opened(tmp_path)) == {f"videos/{name}.mp4": name for name in (NFC, NFD)}


@pytest.mark.parametrize("named", ["", "videos"])
@pytest.mark.parametrize(
    "table",
    [
        {"metadata.csv": "file_name,text\nvideos/1.mp4,one\nvideos/2.mkv,two\n"},
        {"videos/metadata.csv": "file_name,caption\n1.mp4,one\n2.mkv,two\n"},
        {"metadata.jsonl": line("videos/2.mkv", "two") + line("videos/1.mp4", " one ")},
        {"prompts.txt": "one\ntwo\n", "videos.txt": "videos/1.mp4\nvideos/2.mkv\n"},
        {"labels/1.txt": "one", "metadata.csv": "file_name,text\nvideos/2.mkv,two\n"},
        {
            "labels/1.txt": " ",
            "labels/2.txt": "two",
            "metadata.csv": "file_name,text\nvideos/1.mp4,one\n",
        },
        {
            "labels/1.txt": "one\n",
            "labels/2.txt": "two",
            "metadata.csv": "file_name,text\nvideos/1.mp4,one\nvideos/2.mkv,\n",
        },
    ],
)
def test_the_ways_in_which_captions_come(table: dict[str, str], named: str, tmp_path: Path) -> None:
    write(tmp_path, {"videos/1.mp4": "v", "videos/2.mkv": "v", **table})

    assert captions(opened(tmp_path / named)) == {"videos/1.mp4": "one", "videos/2.mkv": "two"}


def test_videos_beside_their_table(tmp_path: Path) -> None:
    """Hugging Face's layout: everything in one folder per split."""
    table = "file_name,text\na.mp4,one\nb.mp4,two\n"
    write(tmp_path, {"train/a.mp4": "v", "train/b.mp4": "v", "train/metadata.csv": table})

    assert captions(opened(tmp_path)) == {"train/a.mp4": "one", "train/b.mp4": "two"}


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (
            {"labels/1.txt": "one", "metadata.csv": "file_name,text\nvideos/1.mp4,another\n"},
            r"videos/1\.mp4 \(its captions differ: labels/1\.txt and metadata\.csv, line 2\)",
        ),
        (
            {
                "metadata.jsonl": line("videos/1.mp4", "one"),
                "prompts.txt": "other",
                "videos.txt": "videos/1.mp4",
            },
            r"metadata\.jsonl, line 1 and prompts\.txt, line 1",
        ),
        (
            {"metadata.jsonl": line("videos/1.mp4", "one") + line("videos/1.mp4", "two")},
            r"metadata\.jsonl, line 1 and metadata\.jsonl, line 2",
        ),
        (
            {"metadata.csv": "file_name,text,prompt\nvideos/1.mp4,one,two\n"},
            r"line 2, column prompt and metadata\.csv, line 2, column text",
        ),
    ],
)
@pytest.mark.parametrize("missing", ["error", "empty"])
def test_two_captions_that_differ_are_an_error_that_names_both(
    table: dict[str, str], said: str, missing: str, tmp_path: Path
) -> None:
    write(tmp_path, {"videos/1.mp4": "v", **table})

    with pytest.raises(DataError, match=r"1 of 1 videos have two captions that differ") as caught:
        opened(tmp_path, missing_captions=missing)

    assert re.search(said, caught.value.what)


def test_videos_that_no_way_captions_are_counted(tmp_path: Path) -> None:
    table = "file_name,text\nvideos/1.mp4,one\nvideos/2.mp4, \n"
    write(tmp_path, {f"videos/{n}.mp4": "v" for n in "123"} | {"metadata.csv": table})

    with pytest.raises(DataError, match="2 of 3 videos have no caption") as caught:
        opened(tmp_path)

    assert "videos/2.mp4 (metadata.csv, line 3 is blank)" in caught.value.what
    assert "videos/3.mp4 (no labels/3.txt)" in caught.value.what


def test_captions_without_a_video_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = "file_name,text\nvideos/1.mp4,one\nvideos/lost.mp4,two\n"
    write(tmp_path, {"videos/1.mp4": "v", "metadata.csv": table})

    with caplog.at_level(logging.WARNING):
        opened(tmp_path)

    assert [record.getMessage() for record in caplog.records] == [
        "1 captions have no video: videos/lost.mp4 (metadata.csv, line 3)"
    ]


def test_upstream_knows_no_tables(tmp_path: Path) -> None:
    table = "file_name,text\nvideos/1.mp4,one\n"
    write(tmp_path, {"videos/1.mp4": "v", "metadata.csv": table})

    assert captions(opened(tmp_path, caption_rule="sat")) == {"videos/1.mp4": ""}


def test_another_text_in_a_table_is_another_sample_for_the_cache(tmp_path: Path) -> None:
    identities = []
    for words in ("one", "two", "one"):
        write(tmp_path, {"metadata.csv": f"file_name,text\n1.mp4,{words}\n2.mp4,fixed\n"})
        for name in "12":
            if not (tmp_path / f"{name}.mp4").exists():
                (tmp_path / f"{name}.mp4").write_text("v")
        source = opened(tmp_path)
        identities.append((source.identity(0), source.identity(1)))

    assert identities[0] == identities[2]
    assert identities[0][0] != identities[1][0]
    assert identities[0][1] == identities[1][1]


PREFIXES = [("sks", "sks one"), (" sks, ", "sks, one"), ("", "one")]


@pytest.mark.parametrize(("prefix", "expected"), PREFIXES)
def test_a_trigger_word_is_put_before_every_caption_of_a_folder(
    prefix: str, expected: str, tmp_path: Path
) -> None:
    write(tmp_path, {"1.mp4": "v", "1.txt": "one", "2.mp4": "v", "2.txt": " "})
    source = opened(tmp_path, caption_prefix=prefix, missing_captions="empty")
    plain = opened(tmp_path, missing_captions="empty")

    assert captions(source) == {"1.mp4": expected, "2.mp4": prefix.strip()}
    assert content_of(source, 0).caption == expected  # what the latent cache is keyed by
    assert (source.identity(0) == plain.identity(0)) == (not prefix)
    assert source.fingerprint() == plain.fingerprint()


@pytest.mark.parametrize(("prefix", "expected"), PREFIXES)
def test_a_trigger_word_is_put_before_every_caption_of_shards(
    prefix: str, expected: str, tmp_path: Path
) -> None:
    write_shard(tmp_path / "d" / "x.tar", [("a.mp4", b"v"), ("a.txt", b"one")])
    params = ShardDataConfig(image_size=(32, 48), num_frames=9, fps=8)
    settings = SourceSettings(cache_dir=tmp_path / "cache")
    plain = ShardSource(params, str(tmp_path / "d"), settings)
    settings = SourceSettings(cache_dir=tmp_path / "cache", caption_prefix=prefix)
    source = ShardSource(params, str(tmp_path / "d"), settings)

    assert source.original(0).caption == expected
    assert (source.identity(0) == plain.identity(0)) == (not prefix)


def test_a_trigger_word_is_put_before_captions_of_a_registered_dataset() -> None:
    items = [{"mp4": 0, "txt": "one"}, {"mp4": 0, "txt": ["one", "two"]}]
    source, plain = MapSource(items, "mine.Clips", "sks"), MapSource(items, "mine.Clips")

    assert [source.read(index, 0)["txt"] for index in (0, 1)] == ["sks one", ["sks one", "sks two"]]
    assert source.identity(0) != plain.identity(0)
    assert plain.read(0, 0)["txt"] == "one"
