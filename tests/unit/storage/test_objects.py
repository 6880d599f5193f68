"""Objects that may be absent."""

from __future__ import annotations

from pathlib import Path

from app.storage.local import LocalStorage
from app.storage.objects import read_if_present, stat_if_present


def test_an_absent_object_is_none(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)

    assert read_if_present(storage, "a/b.json") is None
    assert stat_if_present(storage, "a/b.json") is None


def test_a_present_object_is_read(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.write_small("a/b.json", b"{}")

    assert read_if_present(storage, "a/b.json") == b"{}"
    entry = stat_if_present(storage, "a/b.json")
    assert entry is not None
    assert (entry.key, entry.size_bytes) == ("a/b.json", 2)
