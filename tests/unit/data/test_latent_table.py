"""The compact table of a latent cache: what comes back out of it, and how many bytes it takes."""

from __future__ import annotations

import hashlib
import os
import random
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from app.data.latent_cache import SampleRecord
from app.data.latent_table import LatentTable, TableBuilder

MARK = bytes(range(16))
ROW_BYTES = 32 + 4 + 4


def record_of(number: int, shown: str) -> SampleRecord:
    key = hashlib.sha256(str(number).encode()).hexdigest()
    return SampleRecord(f"clips/0.tar#{number}", "", key, 6_300_000 + number % 40, shown)


def built(*records: SampleRecord, order: list[int] | None = None) -> LatentTable:
    builder = TableBuilder(len(records))
    for index in order or range(len(records)):
        builder.put(np.array([index]), [records[index]])
    return builder.finished()


def mixed(count: int) -> list[SampleRecord]:
    """Usable clips, some called what their source calls them, and clips that cannot be used."""
    records = [record_of(n, f"0.tar:clip {n}\n\u00e4") for n in range(count)]
    for n in range(0, count, 7):
        records[n] = record_of(n, records[n].name)
    for n in range(3, count, 50):
        name = records[n].name
        sha256 = "ab" * 32 if n % 4 else None
        records[n] = SampleRecord(name, "", "", 0, f"{n}.mp4", "truncated", "it\nis cut", sha256)
    return records


@pytest.mark.parametrize("count", [0, 1, 64, 65, 400])
def test_every_record_comes_back_in_memory_and_from_a_file(tmp_path: Path, count: int) -> None:
    records = mixed(count)
    order = random.Random(0).sample(range(count), count)
    table = built(*records, order=order)
    with (tmp_path / "table").open("w+b") as file:
        table.write(file, MARK)
        shared = LatentTable.mapped(file, MARK)
    os.unlink(tmp_path / "table")

    for one in (table, shared):
        assert len(one) == count
        assert [one.record(i, r.name) for i, r in enumerate(records)] == records
        assert [(one.key(i), one.size(i)) for i in range(count)] == [
            (record.key, record.size_bytes) for record in records
        ]
        assert one.largest == max((record.size_bytes for record in records), default=0)
    assert shared.nbytes == table.nbytes


def test_the_last_record_of_a_sample_counts() -> None:
    builder = TableBuilder(1)
    bad = SampleRecord("a", "", "", 0, "a", "truncated", "cut")
    for record in (record_of(1, "b"), bad, record_of(2, "clips/0.tar#2")):
        builder.put(np.array([0]), [record])

    assert builder.finished().record(0, "clips/0.tar#2") == record_of(2, "clips/0.tar#2")


def test_a_sample_of_which_nothing_is_known_has_neither_key_nor_reason() -> None:
    record = TableBuilder(1).finished().record(0, "a", "now")

    assert record == SampleRecord("a", "now", shown="a")


def test_another_file_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "table").open("w+b") as file:
        built(record_of(1, "b")).write(file, MARK)
        with pytest.raises(ValueError, match="another file"):
            LatentTable.mapped(file, MARK[::-1])


def random_uuid(number: int) -> str:
    return str(uuid.UUID(int=random.Random(number).getrandbits(128), version=4))


@pytest.mark.parametrize(
    ("name", "note_bytes"),
    [
        (lambda number: f"clips/0.tar#{number}", 0),  # what its source calls it
        (lambda number: f"{number // 1000:05}.tar:{number:09}", 8),
        (lambda number: f"{number // 1000:05}.tar:{random_uuid(number)}", 24),
    ],
    ids=["folder", "numbers", "random"],
)
def test_a_sample_takes_at_most_64_bytes(
    tmp_path: Path, name: Callable[[int], str], note_bytes: int
) -> None:
    count = 10_000

    table = built(*(record_of(number, name(number)) for number in range(count)))

    # key 32, numbers of its size 4 and of its note 4, and its part of the compressed text
    assert table.keys.nbytes + table.sizes.nbytes + table.notes.nbytes == ROW_BYTES * count
    assert ROW_BYTES + note_bytes <= 64
    lengths = 8 * (40 + 1)
    assert table.nbytes <= (ROW_BYTES + note_bytes) * count + lengths
    with (tmp_path / "table").open("w+b") as file:
        table.write(file, MARK)
        assert os.fstat(file.fileno()).st_size == table.nbytes + len(MARK) + 4 * 8
