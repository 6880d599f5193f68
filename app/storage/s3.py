"""Objects below one prefix of an S3 bucket."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Generic, TypeVar

from app.errors import DataError, InputMissingError
from app.storage.connections import SchemeProbe
from app.storage.failures import FailureKind, StorageFailure, size_error
from app.storage.objects import Entry, ObjectMissingError, Receipt, Upload, check_key, check_prefix
from app.storage.retry import Clock, Retrier, Streams
from app.storage.s3_bulk import BulkClient, credential_provider
from app.storage.s3_control import ControlClient
from app.storage.settings import StorageSettings
from app.storage.transfer import Transfers, run_all

T = TypeVar("T")

_DELETE_STREAMS = 8
_FRESH_KEYS = 256  # of our own writes; a 404 for one of them is repeated


class PerProcess(Generic[T]):
    """One value per process id, made at its first use.

    A client's sockets and locks must not cross a fork. The parent's value is kept in the child,
    unused: to collect it there would close the parent's connections.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._values: dict[int, T] = {}
        self._locks: dict[int, threading.Lock] = {}
        self._dropped: list[T] = []

    def get(self) -> T:
        """The value of this process."""
        pid = os.getpid()
        value = self._values.get(pid)
        if value is not None:
            return value
        with self._locks.setdefault(pid, threading.Lock()):
            if pid not in self._values:
                self._values[pid] = self._make()
            return self._values[pid]

    def renew(self) -> None:
        """Make a new value at the next use; threads that hold the old one may finish."""
        old = self._values.pop(os.getpid(), None)
        if old is not None:
            self._dropped.append(old)


class S3Storage:
    """`s3://bucket/prefix` as a Storage; an empty prefix is the whole bucket."""

    def __init__(
        self, bucket: str, prefix: str, settings: StorageSettings, clock: Clock | None = None
    ) -> None:
        clock = clock or Clock()
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._settings = settings
        self._streams = Streams(settings.download_streams + settings.upload_streams, clock)
        self._retrier = Retrier(
            settings.deadline_s,
            clock,
            refresh=self._renew,
            throttled=self._streams.throttle,
            explain=SchemeProbe(settings.endpoint).explained,
        )
        self._control = PerProcess(lambda: ControlClient(settings, bucket))
        self._bulk = PerProcess(lambda: BulkClient(settings, bucket))
        self._transfers = Transfers(settings, self._retrier, self._streams, self._bulk.get)
        self._fresh: dict[str, None] = {}

    def list(self, prefix: str = "") -> list[Entry]:
        """See Storage.list."""
        check_prefix(prefix, self.url)
        entries, _ = self._pages(self._prefix + prefix, "")
        skip = len(self._prefix)
        # Consoles create empty "folder" objects, which are not data.
        found = [
            Entry(entry.key[skip:], entry.size_bytes, entry.etag, entry.modified)
            for entry in entries
            if len(entry.key) > skip and not entry.key.endswith("/")
        ]
        return sorted(found, key=lambda entry: entry.key)

    def folders(self, prefix: str = "") -> Sequence[str]:
        """See Storage.folders."""
        check_prefix(prefix, self.url)
        folder = self._prefix + (prefix.rstrip("/") + "/" if prefix else "")
        _, prefixes = self._pages(folder, "/")
        return sorted(found[len(folder) :].rstrip("/") for found in prefixes)

    def stat(self, key: str) -> Entry:
        """See Storage.stat."""
        whole = self._whole(key)
        found = self._ask(lambda: self._control.get().stat(whole), "looking up", key)
        return Entry(key, found.size_bytes, found.etag, found.modified)

    def read_small(self, key: str) -> bytes:
        """See Storage.read_small."""
        whole = self._whole(key)

        def request() -> bytes:
            # A consistent answer that is too short is only seen by the size.
            client = self._control.get()
            size_bytes = client.stat(whole).size_bytes
            data = client.get(whole)
            if len(data) != size_bytes:
                raise StorageFailure(
                    FailureKind.WRONG_DATA, f"has {size_bytes} bytes and {len(data)} came"
                )
            return data

        return self._ask(request, "reading", key)

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        """See Storage.read_range."""
        return self._transfers.read_bytes(self._whole(key), self._where(key), start, stop)

    def download(self, key: str, path: Path, expect: Entry | Receipt | None = None) -> Receipt:
        """See Storage.download."""
        where, whole = self._where(key), self._whole(key)
        described = expect if expect is not None and expect.size_bytes else self.stat(key)
        if expect is not None and described.size_bytes != expect.size_bytes:
            raise size_error(where, described.size_bytes, expect.size_bytes)
        expect = expect or described
        receipt = self._transfers.download(whole, where, path, described.size_bytes, expect)
        return replace(receipt, key=key)

    def write_small(self, key: str, data: bytes) -> None:
        """See Storage.write_small."""
        whole = self._whole(check_key(key, self.url))
        self._ask(lambda: self._control.get().put(whole, data), "writing", key)
        self._note_fresh(key)

    def upload(self, path: Path, key: str) -> Receipt:
        """See Storage.upload."""
        whole = self._whole(check_key(key, self.url))
        receipt = self._transfers.upload(path, whole, self._where(key))
        self._note_fresh(key)
        if receipt.size_bytes > self._settings.part_bytes:
            found = self.stat(key)
            if found.size_bytes != receipt.size_bytes:
                raise DataError(
                    f"the uploaded object has {found.size_bytes} bytes, not {receipt.size_bytes}",
                    where=self._where(key),
                    fix="another process wrote it; give each run its own prefix",
                )
        return Receipt(key, receipt.size_bytes, receipt.piece_bytes, receipt.sha256)

    def delete(self, keys: Iterable[str]) -> None:
        """See Storage.delete."""

        # One request each: batch deletion is the call that S3's imitators lack most often.
        def deletion(key: str) -> Callable[[], None]:
            whole = self._whole(key)
            return lambda: self._ask(lambda: self._control.get().delete(whole), "deleting", key)

        tasks = [deletion(key) for key in keys]
        if tasks:
            run_all(tasks, _DELETE_STREAMS)

    def list_uploads(self, prefix: str = "") -> Sequence[Upload]:
        """See Storage.list_uploads."""
        check_prefix(prefix, self.url)
        whole = self._prefix + prefix
        found = self._ask(lambda: self._control.get().uploads(whole), "listing uploads", prefix)
        skip = len(self._prefix)
        return [Upload(upload.key[skip:], upload.upload_id) for upload in found]

    def abort_upload(self, upload: Upload) -> None:
        """See Storage.abort_upload."""
        whole = self._whole(upload.key)
        self._ask(
            lambda: self._control.get().abort_upload(whole, upload.upload_id),
            "aborting an upload",
            upload.key,
        )

    def check_reachable(self, deadline_s: float | None = None) -> None:
        """See Storage.check_reachable."""
        try:
            self._retrier.run(
                lambda: self._control.get().look(self._prefix),
                what="looking for the bucket",
                where=self._place(),
                deadline_s=deadline_s,
            )
        except ObjectMissingError as missing:
            raise InputMissingError(
                f"there is no bucket {self._bucket!r}",
                where=self._place(),
                fix="create it, or correct its name",
            ) from missing

    def identity(self) -> dict[str, str]:
        """See Storage.identity."""
        return {
            "url": self.url,
            "endpoint": self._settings.endpoint or "AWS",
            "region": self._settings.region,
            "credentials": credential_provider(),
        }

    def _pages(self, prefix: str, delimiter: str) -> tuple[Sequence[Entry], Sequence[str]]:
        entries: list[Entry] = []
        prefixes: list[str] = []
        token: str | None = None
        while True:
            page = self._retrier.run(
                lambda token=token: self._control.get().page(prefix, delimiter, token),  # type: ignore[misc]
                what="listing",
                where=f"s3://{self._bucket}/{prefix}",
            )
            entries += page[0]
            prefixes += page[1]
            token = page[2]
            if token is None:
                return entries, prefixes

    def _ask(self, request: Callable[[], T], what: str, key: str) -> T:
        return self._retrier.run(
            request, what=what, where=self._where(key), fresh=key in self._fresh
        )

    def _note_fresh(self, key: str) -> None:
        self._fresh[key] = None
        while len(self._fresh) > _FRESH_KEYS:
            self._fresh.pop(next(iter(self._fresh)), None)

    def _renew(self) -> None:
        self._control.renew()
        self._bulk.renew()

    def _whole(self, key: str) -> str:
        return self._prefix + check_key(key, self.url)

    def _where(self, key: str) -> str:
        return f"s3://{self._bucket}/{self._prefix}{key}"

    def _place(self) -> str:
        at = f" at {self._settings.endpoint}" if self._settings.endpoint else ""
        return f"s3://{self._bucket}{at}"
