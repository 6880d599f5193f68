"""Index pages, sizes and ranges of a server of the standard library."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from app.storage.failures import FailureKind, StorageFailure
from app.storage.http_client import HttpClient, http_failure
from app.storage.settings import StorageSettings


@pytest.fixture
def client(tmp_path: Path) -> Iterator[HttpClient]:
    (tmp_path / "a b.tar").write_bytes(b"0123456789")
    (tmp_path / "empty.tar").touch()
    (tmp_path / "sub").mkdir()
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    handler = partial(quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield HttpClient(f"http://127.0.0.1:{server.server_port}", StorageSettings())
        server.shutdown()


def test_an_index_page_gives_files_and_folders(client: HttpClient) -> None:
    assert client.page("") == (["a b.tar", "empty.tar"], ["sub"])
    assert client.page("sub/") == ([], [])


def test_size_and_content(client: HttpClient) -> None:
    assert client.stat("a b.tar").size_bytes == 10
    assert client.get("a b.tar") == b"0123456789"
    assert client.get("empty.tar") == b""


def test_a_server_without_ranges_serves_the_whole_object_only(client: HttpClient) -> None:
    found: list[bytes] = []

    assert client.read_range("a b.tar", 0, 10, found.append) == 10
    with pytest.raises(StorageFailure, match="does not support ranges"):
        client.read_range("a b.tar", 2, 5, found.append)

    assert b"".join(found) == b"0123456789"


def test_what_is_not_there_and_what_is_not_a_page(client: HttpClient) -> None:
    with pytest.raises(StorageFailure) as missing:
        client.stat("gone.tar")
    with pytest.raises(StorageFailure, match="no list of files"):
        client.page("a b.tar")

    assert missing.value.kind is FailureKind.MISSING


def test_a_bug_is_raised_as_it_is() -> None:
    assert http_failure(ConnectionResetError("reset")).kind is FailureKind.CONNECTION
    with pytest.raises(ZeroDivisionError):
        http_failure(ZeroDivisionError())
