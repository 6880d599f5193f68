"""Digests of pieces, against hashlib over slices of the whole."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest

from app.storage.digests import content_md5, file_digests, piece_count, piece_digest, wrong_piece


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 20, 25])
def test_every_piece_has_the_digest_of_its_slice(tmp_path: Path, size: int) -> None:
    data = bytes(range(size))
    (tmp_path / "x").write_bytes(data)

    digests = file_digests(tmp_path / "x", 10)

    slices = [data[start : start + 10] for start in range(0, size, 10)]
    assert digests == tuple(hashlib.sha256(part).hexdigest() for part in slices)
    assert len(digests) == piece_count(size, 10)
    assert [piece_digest(tmp_path / "x", i, 10) for i in range(len(slices))] == list(digests)


@pytest.mark.parametrize(
    ("expected", "found", "index"),
    [("ab", "ab", None), ("ab", "ax", 1), ("ab", "a", 1), ("a", "ab", 1), ("", "", None)],
)
def test_the_first_piece_that_differs(expected: str, found: str, index: int | None) -> None:
    assert wrong_piece(tuple(expected), tuple(found)) == index


def test_content_md5_is_base64_of_the_digest() -> None:
    assert base64.b64decode(content_md5(b"abc")).hex() == "900150983cd24fb0d6963f7d28e17f72"
