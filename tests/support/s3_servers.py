"""Two S3 servers for tests: rclone (the one we ship) and moto (the strict one).

A conftest imports the fixtures it wants: `from tests.support.s3_servers import rclone_server`.
"""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.rehearsal.embedded_s3 import EmbeddedS3
from tests.support.ports import reserved_port

START_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class RunningServer:
    """A server with one bucket, `bucket`, and the variables that point a client at it."""

    name: str
    port: int
    bucket: str
    environment: dict[str, str]
    folder: Path | None = None  # rclone: where the bucket lies on disk

    def behind(self, endpoint: str) -> dict[str, str]:
        """The same variables, through a proxy."""
        through = {"AWS_ENDPOINT_URL": endpoint, "AWS_ENDPOINT_URL_S3": endpoint}
        return {**self.environment, **through}


@pytest.fixture(scope="session")
def rclone_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The embedded server without ETags in listings."""
    with rclone(tmp_path_factory.mktemp("rclone")) as server:
        yield server


@pytest.fixture(scope="session")
def moto_server() -> Iterator[RunningServer]:
    """The moto server."""
    with moto() as server:
        yield server


@contextmanager
def rclone(folder: Path, *, etags: bool = False) -> Iterator[RunningServer]:
    with EmbeddedS3(folder, etags=etags) as server:
        bucket = server.create_bucket("bucket")
        yield RunningServer("rclone", server.port, "bucket", server.environment(), bucket)


@contextmanager
def moto() -> Iterator[RunningServer]:
    port = reserved_port()
    # As a program of its own: in this process it would patch botocore for every other test.
    process = subprocess.Popen(
        [sys.executable, "-c", _MOTO, str(os.getpid()), str(port)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _make_bucket(port, "bucket", process)
        endpoint = f"http://127.0.0.1:{port}"
        environment = {
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing-secret",
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ENDPOINT_URL_S3": endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        yield RunningServer("moto", port, "bucket", environment)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


_MOTO = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
os.getppid() == int(sys.argv[1]) or sys.exit(1)
from moto.server import main
main(["-H", "127.0.0.1", "-p", sys.argv[2]])
"""


def _make_bucket(port: int, bucket: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("PUT", f"/{bucket}")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.1)
        finally:
            connection.close()
    raise AssertionError("moto did not start")


def set_environment(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    """Point this process's S3 clients at a server, and at nothing else."""
    for name in list(os.environ):
        if name.startswith("AWS_") or name == "S3_ENDPOINT_URL":
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
