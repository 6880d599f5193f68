"""Captions of shards: which member or field counts, and what is no caption."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest

from app.data.bad_clip import BadClipError
from app.data.shards.captions import TextRules, caption, metadata, sidecar_records
from app.data.shards.index import index_shard
from app.data.shards.opened import OpenShard
from tests.support.shards import tar_bytes

RULES = TextRules()


def caption_of(**members: bytes) -> str | None:
    """The caption of a sample with these members, read as a shard's samples are."""
    names = {"mp4": b"v", **members}
    data = tar_bytes([(f"a.{suffix}", content) for suffix, content in names.items()])
    (sample,) = index_shard(io.BytesIO(data), len(data), "x.tar").samples()

    def read(member: object) -> bytes:
        where, size = member.offset, member.size  # type: ignore[attr-defined]
        return data[where : where + size]

    return caption(sample, read, metadata(sample, read, dict, RULES), RULES)


def as_json(value: object) -> bytes:
    return json.dumps({"caption": value}).encode()


@pytest.mark.parametrize(
    "value", ["\ud800 lone", ["a", "b"], {"a": 1}, 7, 1.5, True, "x" * 70_000, "\x00" * 4]
)
def test_a_field_that_is_no_caption_is_one_bad_clip(value: object) -> None:
    with pytest.raises(BadClipError) as caught:
        caption_of(json=as_json(value), txt=b"a good one")

    assert caught.value.reason == "bad_caption"
    caught.value.detail.encode()  # it can be printed and logged


@pytest.mark.parametrize("data", [b"\0" * 4, "words".encode("utf-16-le"), b"\xed\xa0\x80 lone"])
def test_a_member_of_zeros_or_of_another_encoding_is_a_bad_clip(data: bytes) -> None:
    with pytest.raises(BadClipError) as caught:
        caption_of(txt=data)

    assert caught.value.reason == "bad_caption"


def test_a_metadata_member_that_is_cut_in_the_shard_is_one_bad_clip(tmp_path: Path) -> None:
    """The file is shorter than its index says: what `OpenShard.read` raises ends only a sample."""
    whole = tar_bytes([("a.mp4", b"v"), ("a.txt", b"words"), ("a.json", b'{"fps": 8}')])
    index = index_shard(io.BytesIO(whole), len(whole), "x.tar")
    (sample,) = index.samples()
    (tmp_path / "x.tar").write_bytes(whole[: sample["json"].offset + 4])
    shard = OpenShard("x.tar", os.open(tmp_path / "x.tar", os.O_RDONLY), index)

    with pytest.raises(BadClipError) as caught:
        metadata(sample, shard.read, dict, RULES)

    assert (caught.value.reason, caught.value.detail) == ("bad_metadata", "member a.json is cut")


@pytest.mark.parametrize("data", [b'{"fps": ', b"\xff\xfe", b"[1]", b"9" * 5000, b""])
def test_a_metadata_member_that_is_not_an_object_is_one_bad_clip(data: bytes) -> None:
    with pytest.raises(BadClipError) as caught:
        caption_of(json=data, txt=b"words")

    assert caught.value.reason == "bad_metadata"


@pytest.mark.parametrize("value", [None, "", " \n"])
def test_a_field_without_words_leaves_the_caption_to_the_text_member(value: object) -> None:
    assert caption_of(json=as_json(value), txt=b"a good one") == "a good one"


def test_without_a_text_member_a_field_says_what_it_holds() -> None:
    assert caption_of(json=as_json("words")) == "words"
    assert caption_of(json=as_json("")) == ""
    assert caption_of(json=as_json(None)) is None


def test_a_hostile_line_of_a_sidecar_is_left_out() -> None:
    lines = [b"[" * 200_000, b'{"key": "a", "caption": "words"}', b"{", b"3"]

    assert sidecar_records(b"\n".join(lines)) == {"a": {"key": "a", "caption": "words"}}
