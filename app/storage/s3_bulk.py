"""Bulk bytes from and to S3: plain synchronous botocore, one request per call, no retries.

The only module that imports botocore (it comes with s3fs). It also classifies the failures
of both client libraries.
"""

from __future__ import annotations

import http.client
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any

import botocore.session
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ResponseStreamingError,
    SSLError,
)
from botocore.exceptions import (
    ConnectionError as BotoConnectionError,
)
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError as TransportError

from app.storage.bodies import check_etag, drain
from app.storage.digests import content_md5
from app.storage.failures import FailureKind, StorageFailure, kind_of_answer
from app.storage.settings import StorageSettings

_TRANSPORT = (BotoCoreError, TransportError, OSError, http.client.HTTPException)


def client_options(settings: StorageSettings) -> dict[str, Any]:
    """Arguments of botocore's Config that both clients share."""
    streams = settings.download_streams + settings.upload_streams
    return {
        "s3": {"addressing_style": "path" if settings.endpoint else "auto"},
        "connect_timeout": settings.connect_timeout_s,
        "read_timeout": settings.read_timeout_s,
        "max_pool_connections": 2 * streams,
        "retries": {"mode": "standard", "total_max_attempts": 1},  # retry.py repeats
        # Older servers reject or garble the newer default checksums; ours replace them.
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
        "tcp_keepalive": True,
    }


@cache
def service_models() -> Any:
    """The loader that keeps S3's parsed description: reading it costs more than a client."""
    return botocore.session.get_session().get_component("data_loader")


def credential_provider() -> str:
    """Name of botocore's provider that found credentials; "none" when nothing did."""
    try:
        credentials = botocore.session.get_session().get_credentials()
    except BotoCoreError as error:
        return f"failed ({type(error).__name__})"
    return str(credentials.method) if credentials is not None else "none"


class BulkClient:
    """One botocore client of one process and one bucket; safe to use from several threads."""

    def __init__(self, settings: StorageSettings, bucket: str) -> None:
        self._settings = settings
        self._bucket = bucket
        session = botocore.session.get_session()
        session.register_component("data_loader", service_models())
        self._client = session.create_client(
            "s3",
            region_name=settings.region,
            endpoint_url=settings.endpoint,
            verify=settings.ca_file,
            config=Config(**client_options(settings)),
        )

    def read_range(
        self,
        key: str,
        start: int,
        stop: int,
        sink: Callable[[bytes], None],
        etag: str | None = None,
    ) -> int:
        """Read bytes [start, stop) of an object and hand them to `sink` block by block.

        Returns:
            Size of the whole object, as the answer says.

        Raises:
            StorageFailure: anything but exactly these bytes. `sink` then has the first part of
                them, unless the kind is WRONG_DATA, which is found before the first byte.
        """
        answer = self._call("get_object", Key=key, Range=f"bytes={start}-{stop - 1}")
        body = answer["Body"]
        try:
            total = _check_range(answer, start, stop)
            check_etag(etag, (answer.get("ETag") or "").strip('"') or None)

            def block(size: int) -> bytes:
                try:
                    return bytes(body.read(size))
                except _TRANSPORT as error:
                    raise s3_failure(error) from error

            drain(block, sink, self._settings, stop - start)
        finally:
            body.close()  # with bytes left, this drops the connection
        return total

    def put(self, key: str, data: bytes) -> None:
        """Write one object in one request."""
        self._call("put_object", Key=key, Body=data, ContentMD5=content_md5(data))

    def begin_upload(self, key: str) -> str:
        """Begin a multipart upload; returns its id."""
        return str(self._call("create_multipart_upload", Key=key)["UploadId"])

    def put_part(self, key: str, upload_id: str, number: int, data: bytes) -> str:
        """Write one part (numbers from 1); returns the ETag that completes it."""
        answer = self._call(
            "upload_part",
            Key=key,
            UploadId=upload_id,
            PartNumber=number,
            Body=data,
            ContentMD5=content_md5(data),
        )
        return str(answer["ETag"])

    def complete_upload(self, key: str, upload_id: str, etags: Mapping[int, str]) -> None:
        """Make the object appear, from its parts in order of their numbers."""
        parts = [{"PartNumber": number, "ETag": etags[number]} for number in sorted(etags)]
        self._call(
            "complete_multipart_upload",
            Key=key,
            UploadId=upload_id,
            MultipartUpload={"Parts": parts},
        )

    def abort_upload(self, key: str, upload_id: str) -> None:
        """Discard a multipart upload."""
        self._call("abort_multipart_upload", Key=key, UploadId=upload_id)

    def _call(self, method: str, **arguments: Any) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = getattr(self._client, method)(Bucket=self._bucket, **arguments)
        except (ClientError, ResponseParserError, *_TRANSPORT) as error:
            raise s3_failure(error) from error
        return answer


def s3_failure(error: BaseException) -> StorageFailure:
    """Class and one-line description of a client library's exception.

    Raises:
        BaseException: `error` itself, when it is not a failure of storage but a bug.
    """
    if isinstance(error, ClientError):
        return _answer_failure(error)
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return StorageFailure(FailureKind.DENIED, "no credentials were found")
    if isinstance(error, CredentialRetrievalError):
        return StorageFailure(FailureKind.SERVER, "the provider gave no credentials")
    if isinstance(error, SSLError) and "CERTIFICATE" in str(error).upper():
        return StorageFailure(FailureKind.TLS, type(error).__name__)
    transport = (
        HTTPClientError,
        BotoConnectionError,  # refused, no such host, connect timeout
        ResponseStreamingError,
        ResponseParserError,
        TransportError,
        OSError,
        http.client.HTTPException,
    )
    # These have no base class of their own.
    by_name = type(error).__name__ in ("IncompleteReadError", "IncompleteRead")
    library = type(error).__module__.partition(".")[0]
    if isinstance(error, transport) or by_name or library == "aiohttp":
        return StorageFailure(FailureKind.CONNECTION, type(error).__name__)
    if isinstance(error, BotoCoreError):
        return StorageFailure(FailureKind.REQUEST, type(error).__name__)
    raise error


def _answer_failure(error: ClientError) -> StorageFailure:
    meta = error.response.get("ResponseMetadata", {})
    status = int(meta.get("HTTPStatusCode", 0))
    code = str(error.response.get("Error", {}).get("Code", ""))
    kind = kind_of_answer(status, code)
    detail = f"{status} {code}".strip()
    if kind is FailureKind.CLOCK:
        server = meta.get("HTTPHeaders", {}).get("date", "unknown")
        detail = f"server {server}, here {datetime.now(UTC):%a, %d %b %Y %H:%M:%S} GMT"
    elif status in (301, 307):
        region = meta.get("HTTPHeaders", {}).get("x-amz-bucket-region", "another region")
        detail = f"{detail}, the bucket is in {region}"
    elif kind is FailureKind.WRONG_DATA:
        # An upload garbled on the way says nothing about the object: always repeat it.
        kind = FailureKind.CONNECTION
    return StorageFailure(kind, detail, code=code)


def _check_range(answer: Mapping[str, Any], start: int, stop: int) -> int:
    # Some servers answer 200 to a ranged request; Content-Range says what they send.
    shown = str(answer.get("ContentRange", ""))
    length = answer.get("ContentLength")
    span, _, total = shown.removeprefix("bytes ").partition("/")
    if span != f"{start}-{stop - 1}" or not total.isdecimal() or length != stop - start:
        raise StorageFailure(
            FailureKind.WRONG_DATA,
            f"requested bytes {start}-{stop - 1}, the answer has {length} bytes "
            f"and says {shown or 'no range'!r}",
        )
    return int(total)
