from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from app.distributed.rank import free_port
from app.errors import RetryableError
from app.rehearsal import embedded_s3
from app.rehearsal.embedded_s3 import EmbeddedS3


def status_of(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request("GET", "/")
    return connection.getresponse().status


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_until_closed(port: int) -> bool:
    deadline = time.monotonic() + 10
    while is_listening(port):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_an_unsigned_request_is_refused(tmp_path: Path) -> None:
    with EmbeddedS3(tmp_path) as server:
        assert status_of(server.port) == 400


def test_the_port_is_closed_after_the_context(tmp_path: Path) -> None:
    with EmbeddedS3(tmp_path) as server:
        port = server.port

    assert not is_listening(port)


def test_a_bucket_is_a_folder(tmp_path: Path) -> None:
    server = EmbeddedS3(tmp_path / "root")

    assert server.create_bucket("clips") == tmp_path / "root" / "clips"
    assert (tmp_path / "root" / "clips").is_dir()


def test_the_environment_names_endpoint_and_credentials(tmp_path: Path) -> None:
    with EmbeddedS3(tmp_path) as server:
        environment = server.environment()

    assert environment["AWS_ENDPOINT_URL_S3"] == f"http://127.0.0.1:{server.port}"
    assert {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"} <= environment.keys()


def test_a_taken_port_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        free = free_port()
        ports = [taken.getsockname()[1], free]
        monkeypatch.setattr(embedded_s3, "free_port", lambda: ports.pop(0))

        with EmbeddedS3(tmp_path) as server:
            assert server.port == free


def test_an_error_holds_what_the_server_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "rclone"
    program.write_text("#!/bin/sh\necho no such option >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(embedded_s3, "rclone_binary", lambda: program)

    with pytest.raises(RetryableError, match="no such option"):
        EmbeddedS3(tmp_path / "root").start()


PARENT = """
import sys, threading
from pathlib import Path
from app.rehearsal.embedded_s3 import EmbeddedS3
server = EmbeddedS3(Path(sys.argv[1])).start()
sys.stdout.write(f"{server.port}\\n")
sys.stdout.flush()
threading.Event().wait()
"""


def test_the_server_dies_with_its_killed_parent(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        port = int(parent.stdout.readline())
        parent.kill()

    assert wait_until_closed(port)
