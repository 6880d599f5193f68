"""A digest that follows what weights hold, not where they lie."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from app.errors import CogvxError
from app.run.attempt.fingerprint import BLOCK_BYTES, fingerprint

SIZE = 10 * BLOCK_BYTES


def folder(path: Path, content: bytes = b"a" * SIZE) -> Path:
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(content)
    (path / "config.json").write_bytes(b"{}")
    return path


def test_a_copy_with_other_times_has_the_same_digest(tmp_path: Path) -> None:
    first = folder(tmp_path / "a")
    copy = shutil.copytree(first, tmp_path / "elsewhere/b")
    os.utime(copy / "model.safetensors", (1, 1))
    (copy / "README.md").write_text("notes")

    assert fingerprint(str(copy)) == fingerprint(str(first))


@pytest.mark.parametrize("place", [0, SIZE // 2 - BLOCK_BYTES // 2, SIZE - 1])
def test_other_values_have_another_digest(place: int, tmp_path: Path) -> None:
    content = bytearray(b"a" * SIZE)
    content[place] ^= 1

    changed = fingerprint(str(folder(tmp_path / "b", bytes(content))))

    assert changed != fingerprint(str(folder(tmp_path / "a")))


def test_a_file_is_known_by_its_content_whatever_its_name(tmp_path: Path) -> None:
    for name in ("a.pt", "b.pt"):
        (tmp_path / name).write_bytes(b"x" * 100)
    (tmp_path / "longer.pt").write_bytes(b"x" * 101)

    assert fingerprint(str(tmp_path / "a.pt")) == fingerprint(str(tmp_path / "b.pt"))
    assert fingerprint(str(tmp_path / "a.pt")) != fingerprint(str(tmp_path / "longer.pt"))


def test_where_nothing_lies_there_is_none(tmp_path: Path) -> None:
    assert fingerprint(str(tmp_path / "nothing")) is None
    (tmp_path / "empty.pt").touch()
    assert fingerprint(str(tmp_path / "empty.pt")) is not None


def test_an_address_that_cannot_be_used_is_an_error() -> None:
    with pytest.raises(CogvxError):
        fingerprint("ftp://host/weights")
