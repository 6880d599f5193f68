"""Whole objects to and from local files: parallel ranges and parts, sizes and digests."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from app.errors import DataError
from app.storage.digests import file_digests, piece_digest, wrong_piece
from app.storage.failures import FailureKind, StorageFailure, size_error
from app.storage.objects import PIECE_BYTES, Entry, Receipt
from app.storage.retry import Retrier, Streams
from app.storage.s3_bulk import BulkClient
from app.storage.settings import StorageSettings

T = TypeVar("T")

MAX_PARTS = 10_000  # the limit of S3
MIB = 2**20


class Sink(Protocol):
    """Where the bytes of a range go: a place at `offset` from the start of the object."""

    def __call__(self, data: bytes, offset: int) -> None: ...


class Transfers:
    """Moves the bytes of one bucket: `retrier` repeats single requests, `streams` bounds the ones
    in flight over all transfers, `client` gives the client of this process."""

    def __init__(
        self,
        settings: StorageSettings,
        retrier: Retrier,
        streams: Streams,
        client: Callable[[], BulkClient],
    ) -> None:
        self._settings = settings
        self._retrier = retrier
        self._streams = streams
        self._client = client

    def read(
        self, key: str, where: str, span: tuple[int, int], sink: Sink, etag: str | None
    ) -> int:
        """Hand bytes [start, stop) to `sink`, several ranges at a time; returns the total size.

        A range that is cut in the middle continues where it stopped, on a new connection.
        """
        start, stop = span
        step = self._settings.range_bytes
        totals = run_all(
            [
                partial(self._read_one, key, where, (at, min(at + step, stop)), sink, etag)
                for at in range(start, stop, step)
            ],
            self._settings.download_streams,
        )
        return totals[0]

    def read_bytes(self, key: str, where: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) in memory.

        Raises:
            DataError: there is no such range.
        """
        if not 0 <= start <= stop:
            raise DataError(f"there is no range {start}-{stop}", where=where, fix="check it")
        buffer = bytearray(stop - start)

        def keep(data: bytes, offset: int) -> None:
            buffer[offset - start : offset - start + len(data)] = data

        if buffer:
            self.read(key, where, (start, stop), keep, None)
        return bytes(buffer)

    def _read_one(
        self, key: str, where: str, span: tuple[int, int], sink: Sink, etag: str | None
    ) -> int:
        start, stop = span
        arrived = start

        def keep(block: bytes) -> None:
            nonlocal arrived
            sink(block, arrived)
            arrived += len(block)

        def request() -> int:
            nonlocal arrived
            with self._streams.one():
                try:
                    return self._client().read_range(key, arrived, stop, keep, etag)
                except StorageFailure as failure:
                    if failure.kind is FailureKind.WRONG_DATA:
                        arrived = start  # what arrived before may be wrong as well
                    raise

        return self._retrier.run(request, what=f"reading bytes {start}-{stop - 1}", where=where)

    def download(
        self, key: str, where: str, path: Path, size_bytes: int, expect: Entry | Receipt | None
    ) -> Receipt:
        """Copy an object to a local file, whole or not at all; see Storage.download.

        Args:
            size_bytes: of the object.
            expect: its identity or digests, if known.
        """
        etag = expect.etag if isinstance(expect, Entry) else None
        temporary = path.with_name(f".{path.name}.part-{os.getpid()}-{uuid.uuid4().hex[:8]}")
        try:
            digests = self._fill(key, where, temporary, size_bytes, etag)
            piece_bytes = PIECE_BYTES
            if isinstance(expect, Receipt):
                piece_bytes = expect.piece_bytes
                if piece_bytes != PIECE_BYTES or digests != expect.sha256:
                    digests = self._fetch_broken_pieces(key, where, temporary, expect)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return Receipt(key, size_bytes, piece_bytes, digests)

    def _fill(
        self, key: str, where: str, path: Path, size_bytes: int, etag: str | None
    ) -> tuple[str, ...]:
        """Write the object to the file at `path`; returns the digests of its pieces."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            os.ftruncate(descriptor, size_bytes)
            if size_bytes:
                sink = _file_sink(descriptor)
                total = self.read(key, where, (0, size_bytes), sink, etag)
                if total != size_bytes:
                    raise size_error(where, total, size_bytes)
        finally:
            os.close(descriptor)
        return file_digests(path)

    def _fetch_broken_pieces(
        self, key: str, where: str, path: Path, expected: Receipt
    ) -> tuple[str, ...]:
        """Compare a downloaded file with its receipt; read a piece that differs once more.

        Raises:
            DataError: a piece differs twice; names it.
        """
        found = list(file_digests(path, expected.piece_bytes))
        while (index := wrong_piece(expected.sha256, found)) is not None:
            if len(found) != len(expected.sha256):
                raise _digest_error(where, index)
            span = (
                index * expected.piece_bytes,
                min((index + 1) * expected.piece_bytes, expected.size_bytes),
            )
            descriptor = os.open(path, os.O_RDWR)
            try:
                self.read(key, where, span, _file_sink(descriptor), None)
            finally:
                os.close(descriptor)
            again = piece_digest(path, index, expected.piece_bytes)
            if again != expected.sha256[index]:
                raise _digest_error(where, index)
            found[index] = again
        return tuple(found)

    def upload(self, path: Path, key: str, where: str) -> Receipt:
        """Copy a file to an object: in one PUT, or in parts, several at a time."""
        size_bytes = path.stat().st_size
        if size_bytes <= self._settings.part_bytes:
            data = path.read_bytes()
            self._put(key, where, data)
        else:
            self._upload_parts(path, key, where, size_bytes)
        return Receipt(key, size_bytes, PIECE_BYTES, file_digests(path))

    def _put(self, key: str, where: str, data: bytes) -> None:
        def request() -> None:
            with self._streams.one():
                self._client().put(key, data)

        self._retrier.run(request, what="writing", where=where)

    def _upload_parts(self, path: Path, key: str, where: str, size_bytes: int) -> None:
        part_bytes = part_size(size_bytes, self._settings.part_bytes)
        upload_id = self._retrier.run(
            lambda: self._client().begin_upload(key), what="beginning an upload", where=where
        )

        def put_part(number: int) -> str:
            with path.open("rb") as file:
                file.seek((number - 1) * part_bytes)
                data = file.read(part_bytes)

            def request() -> str:
                with self._streams.one():
                    return self._client().put_part(key, upload_id, number, data)

            return self._retrier.run(request, what=f"writing part {number}", where=where)

        numbers = range(1, -(-size_bytes // part_bytes) + 1)
        try:
            etags = run_all([partial(put_part, n) for n in numbers], self._settings.upload_streams)
            self._complete(key, where, upload_id, dict(zip(numbers, etags, strict=True)))
        except BaseException:
            # One try: if it fails too, the parts stay until somebody lists and aborts the upload,
            # or a lifecycle rule of the bucket does.
            with suppress(StorageFailure):
                self._client().abort_upload(key, upload_id)
            raise

    def _complete(self, key: str, where: str, upload_id: str, etags: dict[int, str]) -> None:
        tries = 0

        def request() -> None:
            nonlocal tries
            tries += 1
            try:
                self._client().complete_upload(key, upload_id, etags)
            except StorageFailure as failure:
                # The answer to the first try was lost, and the upload is done. The caller checks
                # the size of the object.
                if failure.code != "NoSuchUpload" or tries == 1:
                    raise

        self._retrier.run(request, what="completing an upload", where=where)


def part_size(size_bytes: int, smallest: int) -> int:
    """Bytes of one part: `smallest`, or more, in whole MiB, to stay within 10,000 parts."""
    needed = -(-size_bytes // MAX_PARTS)
    return max(smallest, -(-needed // MIB) * MIB)


def run_all(tasks: Iterable[Callable[[], T]], threads: int) -> list[T]:
    """Results of all tasks in order, several at a time; the first error ends the rest."""
    tasks = list(tasks)
    if len(tasks) == 1:
        return [tasks[0]()]
    with ThreadPoolExecutor(max(1, min(threads, len(tasks)))) as pool:
        futures: list[Future[T]] = [pool.submit(task) for task in tasks]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        failed = next((future for future in done if future.exception() is not None), None)
        if failed is not None:
            pool.shutdown(wait=True, cancel_futures=True)
            failed.result()
        return [future.result() for future in futures]


def _file_sink(descriptor: int) -> Sink:
    def write(data: bytes, offset: int) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(descriptor, view, offset)
            view = view[written:]
            offset += written

    return write


def _digest_error(where: str, index: int) -> DataError:
    return DataError(
        f"piece {index} has a different sha256 than recorded, twice",
        where=where,
        fix="the object is damaged; write it again or take another one",
    )
