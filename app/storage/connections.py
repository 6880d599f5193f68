"""Connections that fail without a word: cut, dripping, or in a protocol that is not the address's.

A client that speaks TLS to an http port, or http to a TLS port, sees a broken connection, which
looks like a network failure; so a server is asked what it speaks when the first requests fail.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Literal
from urllib.parse import urlsplit

from app.storage.failures import FailureKind, StorageFailure
from app.storage.settings import ENDPOINT_VARIABLES, StorageSettings, given_by

# Small enough to notice a connection that drips, large enough to cost no time.
BLOCK_BYTES = 128 * 1024


def drain(
    read: Callable[[int], bytes],
    sink: Callable[[bytes], None],
    settings: StorageSettings,
    count: int | None,
    limit: int | None = None,
) -> None:
    """Hand `count` bytes, or all up to the end, to `sink`.

    Args:
        read: at most so many bytes; nothing at the end; raises StorageFailure.
        settings: what counts as too slow.
        limit: most bytes to accept where `count` is None.

    Raises:
        StorageFailure: CONNECTION, SLOW or REQUEST (more than `limit`).
    """
    arrived, window_bytes, window_started = 0, 0, time.monotonic()
    while count is None or arrived < count:
        try:
            block = read(BLOCK_BYTES if count is None else min(BLOCK_BYTES, count - arrived))
        except StorageFailure as failure:
            failure.progressed = arrived > 0
            raise
        if not block:
            break
        sink(block)
        arrived, window_bytes = arrived + len(block), window_bytes + len(block)
        if limit is not None and arrived > limit:
            raise StorageFailure(FailureKind.REQUEST, f"the page has over {limit} bytes")
        seconds = time.monotonic() - window_started
        if seconds >= settings.slow_window_s:
            if window_bytes < settings.slow_bytes_per_s * seconds and arrived != count:
                speed = f"{window_bytes / seconds / 1024:.1f} KiB/s"
                raise StorageFailure(FailureKind.SLOW, speed, progressed=True)
            window_bytes, window_started = 0, time.monotonic()
    if count is not None and arrived < count:
        detail = f"the answer ended after {arrived} of {count} bytes"
        raise StorageFailure(FailureKind.CONNECTION, detail, progressed=arrived > 0)


def check_etag(expected: str | None, found: str | None) -> None:
    """Raise StorageFailure (CHANGED) when both are known and differ."""
    if expected and found and expected != found:
        raise StorageFailure(
            FailureKind.CHANGED, f"its ETag was {expected} and is {found}: it changed"
        )


Scheme = Literal["http", "https"]

_PORTS = {"http": 80, "https": 443}
_PROBES = 3  # of a server that does not answer; it may still be starting
_PROBE_S = 2.0
# What TLS ports say to plain http: Go, nginx, Apache.
_SAYS_TLS = re.compile(rb"(HTTPS|SSL\S*) (server|port)", re.IGNORECASE)


class SchemeProbe:
    """Turns broken connections into the mistake behind them, where the scheme is wrong.

    Args:
        url: the endpoint, or None: then nothing is asked.
        source: what the user has to correct; None: the variable of the endpoint.
    """

    def __init__(self, url: str | None, source: str | None = None) -> None:
        self._url = url
        self._source = source
        self._left = _PROBES if url is not None else 0

    def explained(self, failure: StorageFailure) -> StorageFailure:
        """The failure itself, or SETUP with what is wrong."""
        # A TLS port answers plain http with a bare 400, if at all.
        bare = failure.kind is FailureKind.REQUEST and failure.code in ("400", "Bad Request")
        suspect = bare or (failure.kind is FailureKind.CONNECTION and not failure.progressed)
        if self._left <= 0 or not suspect:
            return failure
        assert self._url is not None
        self._left -= 1
        spoken = spoken_scheme(self._url, _PROBE_S)
        wrong = mismatch(self._url, spoken)
        if wrong is None:
            self._left = 0 if spoken else self._left
            return failure
        name = self._source or given_by(os.environ, ENDPOINT_VARIABLES)
        return StorageFailure(FailureKind.SETUP, wrong, code=name)


def spoken_scheme(url: str, timeout_s: float) -> Scheme | None:
    """What answers at the host and port of an http(s) URL; None: nothing, or nothing certain.

    No request of ours and no credentials are sent.
    """
    parts = urlsplit(url)
    address = (parts.hostname or "", parts.port or _PORTS[parts.scheme.lower()])
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # only whether it is TLS; nothing is trusted with it
    try:
        with socket.create_connection(address, timeout_s) as plain, suppress(TimeoutError):
            context.wrap_socket(plain, server_hostname=address[0]).close()
            return "https"
    except ssl.SSLError as error:
        if "ALERT" in (error.reason or ""):
            return "https"  # it refuses this handshake, in TLS
    except OSError:
        pass  # some servers reset a connection that begins with a handshake
    with suppress(OSError), socket.create_connection(address, timeout_s) as plain:
        plain.sendall(f"GET / HTTP/1.0\r\nHost: {address[0]}\r\n\r\n".encode())
        answer = plain.recv(2048)
        if answer.startswith(b"HTTP/") and not _SAYS_TLS.search(answer):
            return "http"
    return None


def mismatch(url: str, spoken: Scheme | None) -> str | None:
    """What is wrong with the scheme of a URL, in words; None when nothing is known to be."""
    written = urlsplit(url).scheme.lower()
    if spoken is None or written == spoken:
        return None
    port = urlsplit(url).port or _PORTS[written]
    return f"the server speaks {spoken} on port {port}, and the address says {written}"
