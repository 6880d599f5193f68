"""Parts, parallel tasks, and a download from a client that answers from memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from app.errors import DataError
from app.storage.failures import FailureKind, StorageFailure
from app.storage.objects import Receipt
from app.storage.retry import Clock, Retrier, Streams
from app.storage.s3_bulk import BulkClient
from app.storage.settings import StorageSettings
from app.storage.transfer import Transfers, part_size, run_all

MIB = 2**20
DATA = bytes(range(100))


class Memory:
    """A client whose object is DATA; the first range breaks after two bytes."""

    def __init__(self, *, garbled: int = 0) -> None:
        self.garbled = garbled  # answers whose first byte is wrong
        self.asked: list[tuple[int, int]] = []

    def read_range(
        self, key: str, start: int, stop: int, sink: Callable[[bytes], None], etag: str | None
    ) -> int:
        self.asked.append((start, stop))
        if len(self.asked) == 1:
            sink(DATA[start : start + 2])
            raise StorageFailure(FailureKind.CONNECTION, "reset", progressed=True)
        data = bytearray(DATA[start:stop])
        if self.garbled:
            self.garbled -= 1
            data[0] ^= 1
        sink(bytes(data))
        return len(DATA)


def transfers(client: Memory) -> Transfers:
    clock = Clock(sleep=lambda _: None)
    settings = StorageSettings(range_bytes=64, download_streams=1)
    retrier = Retrier(60, clock, refresh=lambda: None, throttled=lambda: None)
    return Transfers(settings, retrier, Streams(1, clock), lambda: cast("BulkClient", client))


def receipt(piece_bytes: int = 200) -> Receipt:
    return Receipt("k", len(DATA), piece_bytes, (hashlib.sha256(DATA).hexdigest(),))


def test_a_range_that_breaks_continues_where_it_stopped(tmp_path: Path) -> None:
    client = Memory()

    found = transfers(client).download("k", "s3://b/k", tmp_path / "x", len(DATA), None)

    assert (tmp_path / "x").read_bytes() == DATA
    assert client.asked == [(0, 64), (2, 64), (64, 100)]
    assert found.sha256 == (hashlib.sha256(DATA).hexdigest(),)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_broken_piece_is_read_once_more(tmp_path: Path) -> None:
    found = transfers(Memory(garbled=2)).download(
        "k", "s3://b/k", tmp_path / "x", len(DATA), receipt()
    )

    assert (tmp_path / "x").read_bytes() == DATA
    assert found == receipt()


def test_a_piece_that_is_broken_twice_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="piece 0 has a different sha256"):
        transfers(Memory(garbled=9)).download("k", "s3://b/k", tmp_path / "x", len(DATA), receipt())

    assert list(tmp_path.iterdir()) == []


def test_an_object_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="it has 100 bytes, expected 60"):
        transfers(Memory()).download("k", "s3://b/k", tmp_path / "x", 60, None)


def test_bytes_of_a_range() -> None:
    assert transfers(Memory()).read_bytes("k", "s3://b/k", 10, 90) == DATA[10:90]
    assert transfers(Memory()).read_bytes("k", "s3://b/k", 5, 5) == b""
    with pytest.raises(DataError, match="no range 7-5"):
        transfers(Memory()).read_bytes("k", "s3://b/k", 7, 5)


@pytest.mark.parametrize(
    ("size", "part"), [(0, 16 * MIB), (160_000 * MIB, 16 * MIB), (160_001 * MIB, 17 * MIB)]
)
def test_parts_grow_to_stay_within_ten_thousand(size: int, part: int) -> None:
    assert part_size(size, 16 * MIB) == part
    assert -(-size // part) <= 10_000


def test_results_come_in_order_and_the_first_error_ends_the_rest() -> None:
    def fail() -> Any:
        raise ValueError("third")

    assert run_all([lambda n=n: n for n in range(9)], 4) == list(range(9))  # type: ignore[misc]
    with pytest.raises(ValueError, match="third"):
        run_all([lambda: 1, lambda: 2, fail], 2)
