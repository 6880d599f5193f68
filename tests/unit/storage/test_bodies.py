"""Bodies of answers: whole, cut, without end, too large."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from app.storage.bodies import BLOCK_BYTES, check_etag, drain
from app.storage.failures import FailureKind, StorageFailure
from app.storage.settings import StorageSettings

SETTINGS = StorageSettings()


def reader(*blocks: bytes | StorageFailure) -> Callable[[int], bytes]:
    left = list(blocks)

    def read(size: int) -> bytes:
        block = left.pop(0) if left else b""
        if isinstance(block, StorageFailure):
            raise block
        assert len(block) <= size
        return block

    return read


def test_all_blocks_arrive_in_order() -> None:
    found: list[bytes] = []

    drain(reader(b"ab", b"c"), found.append, SETTINGS, count=3)
    drain(reader(b"de", b"f"), found.append, SETTINGS, count=None)

    assert b"".join(found) == b"abcdef"


def test_no_more_is_read_than_wanted() -> None:
    sizes: list[int] = []

    def read(size: int) -> bytes:
        sizes.append(size)
        return bytes(size)

    drain(read, lambda _: None, SETTINGS, count=BLOCK_BYTES + 7)

    assert sizes == [BLOCK_BYTES, 7]


@pytest.mark.parametrize(("blocks", "progressed"), [((), False), ((b"ab",), True)])
def test_an_early_end_is_a_lost_connection(blocks: tuple[bytes, ...], progressed: bool) -> None:
    with pytest.raises(StorageFailure, match="ended after") as caught:
        drain(reader(*blocks), lambda _: None, SETTINGS, count=3)

    assert caught.value.kind is FailureKind.CONNECTION
    assert caught.value.progressed is progressed


def test_a_failure_in_the_middle_knows_that_bytes_arrived() -> None:
    failure = StorageFailure(FailureKind.CONNECTION, "reset")

    with pytest.raises(StorageFailure, match="reset") as caught:
        drain(reader(b"ab", failure), lambda _: None, SETTINGS, count=3)

    assert caught.value.progressed


def test_a_page_beyond_the_limit_is_refused() -> None:
    with pytest.raises(StorageFailure, match="over 3 bytes"):
        drain(reader(b"ab", b"cd"), lambda _: None, SETTINGS, count=None, limit=3)


def test_a_slow_connection_is_given_up_but_not_at_its_last_byte() -> None:
    slow = StorageSettings(slow_window_s=0.0, slow_bytes_per_s=10**12)

    with pytest.raises(StorageFailure) as caught:
        drain(reader(b"a", b"b"), lambda _: None, slow, count=2)
    drain(reader(b"a"), lambda _: None, slow, count=1)

    assert caught.value.kind is FailureKind.SLOW


def test_only_two_known_etags_can_differ() -> None:
    for pair in ((None, "a"), ("a", None), ("a", "a")):
        check_etag(*pair)

    with pytest.raises(StorageFailure, match="it changed"):
        check_etag("a", "b")
