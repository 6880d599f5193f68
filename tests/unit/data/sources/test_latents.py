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
    SampleRecord,
    shard_key,
)
from app.data.sources.latents import Coverage, LatentSource, content_of, coverage
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


def covered(*records: SampleRecord, size_bytes: int | None = 100) -> Coverage:
    present = {} if size_bytes is None else {KEY: size_bytes}
    return coverage(Samples({}), {"[0]": records}, present)


def test_a_record_counts_while_its_entry_is_there_in_its_size() -> None:
    assert covered(GOOD) == Coverage((GOOD,), (), ())
    assert covered(GOOD, size_bytes=99) == Coverage((None,), (), ("[0]",))
    assert covered(GOOD, size_bytes=None) == Coverage((None,), (), ("[0]",))
    assert covered() == Coverage((None,), (), ("[0]",))


def test_a_sample_known_only_from_older_files_has_changed() -> None:
    older = replace(GOOD, identity="then")

    assert covered(older) == Coverage((None,), ("[0]",), ())
    assert covered(older, GOOD) == Coverage((GOOD,), (), ())


@pytest.mark.parametrize("records", [(GOOD, BAD), (BAD, GOOD)])
def test_an_entry_is_better_than_the_note_that_the_clip_is_bad(
    records: tuple[SampleRecord, ...],
) -> None:
    assert covered(*records).records == (GOOD,)
    assert covered(*records, size_bytes=None).records == (BAD,)


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
    records = [replace(GOOD, size_bytes=len(data)), BAD]

    source = LatentSource(Samples({}, {}), cache, records, SourceSettings(cache_dir=tmp_path))

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

    source = LatentSource(Samples({}), cache, [GOOD], SourceSettings(cache_dir=tmp_path))

    with pytest.raises(BadClipError) as caught:
        source.read(0, 0)
    assert (caught.value.reason, caught.value.where) == ("damaged_entry", "a.mp4")
