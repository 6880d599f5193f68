from __future__ import annotations

import gzip
import pickle
import zipfile
from pathlib import Path

import pytest

from app.storage.file_kinds import (
    GZIP,
    LFS_POINTER,
    PICKLE,
    PREFIX_BYTES,
    WEB_PAGE,
    ZIP,
    FileKind,
    apparent_kind,
)

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

    assert [apparent_kind(data[:PREFIX_BYTES]) for data, _ in examples] == [k for _, k in examples]


@pytest.mark.parametrize("data", [b"", b"v", b"\x40\0\0\0\0\0\0\0", b"plain words"])
def test_anything_else_is_not_guessed(data: bytes) -> None:
    assert apparent_kind(data) is None
