"""Servers over http that send too much, too little, too slowly, or elsewhere."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from app.cli.main import main
from app.errors import CogvxError, ConfigError, RetryableError
from app.storage.http import HttpStorage
from app.storage.objects import Storage
from app.storage.opening import open_storage
from app.storage.retry import Clock
from app.storage.settings import StorageSettings
from tests.support.scripted_server import Answer, dripping, plainly, scripted_server

NO_WAIT = Clock(uniform=lambda low, high: 0.0)
OK = b"HTTP/1.1 200 OK\r\n"
SECRET = "hunter2"

CALLS: dict[str, Callable[[Storage], object]] = {
    "read_small": lambda storage: storage.read_small("x.json"),
    "read_range": lambda storage: storage.read_range("x.json", 0, 1000),
    "stat": lambda storage: storage.stat("x.json"),
    "list": lambda storage: storage.list(),
}


def storage_at(url: str, **changes: Any) -> HttpStorage:
    settings = StorageSettings(**{"deadline_s": 1.0, **changes})
    return HttpStorage(url, settings, NO_WAIT)


def test_an_object_over_the_cap_is_refused_before_its_body() -> None:
    head = OK + b"Content-Length: 1000000000000\r\n\r\n"

    with scripted_server(plainly(head, b"x" * 100)) as server:
        with pytest.raises(ConfigError, match="has 1000000000000 bytes, over 1000") as caught:
            storage_at(server.url, small_object_bytes=1000).read_small("x.json")

        assert len(server.log) == 1  # not repeated
    assert caught.value.where == f"{server.url}/x.json"


def test_a_body_without_end_is_given_up_at_the_cap() -> None:
    def endless(line: str) -> Iterator[bytes]:
        yield OK + b"Transfer-Encoding: chunked\r\n\r\n"
        yield from itertools.repeat(b"1000\r\n" + b"x" * 4096 + b"\r\n")

    with scripted_server(endless) as server:
        started = time.monotonic()
        with pytest.raises(ConfigError, match="over 1000000 bytes"):
            storage_at(server.url, small_object_bytes=1_000_000).read_small("x.json")

    assert time.monotonic() - started < 5


@pytest.mark.parametrize("kind", [b"application/json", b"text/html"])
def test_a_body_shorter_than_announced_is_repeated_and_never_used(kind: bytes) -> None:
    short = OK + b"Content-Type: " + kind + b"\r\nContent-Length: 50\r\n\r\n<a href='x.tar'>"

    with scripted_server(plainly(short)) as server:
        storage = storage_at(server.url, deadline_s=0.5)
        call = storage.list if kind == b"text/html" else lambda: storage.read_small("x.json")
        with pytest.raises(RetryableError, match="ended after 16 of 50 bytes"):
            call()

        assert len(server.log) > 1


@pytest.mark.parametrize("length", [b"abc", b"-5", b"1e3", b""])
@pytest.mark.parametrize("call", list(CALLS))
def test_a_length_that_is_not_a_number_is_one_clear_error(call: str, length: bytes) -> None:
    head = OK + b"Content-Type: text/html\r\nContent-Length: " + length + b"\r\n\r\n"

    with scripted_server(plainly(head, b"x" * 10)) as server, pytest.raises(ConfigError):
        CALLS[call](storage_at(server.url))


def test_a_body_that_ends_with_its_connection_is_refused() -> None:
    with (
        scripted_server(plainly(OK + b"\r\n", b"half of it")) as server,
        pytest.raises(ConfigError, match="does not give the size"),
    ):
        storage_at(server.url).read_small("x.json")


HTML = b"Content-Type: text/html\r\n"
PART = b"HTTP/1.1 206 OK\r\nContent-Range: bytes 0-999/1000\r\nContent-Length: 1000\r\n\r\n"


@pytest.mark.parametrize(
    ("call", "head", "body"),
    [
        ("read_small", OK + b"Content-Length: 1000\r\n\r\n", b"x" * 1000),
        ("read_range", PART, b"x" * 1000),
        ("list", OK + HTML + b"Content-Length: 1000\r\n\r\n", b"x" * 1000),
        ("stat", OK, b"X-Slow: " + b"x" * 1000),  # the headers themselves
        ("read_small", b"", OK),  # the first line itself
        ("read_small", OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 500),
    ],
)
def test_a_dripping_server_is_given_up_at_the_deadline(call: str, head: bytes, body: bytes) -> None:
    # Each byte comes long before the time-out of the socket (20 s).
    with scripted_server(dripping(head, 0.05, body * 10)) as server:
        started = time.monotonic()
        with pytest.raises(RetryableError, match="gave up") as caught:
            CALLS[call](storage_at(server.url, deadline_s=0.6))

    assert time.monotonic() - started < 3  # 50 s and more without the deadline
    assert caught.value.exit_code == 138


def redirect(to: str) -> Answer:
    return plainly(f"HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n".encode())


DATA = plainly(OK + b"Content-Length: 4\r\n\r\ndata")


def test_a_redirect_to_another_host_is_refused_and_its_query_not_shown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    with scripted_server(DATA) as other:
        target = f"http://localhost:{other.port}/x?X-Amz-Signature={SECRET}"
        with scripted_server(redirect(target)) as server:
            for call in CALLS.values():
                with pytest.raises(ConfigError) as caught:
                    call(storage_at(server.url))
                assert SECRET not in str(caught.value)
            with pytest.raises(ConfigError, match="localhost") as caught:
                storage_at(server.url).read_small("x.json")

        assert "COGVX_REDIRECT_HOSTS" in caught.value.fix
        assert other.log == []
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    "there", ["http://169.254.169.254/latest/", "file:///etc/passwd", "http://127.0.0.1:1/x"]
)
def test_a_redirect_reaches_no_address_of_the_network_inside(there: str) -> None:
    with scripted_server(redirect(there)) as server, pytest.raises(ConfigError):
        storage_at(server.url).read_small("x.json")


def test_a_redirect_to_a_host_that_is_allowed_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COGVX_REDIRECT_HOSTS", "cdn.example.com, LOCALHOST")
    with (
        scripted_server(DATA) as other,
        scripted_server(redirect(f"http://localhost:{other.port}/y")) as server,
    ):
        assert open_storage(server.url).read_small("x.json") == b"data"


def test_a_redirect_within_the_host_is_followed() -> None:
    def answer(line: str) -> Iterator[bytes]:
        return DATA(line) if "/moved" in line else redirect("/moved")(line)

    with scripted_server(answer) as server:
        assert storage_at(server.url).read_small("x.json") == b"data"


@pytest.mark.parametrize("location", [f"/x y?token={SECRET}", f"http://[bad/?token={SECRET}", ""])
def test_an_address_that_is_not_valid_is_not_shown(location: str) -> None:
    with scripted_server(redirect(location)) as server, pytest.raises(CogvxError) as caught:
        storage_at(server.url).read_small("x.json")

    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("command", [["storage", "ls"], ["data", "check"]])
def test_a_presigned_address_is_refused_and_its_signature_not_shown(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"https://bucket.s3.amazonaws.com/x-000.tar?X-Amz-Signature={SECRET}"

    code = main([*command, url])

    shown = capsys.readouterr()
    assert code == 78
    assert "query" in shown.err
    assert SECRET not in shown.err + shown.out


def test_https_on_an_http_port_is_said_and_not_repeated() -> None:
    with scripted_server(DATA) as server:
        url = server.url.replace("http://", "https://")
        started = time.monotonic()
        with pytest.raises(ConfigError, match="the server speaks http on port"):
            storage_at(url, deadline_s=60.0, read_timeout_s=0.5).read_small("x.json")

    assert time.monotonic() - started < 5
