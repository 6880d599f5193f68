"""Which samples a latent cache covers, and what a covered sample gives."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from app.data.bad_clip import BadClipError
from app.data.batch import LOGVAR, MEAN, TEXT
from app.data.latent_cache import (
    CacheSettings,
    LatentCache,
    LatentEntry,
    Listing,
    SampleRecord,
    packed,
    shard_key,
)
from app.data.latent_table import LatentTable, TableBuilder
from app.data.sources.latents import LatentSource, content_of, coverage
from app.data.sources.protocols import Original
from app.data.sources.registered import MapSource
from app.data.sources.settings import SourceSettings
from app.errors import DataError
from app.storage.local import LocalStorage

KEY = "ab" * 32
GOOD = SampleRecord("[0]", "now", KEY, 100, "a.mp4")
BAD = SampleRecord("[0]", "now", shown="a.mp4", reason="truncated", detail="it is cut")


class Samples(MapSource):
    """Samples of equal items, which are now in the state that `identity` names."""

    def __init__(self, *items: object) -> None:
        super().__init__(items, "samples")

    def identity(self, index: int) -> str:
        return "now"


def listing(size_bytes: int | None) -> Listing:
    sizes = [] if size_bytes is None else [size_bytes]
    return Listing(packed([KEY] * len(sizes)), np.array(sizes, dtype=np.int64))


def covered(
    *records: SampleRecord, size_bytes: int | None = 100
) -> tuple[SampleRecord | None, list[int], list[int]]:
    """The record of the one sample, if any; who has changed; who is missing."""
    found = coverage(Samples({}), records, listing(size_bytes))
    record = found.rows.finished().record(0, "[0]", "now")
    known = record if record.key or record.reason else None
    return known, found.changed.tolist(), found.missing.tolist()


def test_a_record_counts_while_its_entry_is_there_in_its_size() -> None:
    assert covered(GOOD) == (GOOD, [], [])
    assert covered(GOOD, size_bytes=99) == (None, [], [0])
    assert covered(GOOD, size_bytes=None) == (None, [], [0])
    assert covered() == (None, [], [0])
    assert covered(replace(GOOD, name="[1]")) == (None, [], [0])
    assert covered(replace(GOOD, key="no key")) == (None, [], [0])


def test_a_sample_known_only_from_older_files_has_changed() -> None:
    older = replace(GOOD, identity="then")

    assert covered(older) == (None, [0], [])
    assert covered(older, GOOD) == covered(GOOD, older) == (GOOD, [], [])
    assert covered(older, GOOD, size_bytes=99) == (None, [], [0])


@pytest.mark.parametrize("records", [(GOOD, BAD), (BAD, GOOD)])
def test_an_entry_is_better_than_the_note_that_the_clip_is_bad(
    records: tuple[SampleRecord, ...],
) -> None:
    assert covered(*records) == (GOOD, [], [])
    assert covered(*records, size_bytes=None) == (BAD, [], [])


@pytest.mark.parametrize("batch", [1, 2, 1000])
def test_the_first_of_equally_good_records_counts(
    monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr("app.data.sources.latents.BATCH", batch)
    second = replace(GOOD, shown="b.mp4")

    assert covered(BAD, GOOD, second)[0] == GOOD
    assert covered(second, BAD, GOOD)[0] == second


def test_entries_of_another_size_than_recorded_are_damaged() -> None:
    other = replace(GOOD, name="of another dataset", size_bytes=7)

    assert coverage(Samples({}), [GOOD, other], listing(100)).damaged == {KEY}
    assert coverage(Samples({}), [GOOD], listing(100)).damaged == set()
    assert coverage(Samples({}), [GOOD], listing(None)).damaged == set()


def test_records_find_their_samples_in_any_order() -> None:
    numbers = np.random.default_rng(0).permutation(300)
    keys = [hashlib.sha256(bytes([n % 256, n // 256])).hexdigest() for n in range(300)]
    present = Listing(packed(sorted(keys)), np.full(300, 100))
    records = [replace(GOOD, name=f"[{n}]", key=keys[n], shown=f"{n}.mp4") for n in numbers]

    found = coverage(Samples(*[{}] * 301), records, present)

    table = found.rows.finished()
    assert [table.key(index) for index in range(301)] == [*keys, ""]
    assert all(table.record(n, f"[{n}]").shown == f"{n}.mp4" for n in range(300))
    assert (found.changed.tolist(), found.missing.tolist()) == ([], [300])


def table_of(*records: SampleRecord) -> LatentTable:
    rows = TableBuilder(len(records))
    rows.put(np.arange(len(records)), records)
    return rows.finished()


def test_pixels_key_a_sample_without_files() -> None:
    video = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 2, 2)
    item = {"mp4": video, "txt": "a cat", "num_frames": 2, "fps": 8.0, "key": "one"}

    found = content_of(Samples(item), 0)

    digest = hashlib.sha256(b"('torch.uint8', (2, 3, 2, 2))" + bytes(range(24))).hexdigest()
    assert (found.video_sha256, found.caption, found.shown) == (digest, "a cat", "one")
    with pytest.raises(DataError, match="is a ndarray, not a tensor"):
        content_of(Samples({**item, "mp4": np.zeros(3)}), 0)


def test_bytes_key_a_sample_with_files() -> None:
    class Files(Samples):
        def original(self, index: int) -> Original:
            return Original(b"video", "a cat", "a.mp4", "here/a.mp4")

    found = content_of(Files({}), 0)

    assert found.video_sha256 == hashlib.sha256(b"video").hexdigest()
    assert (found.caption, found.shown, found.item) == ("a cat", "a.mp4", None)


def test_a_covered_sample_has_the_moments_of_its_entry_and_a_bad_one_its_reason(
    tmp_path: Path,
) -> None:
    cache = LatentCache(lambda name: LocalStorage(tmp_path / name), CacheSettings({}))
    moments = torch.arange(8.0).reshape(2, 1, 2, 2)
    entry = LatentEntry(moments, -moments, torch.ones(3, 4), None, "a cat", 5, 8.0)
    data = entry.to_bytes(KEY)
    cache.storage.write_small(shard_key(KEY), data)
    table = table_of(replace(GOOD, size_bytes=len(data)), BAD)

    source = LatentSource(Samples({}, {}), cache, table, SourceSettings(cache_dir=tmp_path))

    item = source.read(0, 0)
    assert torch.equal(item[MEAN], moments)
    assert torch.equal(item[LOGVAR], -moments)
    assert torch.equal(item[TEXT], torch.ones(3, 4))
    assert (item["txt"], item["num_frames"], item["key"]) == ("a cat", 5, "a.mp4")
    assert source.sample_bytes == len(data)
    with pytest.raises(BadClipError, match="truncated"):
        source.read(1, 1)


def test_a_damaged_entry_is_the_fault_of_its_sample(tmp_path: Path) -> None:
    cache = LatentCache(lambda name: LocalStorage(tmp_path / name), CacheSettings({}))
    cache.storage.write_small(shard_key(KEY), b"x" * 100)

    settings = SourceSettings(cache_dir=tmp_path)
    source = LatentSource(Samples({}), cache, table_of(GOOD), settings)

    with pytest.raises(BadClipError) as caught:
        source.read(0, 0)
    assert (caught.value.reason, caught.value.where) == ("damaged_entry", "a.mp4")
