"""Names of the latent cache: what changes them, and what is found under them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from app.data.latent_cache import (
    SETTINGS_NAME,
    CacheSettings,
    LatentCache,
    Part,
    SampleRecord,
    dataset_folder,
    shard_key,
)
from app.errors import DataError
from app.storage.local import LocalStorage

SETTINGS = CacheSettings({"dtype": "fp32", "frames": 9})


def cache(root: Path, settings: CacheSettings = SETTINGS) -> LatentCache:
    return LatentCache(lambda name: LocalStorage(root / name), settings)


def test_a_key_follows_from_video_caption_and_settings(tmp_path: Path) -> None:
    plain = cache(tmp_path).key_of("aa", "a cat")

    assert plain == cache(tmp_path / "elsewhere").key_of("aa", "a cat")
    other = cache(tmp_path, CacheSettings({"dtype": "bf16", "frames": 9}))
    keys = {
        plain,
        cache(tmp_path).key_of("ab", "a cat"),
        cache(tmp_path).key_of("aa", "a dog"),
        other.key_of("aa", "a cat"),
    }
    assert len(keys) == 4
    assert all(len(key) == 64 for key in keys)


def test_settings_of_the_same_values_have_the_same_folder() -> None:
    turned = CacheSettings({"frames": 9, "dtype": "fp32"})

    assert turned.digest == SETTINGS.digest
    assert turned.to_json() == SETTINGS.to_json()


def test_differences_name_both_values() -> None:
    other = CacheSettings({"dtype": "bf16", "frames": 9, "fps": 8.0})

    assert SETTINGS.differences(other) == {"dtype": ("fp32", "bf16"), "fps": (None, 8.0)}


def test_settings_are_written_once_and_read_back(tmp_path: Path) -> None:
    cache(tmp_path).begin()
    path = tmp_path / SETTINGS.digest / SETTINGS_NAME
    before = path.stat().st_mtime_ns

    cache(tmp_path).begin()

    assert path.stat().st_mtime_ns == before
    assert CacheSettings.from_json(path.read_bytes()) == SETTINGS


@pytest.mark.parametrize("data", [b"", b"[1]", b'{"format_version": 9, "settings": {}}'])
def test_files_of_others_are_no_settings(data: bytes) -> None:
    assert CacheSettings.from_json(data) is None


def test_only_whole_entries_are_present(tmp_path: Path) -> None:
    key = "ab" * 32
    made = cache(tmp_path)
    made.storage.write_small(shard_key(key), b"12345")
    made.storage.write_small("shards/ab/readme.txt", b"no entry")
    # What a killed writer leaves of a local file.
    (tmp_path / SETTINGS.digest / "shards/ab" / f".{key}.part-1-0123abcd").write_bytes(b"12")

    assert made.present() == {key: 5}
    assert made.size_of(key) == 5
    assert made.size_of("cd" * 32) is None


@pytest.mark.parametrize(("total", "count"), [(10, 3), (2, 5), (0, 2), (7, 1), (64, 8)])
def test_parts_together_are_everything_once_and_even(total: int, count: int) -> None:
    parts = [list(Part(index, count).of(total)) for index in range(count)]

    assert [number for part in parts for number in part] == list(range(total))
    assert all(abs(len(a) - len(b)) <= 1 for a, b in pairwise(parts))


def test_lists_of_several_parts_come_together_by_name(tmp_path: Path) -> None:
    made = cache(tmp_path)
    first = [SampleRecord("a", "1", "k" * 64, 7, "a.mp4")]
    second = [SampleRecord("b", "2", "", 0, "b.mp4", "truncated", "cut at 7", "ff" * 32)]
    made.write_records("s3://clips", Part(0, 2), first)
    made.write_records("s3://clips", Part(1, 2), second)
    made.write_records("s3://other", Part(0, 1), [SampleRecord("c", "3")])

    assert made.records("s3://clips") == {"a": first, "b": second}
    assert made.records("s3://nothing") == {}


@pytest.mark.parametrize("cut", [1, 40, -5])
def test_a_cut_list_is_refused_with_its_name(tmp_path: Path, cut: int) -> None:
    made = cache(tmp_path)
    made.write_records("d", Part(), [SampleRecord("a", "1"), SampleRecord("b", "2")])
    key = f"{dataset_folder('d')}{Part().name}"
    made.storage.write_small(key, made.storage.read_small(key)[:cut])

    with pytest.raises(DataError, match="cannot be read") as caught:
        made.records("d")

    assert caught.value.where.endswith("part-00000-of-00001.jsonl")
