"""Checkpoints in a bucket: complete or absent, whatever is cut, and swept afterwards."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from app.checkpoint.catalog import find_newest
from app.checkpoint.layout import CheckpointRef
from app.checkpoint.reader import open_checkpoint
from app.checkpoint.retention import apply_retention, sweep
from app.errors import CheckpointError, CogvxError, RetryableError
from app.storage.objects import ObjectMissingError
from app.storage.opening import open_storage
from app.storage.retry import Clock
from app.storage.s3 import S3Storage
from app.storage.settings import MIB, StorageSettings
from tests.support.checkpoints import made_up_values, read_back, same_bits, save
from tests.support.fault_proxy import STANDARD_MIX, FaultProxy
from tests.support.s3_servers import RunningServer, set_environment

FILES = (
    "weights-00001-of-00002.safetensors",
    "optim-00000-of-00002.safetensors",
    "rng-0001.json",
    "state.json",
    "manifest.json",
)

# rclone answers 500 now and then to two ranks that make the same folder: not the fault under test.
TRIES = 5


@pytest.fixture(params=["rclone", "moto"])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> RunningServer:
    found: RunningServer = request.getfixturevalue(f"{request.param}_server")
    set_environment(monkeypatch, found.environment)
    return found


def storage_at(endpoint: str, prefix: str, deadline_s: float) -> S3Storage:
    """A storage that waits shortly; without a deadline its first failure is final."""
    settings = StorageSettings(
        endpoint=endpoint,
        deadline_s=deadline_s,
        part_bytes=5 * MIB,
        read_timeout_s=1.0 if deadline_s else 20.0,
    )
    clock = Clock(sleep=lambda seconds: time.sleep(min(seconds, 0.05)))
    return S3Storage("bucket", prefix, settings, clock)


@pytest.mark.parametrize("file", FILES)
def test_an_upload_cut_at_any_byte_leaves_the_previous_checkpoint(
    server: RunningServer, tmp_path: Path, file: str
) -> None:
    with FaultProxy(server.port) as proxy:
        storage = storage_at(proxy.endpoint, tmp_path.name, deadline_s=20)
        # Its first failure is final, as if the process had died there.
        dying = storage_at(proxy.endpoint, tmp_path.name, deadline_s=0)
        save(storage, tmp_path / "s", step=1, world_size=2, rng={})
        first = CheckpointRef(1, 1)
        size = storage.stat(first.file(file)).size_bytes

        for step, after_bytes in enumerate((0, 1, 1024, size - 1), start=2):
            cut = min(after_bytes, size - 1)
            proxy.set_rules(
                [{"kind": "cut_upload", "match": f"^PUT .*/{file}", "after_bytes": cut}]
            )
            for _ in range(TRIES):
                results = save(dying, tmp_path / "s", step=step, world_size=2, rng={})
                assert isinstance(results[0], RetryableError)
                if "cut_upload" in proxy.stats():
                    break

            assert proxy.stats()["cut_upload"] >= 1
            proxy.set_rules([])
            assert find_newest(storage) == first

        # What was cut is written again under the same names, and is whole then.
        save(storage, tmp_path / "s", step=5, world_size=2, rng={})
        assert find_newest(storage) == CheckpointRef(1, 5)
        with open_checkpoint(storage, CheckpointRef(1, 5)) as checkpoint:
            assert same_bits(read_back(checkpoint, 3), made_up_values(5))


def test_a_manifest_whose_answer_was_lost_is_a_checkpoint(
    server: RunningServer, tmp_path: Path
) -> None:
    with FaultProxy(server.port) as proxy:
        storage = storage_at(proxy.endpoint, tmp_path.name, deadline_s=20)
        save(storage, tmp_path / "s", step=1)
        proxy.set_rules([{"kind": "reset_headers", "match": r"^PUT .*/manifest\.json"}])

        dying = storage_at(proxy.endpoint, tmp_path.name, deadline_s=0)
        [result] = save(dying, tmp_path / "s", step=2)

        assert isinstance(result, RetryableError)
        assert find_newest(storage) == CheckpointRef(1, 2)


@pytest.mark.parametrize("after_bytes", [0, 1, 5 * MIB - 1])
@pytest.mark.parametrize("part", [1, 2])
def test_a_cut_part_leaves_no_object(
    rclone_server: RunningServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    part: int,
    after_bytes: int,
) -> None:
    set_environment(monkeypatch, rclone_server.environment)
    (tmp_path / "x").write_bytes(bytes(10 * MIB))
    with FaultProxy(rclone_server.port) as proxy:
        storage = storage_at(proxy.endpoint, tmp_path.name, deadline_s=0.0)
        rule = {"kind": "cut_upload", "match": rf"partNumber={part}\b", "after_bytes": after_bytes}
        proxy.set_rules([rule])

        with pytest.raises(RetryableError):
            storage.upload(tmp_path / "x", "checkpoints/x")
        with pytest.raises(ObjectMissingError):
            storage.stat("checkpoints/x")


def test_the_standard_mix_of_faults_changes_no_bit(server: RunningServer, tmp_path: Path) -> None:
    values = made_up_values(11)
    mix = [{**rule, "delay_s": 1.2, "rate": 4 * rule["rate"]} for rule in STANDARD_MIX]
    with FaultProxy(server.port, mix, seed=3) as proxy:
        storage = storage_at(proxy.endpoint, tmp_path.name, deadline_s=20)
        results = save(storage, tmp_path / "s", step=9, world_size=3, values=values, rng={"a": 1})
        ref = find_newest(storage)

        assert results == ["step-0000000009.000001", None, None]
        assert ref == CheckpointRef(1, 9)
        with open_checkpoint(storage, ref, tmp_path / "pieces") as checkpoint:
            assert same_bits(read_back(checkpoint, 2), values)
            assert checkpoint.state.step == 9
        assert proxy.stats()["requests"] > proxy.stats()["passed"]


def test_a_flipped_byte_in_the_bucket_is_refused_with_the_name_of_the_file(
    server: RunningServer, tmp_path: Path
) -> None:
    storage = storage_at(server.environment["AWS_ENDPOINT_URL_S3"], tmp_path.name, 20)
    save(storage, tmp_path / "s", step=1, world_size=2)
    ref = CheckpointRef(1, 1)
    name = "weights-00000-of-00002.safetensors"
    content = bytearray(storage.read_small(ref.file(name)))
    content[-1] ^= 128
    storage.write_small(ref.file(name), bytes(content))

    with (
        open_checkpoint(storage, ref) as checkpoint,
        pytest.raises(CheckpointError, match=name),
    ):
        read_back(checkpoint, 1)


KILLED = """
import os, sys
from pathlib import Path
from app.storage.opening import open_storage
from app.storage.s3_bulk import BulkClient
from app.storage.settings import MIB, StorageSettings
put_part = BulkClient.put_part
def put_one_and_die(self, key, upload_id, number, data):
    put_part(self, key, upload_id, number, data)
    os._exit(9)
BulkClient.put_part = put_one_and_die
settings = StorageSettings(endpoint=os.environ["AWS_ENDPOINT_URL_S3"], part_bytes=5 * MIB)
open_storage(sys.argv[1], settings).upload(Path(sys.argv[2]), sys.argv[3])
"""


def test_the_sweep_takes_what_killed_attempts_left(server: RunningServer, tmp_path: Path) -> None:
    url = f"s3://bucket/{tmp_path.name}"
    storage = open_storage(url)
    (tmp_path / "x").write_bytes(bytes(11 * MIB))
    for step, attempt in ((10, 1), (20, 2), (30, 3)):
        save(storage, tmp_path / "s", step=step, attempt=attempt)
    storage.delete([CheckpointRef(2, 20).manifest])
    for attempt in (1, 3):
        key = CheckpointRef(attempt, 40).file("optim-00000-of-00001.safetensors")
        command = [sys.executable, "-c", KILLED, url, str(tmp_path / "x"), key]
        assert subprocess.run(command, check=False).returncode == 9

    before = [upload.key for upload in storage.list_uploads()]
    gone = sweep(storage, attempt=3)

    killed = "checkpoints/step-0000000040.000001/optim-00000-of-00001.safetensors"
    mine = "checkpoints/step-0000000040.000003/optim-00000-of-00001.safetensors"
    assert sorted(before) == [killed, mine]
    assert gone == ["step-0000000020.000002", killed]
    assert [upload.key for upload in storage.list_uploads()] == [mine]
    folders = {entry.key.split("/")[1] for entry in storage.list("checkpoints/")}
    assert folders == {"step-0000000010.000001", "step-0000000030.000003"}


def test_retention_deletes_from_a_bucket(server: RunningServer, tmp_path: Path) -> None:
    storage = open_storage(f"s3://bucket/{tmp_path.name}")
    for step in (10, 20, 30):
        save(storage, tmp_path / "s", step=step)

    apply_retention(storage, 1, ["step-0000000010.000001"])

    folders = {entry.key.split("/")[1] for entry in storage.list("checkpoints/")}
    assert folders == {"step-0000000010.000001", "step-0000000030.000001"}


def test_no_answer_at_all_is_an_error_and_not_an_empty_run(
    rclone_server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, rclone_server.environment)
    with FaultProxy(rclone_server.port) as proxy:
        storage = storage_at(proxy.endpoint, tmp_path.name, deadline_s=0.5)
        proxy.outage(30)

        with pytest.raises(CogvxError) as caught:
            find_newest(storage)

    assert caught.value.exit_code == 138
