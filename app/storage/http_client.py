"""Reading over http and https: one request per call, no retries (retry.py does those).

Nothing but the standard library. Redirects stay on the host that was asked, unless the settings
name another one: a server must not make this machine read an address inside its own network.
"""

from __future__ import annotations

import email.utils
import http.client
import io
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit

from app.storage.connections import check_etag, drain
from app.storage.failures import FailureKind, StorageFailure, kind_of_answer
from app.storage.objects import Entry
from app.storage.settings import StorageSettings, tls_context

_LARGEST_PAGE_BYTES = 64 << 20
_NO_SIZE = "the server does not give the size of the file"
_NO_HEAD = (403, 405, 501)  # servers and signed addresses that answer GET only


class HttpClient:
    """Objects below an http(s) URL (no slash at its end); safe to use from several threads."""

    def __init__(self, root: str, settings: StorageSettings) -> None:
        self._root = root
        self._settings = settings
        context = tls_context(settings.ca_file)
        self._opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler(),
            _PlainHandler(settings),
            _TlsHandler(settings, context),
            _Redirects(settings.redirect_hosts),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
            urllib.request.UnknownHandler(),
        ):
            self._opener.add_handler(handler)

    def stat(self, key: str) -> Entry:
        """Size and identity of an object."""
        try:
            with self._request("HEAD", key) as answer:
                size = answer.headers.get("Content-Length")
                if size is not None:
                    return _entry(key, _total(answer.headers), answer.headers)
        except StorageFailure as failure:
            if failure.code not in {str(status) for status in _NO_HEAD}:
                raise
        with self._request("GET", key, "bytes=0-0") as answer:
            return _entry(key, _total(answer.headers), answer.headers)

    def get(self, key: str) -> bytes:
        """A whole small object, of the size that the server announces.

        Raises:
            StorageFailure: REQUEST, when it has over `small_object_bytes`.
        """
        with self._request("GET", key) as answer:
            return self._drained(answer, self._settings.small_object_bytes)

    def read_range(
        self,
        key: str,
        start: int,
        stop: int,
        sink: Callable[[bytes], None],
        etag: str | None = None,
    ) -> int:
        """As BulkClient.read_range: bytes [start, stop) to `sink`; the size of the object."""
        with self._request("GET", key, f"bytes={start}-{stop - 1}") as answer:
            total = _check_range(answer, start, stop)
            check_etag(etag, _etag(answer.headers))
            self._drain(answer, sink, stop - start)
        return total

    def page(self, folder: str) -> tuple[list[str], list[str]]:
        """(files, folders) that the index page of a folder links to, names only.

        Raises:
            StorageFailure: REQUEST, when it is not a page of links.
        """
        with self._request("GET", folder) as answer:
            if "html" not in answer.headers.get("Content-Type", ""):
                raise StorageFailure(FailureKind.REQUEST, "the server shows no list of files")
            base = answer.geturl()
            text = self._drained(answer, _LARGEST_PAGE_BYTES).decode("utf-8", "replace")
        links = _Links()
        links.feed(text)
        files, folders = set(), set()
        for link in links.found:
            address = urljoin(base, link)
            name = unquote(urlsplit(address).path.removeprefix(urlsplit(base).path))
            if urlsplit(address)[:2] != urlsplit(base)[:2] or not name or name.startswith("/"):
                continue
            if "/" not in name:
                files.add(name)
            elif name.endswith("/") and name.count("/") == 1 and name not in ("./", "../"):
                folders.add(name.rstrip("/"))
        return sorted(files), sorted(folders)

    def _request(self, method: str, key: str, span: str | None = None) -> Any:
        headers = {"User-Agent": "cogvx", "Accept-Encoding": "identity"}
        if span is not None:
            headers["Range"] = span
        url = f"{self._root}/{quote(key)}"
        request = urllib.request.Request(url, headers=headers, method=method)
        try:
            return self._opener.open(request, timeout=self._settings.read_timeout_s)
        except StorageFailure:
            raise
        except Exception as error:
            raise http_failure(error) from error

    def _drained(self, answer: Any, limit: int) -> bytes:
        blocks: list[bytes] = []
        count = _announced(answer.headers)
        if count is not None and count > limit:
            raise StorageFailure(FailureKind.REQUEST, f"it has {count} bytes, over {limit}")
        if count is None and answer.headers.get("Transfer-Encoding") is None:
            # The end of the connection would be the end of the object, and so would a fault.
            raise StorageFailure(FailureKind.REQUEST, _NO_SIZE)
        self._drain(answer, blocks.append, count, limit)
        return b"".join(blocks)

    def _drain(
        self,
        answer: Any,
        sink: Callable[[bytes], None],
        count: int | None,
        limit: int | None = None,
    ) -> None:
        def block(size: int) -> bytes:
            try:
                return bytes(answer.read1(size))
            except StorageFailure:
                raise
            except Exception as error:
                raise http_failure(error) from error

        drain(block, sink, self._settings, count, limit)


class _TimedBody(io.RawIOBase):
    """The bytes of an answer, headers included, which end when the time of the request does.

    The time-out of a socket counts from the last byte: a server that sends one in a while would
    hold the reader for ever.
    """

    def __init__(self, source: socket.SocketIO, connection: socket.socket, seconds: float) -> None:
        self._source = source
        self._connection = connection
        self._ends = time.monotonic() + seconds
        self._silence_s = connection.gettimeout()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left_s = self._ends - time.monotonic()
        silence_s = left_s if self._silence_s is None else min(left_s, self._silence_s)
        try:
            if left_s > 0:
                self._connection.settimeout(silence_s)
                return self._source.readinto(buffer)
        except TimeoutError:
            if silence_s < left_s:
                raise
        detail = "the answer took longer than an operation may"
        raise StorageFailure(FailureKind.SLOW, detail)

    def close(self) -> None:
        self._source.close()
        super().close()


def _timed_answers(seconds: float) -> type[http.client.HTTPResponse]:
    """Answers that take at most `seconds`, from their first byte to their last."""

    class TimedAnswer(http.client.HTTPResponse):
        def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
            super().__init__(sock, *args, **kwargs)
            self.fp.close()
            source = sock.makefile("rb", buffering=0)
            self.fp = io.BufferedReader(_TimedBody(source, sock, seconds))

    return TimedAnswer


class _PlainHandler(urllib.request.HTTPHandler):
    """http with a time limit for the whole answer."""

    def __init__(self, settings: StorageSettings) -> None:
        super().__init__()
        self._answers = _timed_answers(settings.deadline_s)

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_connections(http.client.HTTPConnection, self._answers), req)


class _TlsHandler(urllib.request.HTTPSHandler):
    """https with a time limit for the whole answer."""

    def __init__(self, settings: StorageSettings, context: ssl.SSLContext) -> None:
        super().__init__(context=context)
        self._tls = context
        self._answers = _timed_answers(settings.deadline_s)

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        kind = _connections(http.client.HTTPSConnection, self._answers)
        return self.do_open(kind, req, context=self._tls)


def _connections(kind: type[Any], answers: type[http.client.HTTPResponse]) -> Any:
    return type(kind.__name__, (kind,), {"response_class": answers})


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects within a host, and to the hosts that the settings name."""

    def __init__(self, hosts: tuple[str, ...]) -> None:
        self._hosts = hosts

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """The next request.

        Raises:
            StorageFailure: REDIRECT. Only the host is named: such addresses hold secrets.
        """
        here, there = urlsplit(req.full_url), urlsplit(newurl)
        host = (there.hostname or "").lower()
        upgraded = (here.scheme, there.scheme) == ("http", "https")
        same = host == (here.hostname or "").lower() and (
            here.netloc.lower() == there.netloc.lower() or (upgraded and there.port is None)
        )
        downgraded = (here.scheme, there.scheme) == ("https", "http")
        if downgraded or (not same and host not in self._hosts):
            fp.close()
            place = f"{host}:{there.port}" if there.port else host
            detail = f"HTTP {code} to {there.scheme} at {place}"
            raise StorageFailure(FailureKind.REDIRECT, detail)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Links(HTMLParser):
    """The addresses of all links of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found += [value for name, value in attrs if name == "href" and value]


def http_failure(error: Exception) -> StorageFailure:
    """The class of a failure of the standard library's client; no address is in its text."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        code = "InvalidRange" if error.code == 416 else str(error.code)
        return StorageFailure(kind_of_answer(error.code, ""), f"HTTP {error.code}", code=code)
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, ssl.SSLCertVerificationError):
        return StorageFailure(FailureKind.TLS, reason.verify_message)
    if isinstance(reason, http.client.InvalidURL):
        return StorageFailure(FailureKind.REQUEST, "the address has blanks or control characters")
    if isinstance(reason, OSError | http.client.HTTPException):
        detail = (str(reason) if isinstance(reason, OSError) else "") or type(reason).__name__
        return StorageFailure(FailureKind.CONNECTION, detail)
    if isinstance(error, urllib.error.URLError | ValueError):
        return StorageFailure(FailureKind.REQUEST, "the server sent an address that is not valid")
    raise error


def _check_range(answer: Any, start: int, stop: int) -> int:
    """Size of the whole object, after checking that the answer is the requested range."""
    total = _total(answer.headers)
    span = answer.headers.get("Content-Range")
    if span is None:
        # The whole object instead of a range: fine where the range is the whole object.
        if answer.status == 200 and (start, stop) == (0, total):
            return total
        raise StorageFailure(FailureKind.REQUEST, "the server does not support ranges")
    if span.rpartition("/")[0] != f"bytes {start}-{stop - 1}":
        raise StorageFailure(FailureKind.WRONG_DATA, f"requested {start}-{stop - 1}, got {span}")
    length = _announced(answer.headers)
    if length is not None and length != stop - start:
        raise StorageFailure(
            FailureKind.WRONG_DATA, f"the answer announces {length} bytes of {stop - start}"
        )
    return total


def _total(headers: Any, *, whole: bool = True) -> int:
    """Size of the whole object, or of the body of this answer."""
    span = headers.get("Content-Range") if whole else None
    size = span.rpartition("/")[2] if span else headers.get("Content-Length", "")
    if not str(size).isdecimal():
        raise StorageFailure(FailureKind.REQUEST, _NO_SIZE)
    return int(size)


def _announced(headers: Any) -> int | None:
    """Content-Length; None where the answer has another way to say where it ends."""
    return None if headers.get("Content-Length") is None else _total(headers, whole=False)


def _entry(key: str, size_bytes: int, headers: Any) -> Entry:
    moment = email.utils.parsedate_tz(headers.get("Last-Modified", ""))
    modified = float(email.utils.mktime_tz(moment)) if moment else None
    return Entry(key, size_bytes, _etag(headers), modified)


def _etag(headers: Any) -> str | None:
    """A strong ETag; a weak one may stay while bytes change."""
    text = str(headers.get("ETag") or "")
    return None if text.startswith("W/") else text.strip('"') or None
