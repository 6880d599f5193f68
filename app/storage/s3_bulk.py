"""Bulk bytes from and to S3: plain synchronous botocore, one request per call, no retries.

The only module that imports botocore (it comes with s3fs). It also classifies the failures
of both client libraries.
"""

from __future__ import annotations

import http.client
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any

import botocore.session
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConfigParseError,
    CredentialRetrievalError,
    HTTPClientError,
    InfiniteLoopConfigError,
    InvalidConfigError,
    InvalidRegionError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    ResponseStreamingError,
    SSLError,
    SSOError,
    UnknownCredentialError,
)
from botocore.exceptions import (
    ConnectionError as BotoConnectionError,
)
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError as TransportError

from app.storage.connections import check_etag, drain
from app.storage.digests import content_md5
from app.storage.failures import FailureKind, StorageFailure, kind_of_answer
from app.storage.settings import REGION_VARIABLES, StorageSettings, given_by, tls_context

# ValueError: values that no header takes.
_TRANSPORT = (BotoCoreError, TransportError, OSError, http.client.HTTPException, ValueError)
# Files of credentials and certificates: nothing on the network raises these.
_FILE_ERRORS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
# What the clients say of profiles and files; no value of a key is in these texts.
_SETUP_ERRORS: dict[type[BotoCoreError], str] = {
    ProfileNotFound: "AWS_PROFILE",
    ConfigParseError: "AWS_CONFIG_FILE or AWS_SHARED_CREDENTIALS_FILE",
    InvalidRegionError: "",  # the variable that gives the region
    PartialCredentialsError: "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    InvalidConfigError: "AWS_PROFILE",
    InfiniteLoopConfigError: "AWS_PROFILE",
    UnknownCredentialError: "AWS_PROFILE",
    SSOError: "AWS_PROFILE",
}


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


def prepare_session(session: Any, settings: StorageSettings) -> None:
    """Give a session of either client library what both clients share.

    Raises:
        StorageFailure: SETUP: the profile or a file that names it is wrong.
        ConfigError: the profile names a CA bundle that cannot be read.
    """
    if settings.ca_file is None:
        with _failures():
            ca_file = session.get_config_variable("ca_bundle")
        tls_context(ca_file, "ca_bundle of the AWS profile")
    session.register_component("data_loader", service_models())
    if settings.requester_pays:
        session.register("before-call.s3", _pay)


def _pay(params: dict[str, Any], **_: Any) -> None:
    params["headers"]["x-amz-request-payer"] = "requester"


def credential_provider() -> str:
    """Name of botocore's provider that found credentials; "none" when nothing did."""
    try:
        credentials = botocore.session.get_session().get_credentials()
    except (BotoCoreError, OSError, ValueError) as error:
        return f"failed ({type(error).__name__})"
    return str(credentials.method) if credentials is not None else "none"


class BulkClient:
    """One botocore client of one process and one bucket; safe to use from several threads."""

    def __init__(self, settings: StorageSettings, bucket: str) -> None:
        self._settings = settings
        self._bucket = bucket
        session = botocore.session.get_session()
        prepare_session(session, settings)
        with _failures():
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

            # botocore's own `read` waits for all of the block, for ever where a server drips.
            stream = body._raw_stream

            def block(size: int) -> bytes:
                try:
                    return bytes(stream.read1(size))
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
        with _failures():
            answer: dict[str, Any] = getattr(self._client, method)(Bucket=self._bucket, **arguments)
            return answer


@contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except (ClientError, ResponseParserError, *_TRANSPORT) as error:
        raise s3_failure(error) from error


def s3_failure(error: BaseException) -> StorageFailure:
    """Class and one-line description of a client library's exception.

    Raises:
        BaseException: `error` itself, when it is not a failure of storage but a bug.
    """
    if isinstance(error, ClientError):
        return _answer_failure(error)
    setup = _setup_failure(error)
    if setup is not None:
        return setup
    if isinstance(error, NoCredentialsError):
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
        inner = getattr(error, "kwargs", {}).get("error")  # its text may hold signed headers
        detail = type(error).__name__
        if isinstance(inner, BaseException):
            detail = f"{detail}, {type(inner).__name__}"
        return StorageFailure(FailureKind.CONNECTION, detail)
    if isinstance(error, BotoCoreError):
        return StorageFailure(FailureKind.REQUEST, type(error).__name__)
    raise error


def _setup_failure(error: BaseException) -> StorageFailure | None:
    """A mistake in the variables and files that the clients read; None for everything else."""
    for kind, name in _SETUP_ERRORS.items():
        if isinstance(error, kind):
            name = name or given_by(os.environ, REGION_VARIABLES)
            return StorageFailure(FailureKind.SETUP, str(error), code=name)
    if isinstance(error, _FILE_ERRORS) and error.filename:
        reason = (error.strerror or type(error).__name__).lower()
        detail = f"a file of the storage's settings cannot be read ({reason})"
        return StorageFailure(FailureKind.SETUP, detail, code=str(error.filename))
    if isinstance(error, ValueError) and "header" in str(error).lower():
        detail = "a credential has a line break, which no header takes"
        return StorageFailure(FailureKind.SETUP, detail, code="the source of the credentials")
    return None


def _answer_failure(error: ClientError) -> StorageFailure:
    meta = error.response.get("ResponseMetadata", {})
    status = int(meta.get("HTTPStatusCode", 0))
    code = str(error.response.get("Error", {}).get("Code", ""))
    kind = kind_of_answer(status, code)
    detail = f"{status} {code}" if code and code != str(status) else str(status)
    if kind is FailureKind.CLOCK:
        detail = clock_difference(meta.get("HTTPHeaders", {}).get("date", ""), datetime.now(UTC))
    elif kind is FailureKind.ARCHIVED:
        storage_class = error.response.get("Error", {}).get("StorageClass")
        detail = f"{detail}, class {storage_class}" if storage_class else detail
    elif status in (301, 307):
        region = meta.get("HTTPHeaders", {}).get("x-amz-bucket-region", "another region")
        detail = f"{detail}, the bucket is in {region}"
    elif kind is FailureKind.WRONG_DATA:
        # An upload garbled on the way says nothing about the object: always repeat it.
        kind = FailureKind.CONNECTION
    return StorageFailure(kind, detail, code=code)


def clock_difference(server_date: str, here: datetime) -> str:
    """Both times and their difference; `server_date` is the Date header of the answer."""
    shown = f"server {server_date or 'unknown'}, here {here:%a, %d %b %Y %H:%M:%S} GMT"
    try:
        seconds = (here - parsedate_to_datetime(server_date)).total_seconds()
    except (ValueError, TypeError):
        return shown
    return f"this machine is {abs(seconds):.0f} s {'ahead' if seconds > 0 else 'behind'}: {shown}"


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
