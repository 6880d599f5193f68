"""Files under an http(s) address as a read-only Storage.

Such servers cannot list files. The index pages that most of them generate are read instead; without
one, files are found by name (`stat`) only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar, cast
from urllib.parse import urlsplit

from app.errors import AccessDeniedError, ConfigError
from app.storage.connections import SchemeProbe
from app.storage.failures import StorageFailure, size_error
from app.storage.http_client import HttpClient
from app.storage.objects import Entry, ObjectMissingError, Receipt, Upload, check_key, check_prefix
from app.storage.retry import Clock, Retrier, Streams
from app.storage.s3_bulk import BulkClient
from app.storage.settings import StorageSettings
from app.storage.transfer import Transfers

T = TypeVar("T")

SCHEMES = ("http", "https")
DEEPEST = 16  # nested folders
LISTING_STREAMS = 8


class HttpStorage:
    """`https://host/folder` as a Storage; every write is refused."""

    def __init__(self, url: str, settings: StorageSettings, clock: Clock | None = None) -> None:
        clock = clock or Clock()
        self.url = checked_address(url)
        self._streams = Streams(settings.download_streams, clock)
        self._retrier = Retrier(
            settings.deadline_s,
            clock,
            refresh=lambda: None,
            throttled=self._streams.throttle,
            explain=SchemeProbe(self.url, "the address").explained,
        )
        self._client = HttpClient(self.url, settings)
        # Downloads only ever call `read_range`, which both clients have.
        client = cast("BulkClient", self._client)
        self._transfers = Transfers(settings, self._retrier, self._streams, lambda: client)

    def list(self, prefix: str = "") -> list[Entry]:
        """See Storage.list: what the index pages link to.

        Raises:
            ConfigError: the server shows no index pages.
        """
        check_prefix(prefix, self.url)
        folder = prefix.rpartition("/")[0]
        found = self._walk(f"{folder}/" if folder else "", 0)
        wanted = [key for key in found if key.startswith(prefix)]
        with ThreadPoolExecutor(LISTING_STREAMS) as pool:
            return sorted(pool.map(self.stat, wanted), key=lambda entry: entry.key)

    def folders(self, prefix: str = "") -> Sequence[str]:
        """See Storage.folders."""
        check_prefix(prefix, self.url)
        return self._page(prefix.rstrip("/") + "/" if prefix else "")[1]

    def stat(self, key: str) -> Entry:
        """See Storage.stat."""
        return self._ask(lambda: self._client.stat(check_key(key, self.url)), "looking up", key)

    def read_small(self, key: str) -> bytes:
        """See Storage.read_small."""
        return self._ask(lambda: self._client.get(check_key(key, self.url)), "reading", key)

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        """See Storage.read_range."""
        where = f"{self.url}/{check_key(key, self.url)}"
        return self._transfers.read_bytes(key, where, start, stop)

    def download(self, key: str, path: Path, expect: Entry | Receipt | None = None) -> Receipt:
        """See Storage.download."""
        where = f"{self.url}/{check_key(key, self.url)}"
        described = self.stat(key)
        if expect is not None and described.size_bytes != expect.size_bytes:
            raise size_error(where, described.size_bytes, expect.size_bytes)
        expect = expect if isinstance(expect, Receipt) else described
        return self._transfers.download(key, where, path, described.size_bytes, expect)

    def write_small(self, key: str, data: bytes) -> None:
        """Not supported."""
        raise self._read_only(key)

    def upload(self, path: Path, key: str) -> Receipt:
        """Not supported."""
        raise self._read_only(key)

    def delete(self, keys: Iterable[str]) -> None:
        """Not supported, unless there is nothing to delete."""
        for key in keys:
            raise self._read_only(key)

    def list_uploads(self, prefix: str = "") -> Sequence[Upload]:
        """None: nothing is ever uploaded."""
        return []

    def abort_upload(self, upload: Upload) -> None:
        """Nothing to abort."""

    def check_reachable(self, deadline_s: float | None = None) -> None:
        """See Storage.check_reachable: any answer will do."""

        def request() -> None:
            try:
                self._client.page("")
            except StorageFailure as failure:
                if not failure.code:
                    raise

        self._retrier.run(request, what="asking", where=self.url, deadline_s=deadline_s)

    def identity(self) -> dict[str, str]:
        """See Storage.identity."""
        return {"url": self.url, "endpoint": self.url, "credentials": "none"}

    def _walk(self, folder: str, depth: int) -> Sequence[str]:
        files, folders = self._page(folder)
        found = [f"{folder}{name}" for name in files]
        for name in folders if depth < DEEPEST else ():
            found += self._walk(f"{folder}{name}/", depth + 1)
        return found

    def _page(self, folder: str) -> tuple[Sequence[str], Sequence[str]]:
        try:
            return self._retrier.run(
                lambda: self._client.page(folder), what="listing", where=f"{self.url}/{folder}"
            )
        except (ConfigError, AccessDeniedError, ObjectMissingError) as error:
            raise ConfigError(
                "this server shows no list of its files",
                where=f"{self.url}/{folder}",
                fix="name the files (https://host/folder/x-{000..123}.tar), or put the "
                "dataset.manifest.json of `cogvx data pack` into their folder",
            ) from error

    def _ask(self, request: Callable[[], T], what: str, key: str) -> T:
        try:
            return self._retrier.run(request, what=what, where=f"{self.url}/{key}")
        except AccessDeniedError as error:
            raise AccessDeniedError(
                error.what,
                where=error.where,
                fix="http(s) data is read without credentials: make it public, or copy it to a "
                "folder or bucket",
            ) from error

    def _read_only(self, key: str) -> AccessDeniedError:
        return AccessDeniedError(
            "cannot write over http",
            where=f"{self.url}/{key}",
            fix="write to a folder or an s3:// prefix",
        )


def checked_address(url: str) -> str:
    """An http(s) URL of a folder, without a slash at its end.

    Raises:
        ConfigError: no host, credentials in the URL, or a query. The text is not repeated:
            people put passwords into URLs.
    """
    try:
        parts = urlsplit(url)
        fits = parts.scheme.lower() in SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fits, parts = False, urlsplit("")
    if not fits or "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError(
            "this is not an address of the form https://host/folder",
            where=f"{parts.scheme}://{parts.hostname or ''}/...",
            fix="write it without user, password and query",
        )
    return url.rstrip("/")
