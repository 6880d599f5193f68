"""Faults between client and server cost time, not results."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.errors import AccessDeniedError, CogvxError, DataError, RetryableError
from app.storage.objects import Receipt
from app.storage.retry import Clock
from app.storage.s3 import S3Storage
from app.storage.settings import MIB, StorageSettings
from tests.support.fault_proxy import STANDARD_MIX, FaultProxy, Rule
from tests.support.s3_servers import RunningServer, set_environment

SIZE = 3 * MIB + 7


@pytest.fixture
def proxy(rclone_server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    with FaultProxy(rclone_server.port, seed=7) as running:
        set_environment(monkeypatch, rclone_server.behind(running.endpoint))
        yield running


@pytest.fixture
def moto_proxy(moto_server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    with FaultProxy(moto_server.port, seed=7) as running:
        set_environment(monkeypatch, moto_server.behind(running.endpoint))
        yield running


@pytest.fixture
def retries() -> Iterator[Counter[str]]:
    """Repeated requests by class of failure, as the log tells them."""
    counts: Counter[str] = Counter()

    class Counting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() == "storage request repeated":
                counts[vars(record)["reason"].partition(":")[0]] += 1

    logger, handler = logging.getLogger("app.storage.retry"), Counting()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield counts
    logger.removeHandler(handler)
    logger.setLevel(before)


def storage_behind(proxy: FaultProxy, prefix: str, **changes: Any) -> S3Storage:
    """A storage that waits shortly and uses small ranges and parts."""
    settings = StorageSettings(
        **{
            "endpoint": proxy.endpoint,
            "range_bytes": MIB,
            "part_bytes": 5 * MIB,
            "deadline_s": 15.0,
            "read_timeout_s": 0.7,
            **changes,
        }
    )
    clock = Clock(sleep=lambda seconds: time.sleep(min(seconds, 0.05)))
    return S3Storage("bucket", prefix, settings, clock)


def put_file(storage: S3Storage, folder: Path, size_bytes: int) -> tuple[bytes, Receipt]:
    data = os.urandom(size_bytes)
    (folder / "in.bin").write_bytes(data)
    return data, storage.upload(folder / "in.bin", "x.bin")


READ_FAULTS: dict[str, Rule] = {
    "503": {"kind": "status"},
    "500": {"kind": "status", "status": 500, "code": "InternalError"},
    "reset before": {"kind": "reset_before"},
    "reset headers": {"kind": "reset_headers"},
    "reset in body": {"kind": "reset_body", "after_bytes": 300_000},
    "truncated": {"kind": "truncate", "after_bytes": 300_000},
    "stall": {"kind": "stall", "after_bytes": 300_000, "delay_s": 1.5},
    "too long": {"kind": "wrong_length", "extra": 1000},
    "too short": {"kind": "wrong_length", "extra": -1000},
    "consistent but short": {"kind": "short_ok", "after_bytes": 1000},
}


@pytest.mark.parametrize("fault", READ_FAULTS)
def test_a_fault_while_reading_changes_no_byte(
    proxy: FaultProxy, retries: Counter[str], tmp_path: Path, fault: str
) -> None:
    storage = storage_behind(proxy, tmp_path.name)
    data, _ = put_file(storage, tmp_path, SIZE)
    rule = {**READ_FAULTS[fault], "match": r"^GET .*x\.bin", "first": 1, "limit": 3}
    proxy.set_rules([rule])

    receipt = storage.download("x.bin", tmp_path / "out.bin")

    assert (tmp_path / "out.bin").read_bytes() == data
    assert receipt.sha256 == (hashlib.sha256(data).hexdigest(),)
    assert proxy.stats()[rule["kind"]] >= 1
    assert retries.total() >= 1


def test_only_the_missing_range_is_read_again(proxy: FaultProxy, tmp_path: Path) -> None:
    storage = storage_behind(proxy, tmp_path.name, range_bytes=8 * MIB)
    data, _ = put_file(storage, tmp_path, SIZE)
    proxy.set_rules([{"kind": "truncate", "match": "^GET", "after_bytes": 2 * MIB, "limit": 1}])
    asked: list[tuple[int, int]] = []
    bulk = storage._bulk.get()
    original = bulk.read_range

    def spied(key: str, start: int, stop: int, *rest: Any) -> int:
        asked.append((start, stop))
        return original(key, start, stop, *rest)

    bulk.read_range = spied  # type: ignore[method-assign,assignment]

    storage.download("x.bin", tmp_path / "out.bin")

    assert asked == [(0, SIZE), (2 * MIB, SIZE)]
    assert (tmp_path / "out.bin").read_bytes() == data


def test_a_range_that_is_cut_again_and_again_comes_through(
    proxy: FaultProxy, tmp_path: Path
) -> None:
    storage = storage_behind(proxy, tmp_path.name)
    data, _ = put_file(storage, tmp_path, SIZE)
    proxy.set_rules([{"kind": "reset_body", "match": "^GET", "after_bytes": 150_000}])

    storage.download("x.bin", tmp_path / "out.bin")

    assert (tmp_path / "out.bin").read_bytes() == data


@pytest.mark.parametrize("kind", ["short_ok", "wrong_length"])
def test_a_server_that_always_sends_too_little_is_refused(
    proxy: FaultProxy, tmp_path: Path, kind: str
) -> None:
    storage = storage_behind(proxy, tmp_path.name)
    put_file(storage, tmp_path, SIZE)
    proxy.set_rules([{"kind": kind, "match": "^GET", "after_bytes": 1000, "extra": -1000}])

    with pytest.raises(DataError, match=r"bytes 0-.*\n.*x\.bin") as caught:
        storage.read_range("x.bin", 0, MIB)

    assert caught.value.exit_code == 65
    assert proxy.stats()[kind] == 3


def test_a_small_object_that_comes_short_is_read_again(proxy: FaultProxy, tmp_path: Path) -> None:
    storage = storage_behind(proxy, tmp_path.name)
    storage.write_small("a.json", b"0123456789")
    proxy.set_rules([{"kind": "short_ok", "match": "^GET", "after_bytes": 4, "limit": 1}])

    assert storage.read_small("a.json") == b"0123456789"

    proxy.set_rules([{"kind": "short_ok", "match": "^GET", "after_bytes": 4}])
    with pytest.raises(DataError, match="has 10 bytes and 4 came"):
        storage.read_small("a.json")


def test_one_flipped_bit_is_read_again_and_a_lasting_one_refused(
    proxy: FaultProxy, tmp_path: Path
) -> None:
    storage = storage_behind(proxy, tmp_path.name)
    data, receipt = put_file(storage, tmp_path, SIZE)
    corrupt: Rule = {"kind": "corrupt", "match": "^GET", "after_bytes": 500}
    proxy.set_rules([{**corrupt, "limit": 1}])

    storage.download("x.bin", tmp_path / "out.bin", receipt)

    assert (tmp_path / "out.bin").read_bytes() == data
    proxy.set_rules([corrupt])
    with pytest.raises(DataError, match=r"piece 0 .*\n.*x\.bin"):
        storage.download("x.bin", tmp_path / "other.bin", receipt)
    assert not (tmp_path / "other.bin").exists()


def test_a_dripping_connection_is_dropped(
    proxy: FaultProxy, retries: Counter[str], tmp_path: Path
) -> None:
    storage = storage_behind(proxy, tmp_path.name, slow_window_s=0.5, range_bytes=4 * MIB)
    data, _ = put_file(storage, tmp_path, SIZE)
    proxy.set_rules([{"kind": "drip", "match": "^GET", "bps": 60_000, "limit": 1}])
    started = time.monotonic()

    read = storage.read_range("x.bin", 0, SIZE)

    assert read == data
    assert retries == {"slow": 1}
    assert time.monotonic() - started < 10


WRITE_FAULTS: dict[str, Rule] = {
    "503": {"kind": "status"},
    "cut": {"kind": "cut_upload", "after_bytes": 70_000},
    "cut at once": {"kind": "cut_upload", "after_bytes": 0},
    "answer lost": {"kind": "reset_headers"},
}


@pytest.mark.parametrize("fault", WRITE_FAULTS)
@pytest.mark.parametrize("size_bytes", [100_000, 11 * MIB], ids=["one PUT", "parts"])
@pytest.mark.parametrize("through", ["proxy", "moto_proxy"])
def test_a_fault_while_writing_changes_no_byte(
    request: pytest.FixtureRequest, tmp_path: Path, fault: str, size_bytes: int, through: str
) -> None:
    proxy: FaultProxy = request.getfixturevalue(through)
    storage = storage_behind(proxy, tmp_path.name, read_timeout_s=5.0)
    proxy.set_rules([{**WRITE_FAULTS[fault], "match": "^(PUT|POST)", "first": 1}])

    data, receipt = put_file(storage, tmp_path, size_bytes)

    assert proxy.stats()[WRITE_FAULTS[fault]["kind"]] >= 1
    proxy.set_rules([])
    storage.download("x.bin", tmp_path / "out.bin", receipt)
    assert (tmp_path / "out.bin").read_bytes() == data


def test_a_failed_upload_leaves_the_old_object_and_no_parts(
    proxy: FaultProxy, tmp_path: Path
) -> None:
    storage = storage_behind(proxy, tmp_path.name, deadline_s=1.0)
    storage.write_small("x.bin", b"old")
    proxy.set_rules([{"kind": "status", "match": "partNumber=2"}])

    with pytest.raises(RetryableError, match=r"x\.bin") as caught:
        put_file(storage, tmp_path, 11 * MIB)

    assert caught.value.exit_code == 138
    assert storage.read_small("x.bin") == b"old"
    assert list(storage.list_uploads()) == []


def test_an_outage_shorter_than_the_deadline_costs_time_only(
    proxy: FaultProxy, retries: Counter[str], tmp_path: Path
) -> None:
    storage = storage_behind(proxy, tmp_path.name)
    proxy.outage(1.5)

    storage.write_small("a.json", b"{}")
    proxy.outage(1.0)

    assert [entry.key for entry in storage.list()] == ["a.json"]
    assert retries["connection"] >= 2


def test_an_outage_longer_than_the_deadline_asks_for_a_new_start(
    proxy: FaultProxy, tmp_path: Path
) -> None:
    storage = storage_behind(proxy, tmp_path.name)
    proxy.outage(60)

    with pytest.raises(RetryableError, match=r"gave up after \d s.*\n.*s3://bucket") as caught:
        storage.check_reachable(deadline_s=1.0)

    assert caught.value.exit_code == 138


def test_a_wrong_secret_is_denied_without_a_retry_and_without_naming_it(
    rclone_server: RunningServer, retries: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = {**rclone_server.environment, "AWS_SECRET_ACCESS_KEY": "hunter2hunter2"}
    set_environment(monkeypatch, wrong)
    settings = StorageSettings.from_environment(wrong)
    storage = S3Storage("bucket", "x", settings)
    calls = (
        storage.check_reachable,
        storage.list,
        lambda: storage.read_range("a", 0, 1),
        lambda: storage.write_small("a", b""),
    )

    for call in calls:
        with pytest.raises(AccessDeniedError) as caught:
            call()
        assert caught.value.exit_code == 77
        assert "hunter2" not in str(caught.value)
        assert "hunter2" not in repr(caught.value.__cause__)
    assert not retries


def test_missing_credentials_are_said_so(
    rclone_server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{rclone_server.port}",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
    }
    set_environment(monkeypatch, environment)
    storage = S3Storage("bucket", "x", StorageSettings.from_environment(environment))

    for call in (storage.check_reachable, lambda: storage.read_range("a", 0, 1)):
        with pytest.raises(AccessDeniedError, match="no credentials were found"):
            call()
    assert storage.identity()["credentials"] == "none"


@pytest.mark.parametrize("through", ["proxy", "moto_proxy"])
def test_the_standard_mix_changes_no_byte(
    request: pytest.FixtureRequest, tmp_path: Path, through: str
) -> None:
    proxy: FaultProxy = request.getfixturevalue(through)
    # Shorter stalls and more faults than in a run, since there are fewer requests.
    proxy.set_rules([{**rule, "delay_s": 1.0, "rate": 4 * rule["rate"]} for rule in STANDARD_MIX])
    storage = storage_behind(proxy, tmp_path.name, range_bytes=128 * 1024)
    for number in range(2):
        data = os.urandom(SIZE + number)
        (tmp_path / "in").write_bytes(data)
        receipt = storage.upload(tmp_path / "in", f"a/{number}.bin")
        storage.download(f"a/{number}.bin", tmp_path / "out", receipt)
        assert (tmp_path / "out").read_bytes() == data

    assert [entry.size_bytes for entry in storage.list("a/")] == [SIZE, SIZE + 1]
    assert proxy.stats()["requests"] - proxy.stats()["passed"] >= 10


def test_an_object_that_changed_since_the_listing_is_refused(
    moto_server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, moto_server.environment)
    settings = StorageSettings.from_environment(moto_server.environment)
    storage = S3Storage("bucket", tmp_path.name, settings)
    storage.write_small("shard.tar", b"first")
    listed = storage.list()[0]
    storage.write_small("shard.tar", b"other")

    with pytest.raises(CogvxError, match=r"it changed\n.*shard\.tar") as caught:
        storage.download("shard.tar", tmp_path / "out", listed)

    assert caught.value.exit_code == 65
