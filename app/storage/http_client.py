"""Reading over http and https: one request per call, no retries (retry.py does those).

Nothing but the standard library; redirects are followed to http and https only.
"""

from __future__ import annotations

import email.utils
import http.client
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit

from app.storage.bodies import check_etag, drain
from app.storage.failures import FailureKind, StorageFailure, kind_of_answer
from app.storage.objects import Entry
from app.storage.settings import StorageSettings

_LARGEST_PAGE_BYTES = 64 << 20
_NO_HEAD = (403, 405, 501)  # servers and signed addresses that answer GET only


class HttpClient:
    """Objects below an http(s) URL (no slash at its end); safe to use from several threads."""

    def __init__(self, root: str, settings: StorageSettings) -> None:
        self._root = root
        self._settings = settings
        context = ssl.create_default_context(cafile=settings.ca_file)
        self._opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler(),
            urllib.request.HTTPHandler(),
            urllib.request.HTTPSHandler(context=context),
            urllib.request.HTTPRedirectHandler(),
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
                    return _entry(key, int(size), answer.headers)
        except StorageFailure as failure:
            if failure.code not in {str(status) for status in _NO_HEAD}:
                raise
        with self._request("GET", key, "bytes=0-0") as answer:
            return _entry(key, _total(answer.headers), answer.headers)

    def get(self, key: str) -> bytes:
        """A whole small object."""
        with self._request("GET", key) as answer:
            size = answer.headers.get("Content-Length")
            return self._drained(answer, None if size is None else int(size))

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
            text = self._drained(answer, None, _LARGEST_PAGE_BYTES).decode("utf-8", "replace")
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
        except Exception as error:
            raise http_failure(error) from error

    def _drained(self, answer: Any, count: int | None, limit: int | None = None) -> bytes:
        blocks: list[bytes] = []
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
            except Exception as error:
                raise http_failure(error) from error

        drain(block, sink, self._settings, count, limit)


class _Links(HTMLParser):
    """The addresses of all links of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found += [value for name, value in attrs if name == "href" and value]


def http_failure(error: Exception) -> StorageFailure:
    """The class of a failure of the standard library's client."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        code = "InvalidRange" if error.code == 416 else str(error.code)
        return StorageFailure(kind_of_answer(error.code, ""), f"HTTP {error.code}", code=code)
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, ssl.SSLCertVerificationError):
        return StorageFailure(FailureKind.TLS, reason.verify_message)
    if isinstance(reason, OSError | http.client.HTTPException):
        detail = str(reason) or type(reason).__name__
        return StorageFailure(FailureKind.CONNECTION, detail)
    if isinstance(error, urllib.error.URLError | ValueError):
        return StorageFailure(FailureKind.REQUEST, str(reason))
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
    length = answer.headers.get("Content-Length")
    if length is not None and int(length) != stop - start:
        raise StorageFailure(
            FailureKind.WRONG_DATA, f"the answer announces {length} bytes of {stop - start}"
        )
    return total


def _total(headers: Any) -> int:
    span = headers.get("Content-Range")
    size = span.rpartition("/")[2] if span else headers.get("Content-Length", "")
    if not str(size).isdigit():
        raise StorageFailure(FailureKind.REQUEST, "the server does not give the size of the file")
    return int(size)


def _entry(key: str, size_bytes: int, headers: Any) -> Entry:
    moment = email.utils.parsedate_tz(headers.get("Last-Modified", ""))
    modified = float(email.utils.mktime_tz(moment)) if moment else None
    return Entry(key, size_bytes, _etag(headers), modified)


def _etag(headers: Any) -> str | None:
    """A strong ETag; a weak one may stay while bytes change."""
    text = str(headers.get("ETag") or "")
    return None if text.startswith("W/") else text.strip('"') or None
