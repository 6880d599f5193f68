"""Bodies that are whole, cut, without end or too large; which of http and https answers."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.errors import ConfigError
from app.storage.connections import (
    BLOCK_BYTES,
    SchemeProbe,
    check_etag,
    drain,
    mismatch,
    spoken_scheme,
)
from app.storage.failures import FailureKind, StorageFailure
from app.storage.http import HttpStorage
from app.storage.settings import StorageSettings
from tests.support.certificates import self_signed
from tests.support.ports import reserved_port
from tests.support.scripted_server import plainly, scripted_server

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


HTTP = plainly(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
CONNECTION = StorageFailure(FailureKind.CONNECTION, "reset")


@pytest.fixture
def tls(tmp_path: Path) -> ssl.SSLContext:
    return self_signed(tmp_path)


def test_an_http_server_speaks_http() -> None:
    with scripted_server(HTTP) as server:
        assert spoken_scheme(f"https://127.0.0.1:{server.port}", 0.3) == "http"


def test_a_tls_server_speaks_https_whatever_its_certificate(tls: ssl.SSLContext) -> None:
    with scripted_server(HTTP, tls) as server:
        assert spoken_scheme(f"http://127.0.0.1:{server.port}", 2.0) == "https"


def test_a_server_that_refuses_every_handshake_in_tls_speaks_https(tls: ssl.SSLContext) -> None:
    tls.verify_mode = ssl.CERT_REQUIRED
    tls.maximum_version = ssl.TLSVersion.TLSv1_2

    with scripted_server(HTTP, tls) as server:
        assert spoken_scheme(f"https://127.0.0.1:{server.port}", 2.0) == "https"


def test_nothing_and_what_is_neither_are_no_answer() -> None:
    with scripted_server(plainly(b"220 ftp ready\r\n")) as server:
        assert spoken_scheme(f"http://127.0.0.1:{server.port}", 0.3) is None
    assert spoken_scheme(f"http://127.0.0.1:{reserved_port()}", 0.3) is None


@pytest.mark.parametrize(
    "text",
    [
        b"Client sent an HTTP request to an HTTPS server.",
        b"The plain HTTP request was sent to HTTPS port",
        b"You're speaking plain HTTP to an SSL-enabled server port.",
    ],
)
def test_a_tls_port_that_answers_plain_http_is_not_taken_for_one(text: bytes) -> None:
    with scripted_server(plainly(b"HTTP/1.1 400 Bad Request\r\n\r\n" + text)) as server:
        assert spoken_scheme(f"https://127.0.0.1:{server.port}", 0.3) is None


def test_only_a_scheme_that_is_known_to_be_other_is_wrong() -> None:
    assert mismatch("https://h:9000", "http") == (
        "the server speaks http on port 9000, and the address says https"
    )
    assert mismatch("http://h", "https") is not None
    assert mismatch("http://h", "http") is None
    assert mismatch("http://h", None) is None


def test_a_broken_connection_is_asked_about_until_the_scheme_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers: Iterator[str | None] = iter([None, "https", None])
    asked: list[str] = []

    def spoken(url: str, timeout_s: float) -> str | None:
        asked.append(url)
        return next(answers)

    monkeypatch.setattr("app.storage.connections.spoken_scheme", spoken)
    probe = SchemeProbe("https://h", "the address")

    for _ in range(4):
        assert probe.explained(CONNECTION) is CONNECTION

    assert asked == ["https://h"] * 2


@pytest.mark.parametrize(
    "failure",
    [
        StorageFailure(FailureKind.THROTTLED, "503"),
        StorageFailure(FailureKind.REQUEST, "400 InvalidArgument", code="InvalidArgument"),
        StorageFailure(FailureKind.CONNECTION, "cut", progressed=True),
    ],
)
def test_a_server_that_answered_is_not_asked(
    failure: StorageFailure, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoken(url: str, timeout_s: float) -> str | None:
        raise AssertionError("asked")

    monkeypatch.setattr("app.storage.connections.spoken_scheme", spoken)

    assert SchemeProbe("http://h").explained(failure) is failure
    assert SchemeProbe(None).explained(CONNECTION) is CONNECTION


def test_the_variable_of_the_endpoint_is_named(
    tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://h")
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)

    with scripted_server(HTTP, tls) as server:
        failure = SchemeProbe(f"http://127.0.0.1:{server.port}").explained(CONNECTION)

    assert failure.kind is FailureKind.SETUP
    assert failure.code == "AWS_ENDPOINT_URL"


def test_http_to_a_tls_port_is_said_at_the_first_request(tls: ssl.SSLContext) -> None:
    with scripted_server(HTTP, tls) as server:
        storage = HttpStorage(f"http://127.0.0.1:{server.port}", StorageSettings())
        with pytest.raises(ConfigError, match="the server speaks https"):
            storage.read_small("x.json")


def test_no_credentials_are_sent_by_the_question() -> None:
    seen: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=spoken_scheme, args=(url, 0.3))
        thread.start()
        for _ in range(2):
            connection, _ = listener.accept()
            with connection:
                seen.append(connection.recv(4096))
        thread.join()

    assert seen[1] == b"GET / HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n"
