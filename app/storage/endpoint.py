"""Whether a server speaks TLS: asked when the first requests to it fail.

A client that speaks TLS to an http port, or http to a TLS port, sees a broken connection, which
looks like a network failure.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
from contextlib import suppress
from typing import Literal
from urllib.parse import urlsplit

from app.storage.environment import ENDPOINT_VARIABLES, given_by
from app.storage.failures import FailureKind, StorageFailure

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
