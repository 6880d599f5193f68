"""Several processes on one storage: forks, and one download per node."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.errors import DataError, InputMissingError
from app.storage.fetch import fetch
from app.storage.opening import open_storage
from tests.support.fault_proxy import FaultProxy
from tests.support.s3_servers import RunningServer, set_environment

FORKING = """
import os, sys
from pathlib import Path
from app.storage.opening import open_storage

storage = open_storage(sys.argv[1])
folder = Path(sys.argv[2])

def work(name):
    storage.write_small(f"{name}.json", name.encode())
    assert storage.read_small(f"{name}.json") == name.encode()
    whole = (folder / "shard.bin").read_bytes()
    assert storage.read_range("shard.bin", 3, 1_000_000) == whole[3:1_000_000]
    storage.download("shard.bin", folder / name)
    assert "shard.bin" in [entry.key for entry in storage.list()]

work("before")
children = []
for number in range(2):
    pid = os.fork()
    if pid == 0:
        try:
            work(f"child-{number}")
            os._exit(0)
        except BaseException as error:
            sys.stderr.write(repr(error))
            os._exit(1)
    children.append(pid)
work("parent")
sys.exit(sum(os.waitpid(pid, 0)[1] for pid in children))
"""


def test_a_forked_child_makes_clients_of_its_own(
    rclone_server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, rclone_server.environment)
    url = f"s3://bucket/{tmp_path.name}"
    (tmp_path / "shard.bin").write_bytes(os.urandom(2_000_000))
    open_storage(url).upload(tmp_path / "shard.bin", "shard.bin")

    done = subprocess.run(
        [sys.executable, "-c", FORKING, url, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.stderr == ""
    assert done.returncode == 0
    written = [entry.key for entry in open_storage(url).list()]
    assert written == ["before.json", "child-0.json", "child-1.json", "parent.json", "shard.bin"]


def put_folder(url: str) -> dict[str, bytes]:
    storage = open_storage(url)
    files = {"config.json": b"{}", "a/model.safetensors": os.urandom(300_000), "spiece.model": b"x"}
    for key, data in files.items():
        storage.write_small(f"t5/{key}", data)
    return files


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_folder_is_fetched_with_everything_below_it(
    moto_server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, moto_server.environment)
    url = f"s3://bucket/{tmp_path.name}"
    files = put_folder(url)
    open_storage(url).write_small("t5-other/x", b"not ours")

    folder = fetch(f"{url}/t5", tmp_path / "cache")

    assert folder.name == "t5"
    assert files_below(folder) == files
    assert fetch(f"{url}/t5/", tmp_path / "cache") == folder


def test_a_file_is_fetched_once_and_again_when_it_changed(
    rclone_server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultProxy(rclone_server.port) as proxy:
        set_environment(monkeypatch, rclone_server.behind(proxy.endpoint))
        url = f"s3://bucket/{tmp_path.name}"
        open_storage(url).write_small("vae.pt", b"first")

        first = fetch(f"{url}/vae.pt", tmp_path / "cache")
        again = fetch(f"{url}/vae.pt", tmp_path / "cache")
        reads = [line for line, _ in proxy.log() if line.startswith("GET") and "vae.pt" in line]
        open_storage(url).write_small("vae.pt", b"second")
        changed = fetch(f"{url}/vae.pt", tmp_path / "cache")

    assert first == again
    assert first.name == "vae.pt"
    assert first.read_bytes() == b"first"
    assert len(reads) == 1
    assert changed.read_bytes() == b"second"


FETCHING = """
import sys
from pathlib import Path
from app.storage.fetch import fetch
sys.stdout.write(str(fetch(sys.argv[1], Path(sys.argv[2]))))
"""


def test_the_processes_of_a_node_share_one_download(
    rclone_server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultProxy(rclone_server.port) as proxy:
        set_environment(monkeypatch, rclone_server.behind(proxy.endpoint))
        url = f"s3://bucket/{tmp_path.name}"
        put_folder(url)
        proxy.set_rules([{"kind": "latency", "delay_s": 0.5, "match": "^GET .*model"}])
        command = [sys.executable, "-c", FETCHING, f"{url}/t5", str(tmp_path / "cache")]
        running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
        printed = {process.communicate(timeout=60)[0] for process in running}
        reads = [line for line, _ in proxy.log() if line.startswith("GET") and "model.saf" in line]

    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(printed) == 1
    assert len(reads) == 1


def test_a_download_that_was_killed_is_begun_again(
    rclone_server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, rclone_server.environment)
    url = f"s3://bucket/{tmp_path.name}"
    files = put_folder(url)
    folder = fetch(f"{url}/t5", tmp_path / "cache")
    left = folder.parent.with_suffix(".part")
    folder.parent.rename(left)  # as if the process had died before the last step
    (left / "t5" / "rubbish").write_bytes(b"half")

    assert fetch(f"{url}/t5", tmp_path / "cache") == folder
    assert files_below(folder) == files


def test_what_is_not_there_is_named_by_its_url(
    rclone_server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, rclone_server.environment)
    url = f"s3://bucket/{tmp_path.name}/t5-v1_1-xxl"

    with pytest.raises(InputMissingError, match=url) as caught:
        fetch(url, tmp_path / "cache")

    assert caught.value.exit_code == 66


def test_a_hostile_key_never_becomes_a_path(
    moto_server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, moto_server.environment)
    storage = open_storage("s3://bucket")
    storage._control.get().put(f"{tmp_path.name}/t5/../../evil", b"x")  # type: ignore[attr-defined]

    with pytest.raises(DataError, match="evil"):
        fetch(f"s3://bucket/{tmp_path.name}/t5", tmp_path / "cache")

    assert not list(tmp_path.rglob("evil"))
