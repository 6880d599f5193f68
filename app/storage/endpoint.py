"""Whether a server speaks TLS: asked when the first requests to it fail.

A client that speaks TLS to an http port, or http to a TLS port, sees a broken connection, which
looks like a network failure.
"""

from __future__ import annotations

import os
import socket
import ssl
from contextlib import suppress
from typing import Literal
from urllib.parse import urlsplit

from app.storage.environment import ENDPOINT_VARIABLES, given_by
from app.storage.failures import FailureKind, StorageFailure

Scheme = Literal["http", "https"]

_PORTS = {"http": 80, "https": 443}
_PROBES = 5  # of a server that does not answer; it may still be starting
_SUSPECT = (FailureKind.CONNECTION, FailureKind.REQUEST, FailureKind.SERVER)


class SchemeProbe:
    """Turns broken connections into the mistake behind them, where the scheme is wrong.

    Args:
        url: the endpoint, or None: then nothing is asked.
        timeout_s: of one connection.
        source: what the user has to correct; None: the variable of the endpoint.
    """

    def __init__(self, url: str | None, timeout_s: float, source: str | None = None) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._source = source
        self._left = _PROBES if url is not None else 0

    def explained(self, failure: StorageFailure) -> StorageFailure:
        """The failure itself, or SETUP with what is wrong."""
        if self._left <= 0 or failure.kind not in _SUSPECT or failure.progressed:
            return failure
        assert self._url is not None
        self._left -= 1
        spoken = spoken_scheme(self._url, self._timeout_s)
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
        with (
            socket.create_connection(address, timeout_s) as plain,
            context.wrap_socket(plain, server_hostname=address[0]),
        ):
            return "https"
    except ssl.SSLError as error:
        if "ALERT" in (error.reason or ""):
            return "https"  # it refuses this handshake, in TLS
    except TimeoutError:
        return None
    except OSError:
        pass  # some servers reset a connection that begins with a handshake
    with suppress(OSError), socket.create_connection(address, timeout_s) as plain:
        plain.settimeout(timeout_s)
        plain.sendall(f"HEAD / HTTP/1.0\r\nHost: {address[0]}\r\n\r\n".encode())
        if plain.recv(5) == b"HTTP/":
            return "http"
    return None


def mismatch(url: str, spoken: Scheme | None) -> str | None:
    """What is wrong with the scheme of a URL, in words; None when nothing is known to be."""
    written = urlsplit(url).scheme.lower()
    if spoken is None or written == spoken:
        return None
    port = urlsplit(url).port or _PORTS[written]
    return f"the server speaks {spoken} on port {port}, and the address says {written}"
