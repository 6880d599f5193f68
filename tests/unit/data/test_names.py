"""What a name says, by tables written by hand."""

from __future__ import annotations

import pytest

from app.data.names import (
    checked_address,
    is_hidden,
    is_video_name,
    name_fault,
    normal_form,
    shard_fault,
    shown,
    without_suffix,
)
from app.errors import ConfigError


@pytest.mark.parametrize(
    "name", ["a.mp4", "a.MP4", "a.Mov", "a.m4v", "a.mkv", "a.webm", "a.AVI", "d.x/a.mpg", "a.mpeg"]
)
def test_kinds_that_are_read_in_any_letter_case(name: str) -> None:
    assert is_video_name(name)
    assert is_video_name(name, upstream=True) == (name == "a.mp4")


@pytest.mark.parametrize("name", ["a.flv", "a.gif", "a.ts", "a.wmv", "mp4", "a.mp4.part", "a.mp4 "])
def test_names_that_are_not_read(name: str) -> None:
    assert not is_video_name(name)


@pytest.mark.parametrize(
    "key",
    [
        "._a.mp4",
        "videos/._a.mp4",
        ".Trash-1000/files/a.mp4",
        "__MACOSX/videos/a.mp4",
        "videos/.ipynb_checkpoints/a-checkpoint.mp4",
        "videos/@eaDir/a.mp4",
        ".DS_Store",
        "a/.b/c/d.tar",
    ],
)
def test_hidden_files_and_those_in_hidden_folders(key: str) -> None:
    assert is_hidden(key)


@pytest.mark.parametrize("key", ["a.mp4", "./a.mp4", "../a.mp4", "__MACOS/a.mp4", "a._b.mp4"])
def test_what_only_looks_hidden_is_read(key: str) -> None:
    assert not is_hidden(key)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("videos/a\\b.mp4", "backslash"),
        ("videos/a\nb.mp4", "control character"),
        ("videos/a\tb.mp4", "control character"),
        ("videos/a\x7f.mp4", "control character"),
        ("videos/a\x85.mp4", "control character"),
        ("videos//a.mp4", "empty part"),
        ("/a.mp4", "empty part"),
        ("videos/a.mp4 ", "blank"),
        ("videos/\udce4.mp4", "UTF-8"),
        ("videos/../a.mp4", "'..'"),
        ("v" * 1100 + ".mp4", "1024 bytes"),
    ],
)
def test_names_that_cannot_be_used_say_why(key: str, said: str) -> None:
    fault = name_fault(key)

    assert fault is not None
    assert said in fault


@pytest.mark.parametrize(
    "key", ["videos/ä ö.v1 (x).mp4", "a\u00a0b.mp4", "a\u200db.mp4", "#%&.mp4"]
)
def test_odd_names_can_be_used(key: str) -> None:
    assert name_fault(key) is None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("x.tar.gz", "compressed"),
        ("x.tgz", "compressed"),
        ("x.TAR.GZ", "compressed"),
        ("x.tar.zst", "compressed"),
        ("x.tar.xz", "compressed"),
        ("x.tbz2", "compressed"),
        ("x.TAR", "ends in .TAR"),
        ("x.Tar", "ends in .Tar"),
    ],
)
def test_shards_that_are_not_read_say_why(name: str, said: str) -> None:
    assert said in str(shard_fault(f"folder/{name}"))


@pytest.mark.parametrize("name", ["x.tar", "x.tar.tar", "x.json", "x.gz", "target", "x.mp4"])
def test_shards_and_other_files_have_no_fault(name: str) -> None:
    assert shard_fault(name) is None


def test_a_caption_is_looked_for_without_the_kind_of_its_video() -> None:
    assert without_suffix("v/a.b.MKV") == "v/a.b"
    assert without_suffix("v/a.gif") == "v/a"
    assert without_suffix("v/a.v1") == "v/a.v1"


def test_names_are_compared_by_one_normal_form() -> None:
    assert normal_form("cafe\u0301") == normal_form("caf\u00e9") == "caf\u00e9"


def test_what_cannot_be_printed_is_escaped() -> None:
    assert shown("a.mp4") == "a.mp4"
    assert shown("a\nb.mp4") == r"'a\nb.mp4'"
    assert shown("a.mp4 ") == "'a.mp4 '"


@pytest.mark.parametrize("address", ["s3://b/x ", " ./x", "./x\n", "s3://b/x\t"])
def test_a_blank_around_an_address_is_a_mistake(address: str) -> None:
    with pytest.raises(ConfigError, match="blank") as caught:
        checked_address(address, "args.train_data")

    assert caught.value.fix == f"write '{address.strip()}'"
