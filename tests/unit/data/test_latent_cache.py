"""Names of the latent cache: what changes them, and what is found under them."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import safetensors.torch
import torch

from app.data.latent_cache import (
    SETTINGS_NAME,
    CacheSettings,
    EncodePart,
    LatentCache,
    LatentEntry,
    SampleRecord,
    dataset_folder,
    packed,
    shard_key,
)
from app.errors import DataError
from app.storage.local import LocalStorage

ENDS = [("00", "00"), ("00", "01"), ("7f", "00"), ("ff", "ff")]
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

    listing = made.present()
    assert [bytes(one).hex() for one in listing.keys] == [key]
    assert listing.size_of(key) == made.size_of(key) == 5
    assert listing.size_of("cd" * 32) is made.size_of("cd" * 32) is None


def test_a_listing_is_forty_bytes_an_entry_and_knows_each_size(tmp_path: Path) -> None:
    made = cache(tmp_path)
    # A zero byte at either end is a part of a key like any other.
    sizes = {f"{first}{'0f' * 30}{last}": 3 + i for i, (first, last) in enumerate(ENDS)}
    for key, size in sizes.items():
        made.storage.write_small(shard_key(key), b"x" * size)

    listing = made.present()

    asked = [*sizes, "f0" * 32, "no key"]
    assert listing.sizes_of(packed(asked)).tolist() == [*sizes.values(), -1, -1]
    assert listing.keys.nbytes + listing.sizes.nbytes == 40 * len(sizes)
    assert cache(tmp_path / "empty").present().sizes_of(packed(asked)).max() == -1


@pytest.mark.parametrize(("total", "count"), [(10, 3), (2, 5), (0, 2), (7, 1), (64, 8)])
def test_parts_together_are_everything_once_and_even(total: int, count: int) -> None:
    parts = [list(EncodePart(index, count).of(total)) for index in range(count)]

    assert [number for part in parts for number in part] == list(range(total))
    assert all(abs(len(a) - len(b)) <= 1 for a, b in pairwise(parts))


def test_lists_of_several_parts_come_one_after_the_other(tmp_path: Path) -> None:
    made = cache(tmp_path)
    first = [SampleRecord("a", "1", "k" * 64, 7, "a.mp4")]
    second = [SampleRecord("b", "2", "", 0, "b.mp4", "truncated", "cut at 7", "ff" * 32)]
    made.write_records("s3://clips", EncodePart(0, 2), first)
    made.write_records("s3://clips", EncodePart(1, 2), second)
    made.write_records("s3://other", EncodePart(0, 1), [SampleRecord("c", "3")])

    assert list(made.records("s3://clips")) == [*first, *second]
    assert list(made.records("s3://nothing")) == []


@pytest.mark.parametrize("piece", [1, 7, 64, 1000])
def test_a_list_is_read_in_pieces_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    made = cache(tmp_path)
    written = [SampleRecord(f"ä{number}", "1", "ab" * 32, number) for number in range(20)]
    made.write_records("d", EncodePart(), written)
    monkeypatch.setattr("app.data.latent_cache.READ_BYTES", piece)

    assert list(made.records("d")) == written


@pytest.mark.parametrize("cut", [1, 40, -5])
def test_a_cut_list_is_refused_with_its_name(tmp_path: Path, cut: int) -> None:
    made = cache(tmp_path)
    made.write_records("d", EncodePart(), [SampleRecord("a", "1"), SampleRecord("b", "2")])
    key = f"{dataset_folder('d')}{EncodePart().name}"
    made.storage.write_small(key, made.storage.read_small(key)[:cut])

    with pytest.raises(DataError, match="cannot be read") as caught:
        list(made.records("d"))

    assert caught.value.where.endswith("part-00000-of-00001.jsonl")


KEY = "ab" * 32


def entry(dtype: torch.dtype = torch.float32, *, with_image: bool = False) -> LatentEntry:
    torch.manual_seed(0)
    frame = torch.randint(0, 256, (1, 3, 5, 7), dtype=torch.uint8)
    return LatentEntry(
        mean=torch.randn(3, 4, 2, 5).to(dtype),
        logvar=torch.randn(3, 4, 2, 5).to(dtype),
        text=torch.randn(16, 6).to(dtype),
        first_frame=frame if with_image else None,
        caption='a "cat"\nund ein Hündchen',
        num_frames=9,
        fps=23.976023976,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("with_image", [False, True])
def test_everything_comes_back_bit_for_bit(dtype: torch.dtype, with_image: bool) -> None:
    written = entry(dtype, with_image=with_image)

    read = LatentEntry.from_bytes(written.to_bytes(KEY), KEY, "here")

    for name in ("mean", "logvar", "text"):
        assert getattr(read, name).dtype == dtype
        assert torch.equal(getattr(read, name), getattr(written, name))
    assert (read.caption, read.num_frames, read.fps) == (written.caption, 9, 23.976023976)
    assert (read.first_frame is not None) == with_image
    if read.first_frame is not None:
        assert torch.equal(read.first_frame, written.first_frame)


def test_the_safetensors_library_reads_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(entry(torch.bfloat16, with_image=True).to_bytes(KEY))

    tensors = safetensors.torch.load_file(path)

    assert tensors.keys() == {"mean", "logvar", "text", "first_frame"}
    assert torch.equal(tensors["mean"], entry(torch.bfloat16).mean)
    assert tensors["first_frame"].shape == (1, 3, 5, 7)


def test_the_same_entry_gives_the_same_bytes() -> None:
    assert entry().to_bytes(KEY) == replace(entry()).to_bytes(KEY)


def test_a_flipped_bit_is_found_wherever_it_is() -> None:
    whole = entry().to_bytes(KEY)
    table_ends = 8 + int.from_bytes(whole[:8], "little")
    padding = len(whole[:table_ends]) - len(whole[:table_ends].rstrip(b" "))

    for place in [*range(table_ends - padding), *range(table_ends, len(whole), 29)]:
        data = bytearray(whole)
        data[place] ^= 1
        with pytest.raises(DataError, match="damaged") as caught:
            LatentEntry.from_bytes(bytes(data), KEY, "s3://b/x")

    assert caught.value.where == "s3://b/x"
    assert "cogvx encode" in caught.value.fix


@pytest.mark.parametrize("length", [0, 5, 8, 200, -1])
def test_a_cut_file_is_found(length: int) -> None:
    data = entry().to_bytes(KEY)

    with pytest.raises(DataError, match="damaged"):
        LatentEntry.from_bytes(data[:length], KEY, "here")


def test_the_entry_of_another_clip_is_refused() -> None:
    with pytest.raises(DataError, match="it is the entry abab"):
        LatentEntry.from_bytes(entry().to_bytes(KEY), "cd" * 32, "here")
