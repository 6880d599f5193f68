from __future__ import annotations

import gzip
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from app.checkpoint.tensor_file import write_tensors
from app.errors import DataError
from app.storage.safetensors_header import (
    GZIP,
    HEADER_LENGTH_BYTES,
    LFS_POINTER,
    PICKLE,
    WEB_PAGE,
    ZIP,
    FileKind,
    apparent_kind,
    header_bytes,
    header_size,
    parse_header,
)


def test_the_parsed_header_points_at_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.arange(4.0), "b": torch.arange(3, dtype=torch.bfloat16)})
    content = path.read_bytes()

    size = header_size(content[:8], "x")
    table = parse_header(content[:size], len(content), "x")

    a, b = table["a"], table["b"]
    assert a.shape == (4,)
    assert np.frombuffer(content[a.start : a.stop], np.float32).tolist() == [0, 1, 2, 3]
    assert b.dtype == "BF16"
    assert b.stop - b.start == 6


def head_of(entry: dict[str, object]) -> bytes:
    text = json.dumps({"a": entry}).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [4], "data_offsets": [0, 17]},
        {"dtype": "F32", "shape": [4], "data_offsets": [4096, 4112]},
        {"dtype": "F32", "shape": [-4, -1], "data_offsets": [0, 16]},
        {"dtype": "C64", "shape": [2], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [4]},
    ],
)
def test_a_lying_header_is_refused(entry: dict[str, object]) -> None:
    head = head_of(entry)

    with pytest.raises(DataError, match=r"weights-0\.safetensors"):
        parse_header(head, len(head) + 16, "weights-0.safetensors")


@pytest.mark.parametrize("prefix", [b"", b"\x00" * 8, b"\xff" * 8, b"<html>\r\n"])
def test_an_absurd_header_length_is_refused(prefix: bytes) -> None:
    with pytest.raises(DataError, match="not a safetensors file"):
        header_size(prefix, "x")


def test_another_kind_of_file_is_named_with_the_way_on() -> None:
    with pytest.raises(DataError, match="Git LFS") as caught:
        header_size(b"version https://git-lfs.github.com/spec/v1"[:8], "x.safetensors")

    assert "git lfs pull" in caught.value.fix


def test_what_is_written_is_read_back_and_the_data_after_it_is_aligned() -> None:
    table = {"a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}, "__metadata__": {"x": "y"}}

    head = header_bytes(table)

    assert len(head) % 8 == 0
    assert head[8:].rstrip(b" ") == json.dumps(table, sort_keys=True).encode()
    place = parse_header(head, len(head) + 3, "x")["a"]
    assert header_size(head[:8], "x") == len(head)
    assert (place.start, place.stop) == (len(head), len(head) + 3)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def zip_of(path: Path) -> bytes:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", b"b")
    return path.read_bytes()


def test_what_other_programs_write_is_named(tmp_path: Path) -> None:
    examples: list[tuple[bytes, FileKind]] = [
        (POINTER, LFS_POINTER),
        (b"<!DOCTYPE html><html>", WEB_PAGE),
        (b"<html><body>401", WEB_PAGE),
        (b'<?xml version="1.0"?><Error>', WEB_PAGE),
        (gzip.compress(b"x"), GZIP),
        (zip_of(tmp_path / "x.zip"), ZIP),
        (pickle.dumps({"a": 1}, protocol=2), PICKLE),
    ]

    assert [apparent_kind(data[:HEADER_LENGTH_BYTES]) for data, _ in examples] == [
        k for _, k in examples
    ]


@pytest.mark.parametrize("data", [b"", b"v", b"\x40\0\0\0\0\0\0\0", b"plain words"])
def test_anything_else_is_not_guessed(data: bytes) -> None:
    assert apparent_kind(data) is None
