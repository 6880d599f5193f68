"""Objects that may be absent."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.errors import DataError
from app.storage.local import LocalStorage
from app.storage.objects import (
    check_key,
    check_own_key,
    check_prefix,
    read_if_present,
    stat_if_present,
)


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


@pytest.mark.parametrize("key", ["a", "a/b.tar", "Ä ö/50%+#?.mp4", "..a/b..", "-x"])
def test_sane_keys_are_read(key: str) -> None:
    assert check_key(key, "x") == key


@pytest.mark.parametrize(
    "key", ["", "/", "a/", "..", "a/..", "a/./b", "a\nb", "x" * 1025, "ä" * 600]
)
def test_other_keys_are_refused(key: str) -> None:
    with pytest.raises(DataError):
        check_key(key, "x")


def test_our_keys_are_narrower() -> None:
    assert check_own_key("checkpoints/step-1.2/a_b.json", "x") == "checkpoints/step-1.2/a_b.json"
    with pytest.raises(DataError):
        check_own_key("Checkpoints/x", "x")


def test_a_prefix_may_be_empty_or_end_with_a_slash() -> None:
    assert [check_prefix(prefix, "x") for prefix in ("", "a", "a/b/")] == ["", "a", "a/b/"]
    with pytest.raises(DataError):
        check_prefix("../", "x")
