"""Why a request failed: as a class that decides what happens next, and as an error for users.

No client library here: `s3_bulk.s3_failure` and `http_client.http_failure` turn exceptions into
it.
"""

from __future__ import annotations

from enum import Enum

from app.errors import (
    AccessDeniedError,
    CogvxError,
    ConfigError,
    DataError,
    InputMissingError,
    RetryableError,
)
from app.storage.objects import ObjectMissingError


class FailureKind(Enum):
    """Classes of failures; each has one treatment (retry.py)."""

    THROTTLED = "throttled"
    SERVER = "server"
    CONNECTION = "connection"
    SLOW = "slow"
    CLOCK = "clock"
    EXPIRED = "expired"
    WRONG_DATA = "wrong data"
    CHANGED = "changed"
    MISSING = "missing"
    DENIED = "denied"
    REQUEST = "request"
    TLS = "tls"
    SETUP = "setup"
    ARCHIVED = "archived"
    REDIRECT = "redirect"


ALWAYS_RETRIED = frozenset(
    {FailureKind.THROTTLED, FailureKind.SERVER, FailureKind.CONNECTION, FailureKind.SLOW}
)


class StorageFailure(Exception):
    """One failed request; never leaves `storage`.

    Args:
        kind: its class.
        detail: one readable line, without secrets.
        code: the server's error code, when it gave one; the variable or setting, of SETUP.
        progressed: bytes arrived before it failed, so the next try has less to do.
    """

    def __init__(
        self, kind: FailureKind, detail: str, *, code: str = "", progressed: bool = False
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.code = code
        self.progressed = progressed


_CODES = {
    FailureKind.THROTTLED: "SlowDown Throttling ThrottlingException ThrottledException "
    "RequestLimitExceeded TooManyRequests TooManyRequestsException RequestThrottled "
    "ServiceUnavailable",
    FailureKind.CONNECTION: "RequestTimeout IncompleteBody RequestTimeoutException",
    FailureKind.EXPIRED: "ExpiredToken ExpiredTokenException InvalidToken TokenRefreshRequired",
    FailureKind.CLOCK: "RequestTimeTooSkewed",
    FailureKind.WRONG_DATA: "BadDigest XAmzContentSHA256Mismatch",
    FailureKind.MISSING: "NoSuchKey NoSuchBucket NotFound NoSuchUpload",
    FailureKind.SERVER: "OperationAborted InternalError",
    FailureKind.ARCHIVED: "InvalidObjectState",
}
_KIND_OF_CODE = {code: kind for kind, codes in _CODES.items() for code in codes.split()}
_DENIED_STATUS = (401, 403)


def kind_of_answer(status: int, code: str) -> FailureKind:
    """Class of an error answer, from its HTTP status and S3 error code."""
    if code in _KIND_OF_CODE:
        return _KIND_OF_CODE[code]
    if status in (429, 503):
        return FailureKind.THROTTLED
    if status >= 500 and status != 501:
        return FailureKind.SERVER
    if status == 404:
        return FailureKind.MISSING
    if status in _DENIED_STATUS:
        return FailureKind.DENIED
    return FailureKind.REQUEST


def permanent_error(failure: StorageFailure, what: str, where: str) -> CogvxError:
    """The error that a user sees when no retry would help.

    Args:
        failure: the last failed request.
        what: the operation, for the message ("reading").
        where: URL of the object or folder.
    """
    kind, detail = failure.kind, failure.detail
    if kind is FailureKind.SETUP:
        return ConfigError(detail, where=f"{failure.code}, for {where}", fix=_SETUP_FIX)
    if kind is FailureKind.MISSING:
        thing = "bucket" if failure.code == "NoSuchBucket" else "object"
        return ObjectMissingError(
            f"{what}: there is no such {thing}",
            where=where,
            fix="check the URL, and that the upload to it has finished",
        )
    if kind in (FailureKind.WRONG_DATA, FailureKind.CHANGED) or failure.code == "InvalidRange":
        return DataError(
            f"{what}: {detail}",
            where=where,
            fix="the object does not match its description; write it again",
        )
    error, text, fix = _PERMANENT.get(kind, _PERMANENT[FailureKind.REQUEST])
    return error(f"{what}{text.format(detail)}", where=where, fix=fix)


_SETUP_FIX = (
    "correct it, or the file that it names; `cogvx doctor --url` shows which endpoint and "
    "credentials are used"
)
_PERMANENT: dict[FailureKind, tuple[type[CogvxError], str, str]] = {
    FailureKind.DENIED: (
        AccessDeniedError,
        " was denied ({})",
        "check the credentials (cogvx doctor shows which are used) and their policy: "
        "s3:ListBucket, s3:GetObject, s3:PutObject, s3:DeleteObject",
    ),
    FailureKind.CLOCK: (
        AccessDeniedError,
        " was denied: the clocks differ ({})",
        "set this machine's clock (NTP)",
    ),
    # A new pod reads the Secret again, and another node has other credentials.
    FailureKind.EXPIRED: (
        RetryableError,
        ": the credentials have expired ({})",
        "renew them where they come from (cogvx doctor shows it); keys in AWS_ACCESS_KEY_ID with "
        "an AWS_SESSION_TOKEN last for hours only, a role of the pod renews itself",
    ),
    FailureKind.ARCHIVED: (
        InputMissingError,
        ": the object is archived and cannot be read ({})",
        "restore it (`aws s3api restore-object`), or copy the data to a class that is read at once",
    ),
    FailureKind.TLS: (
        ConfigError,
        ": the server's certificate was rejected ({})",
        "set AWS_CA_BUNDLE to the file with the certificate of your authority",
    ),
    FailureKind.REDIRECT: (
        ConfigError,
        ": the server sends the reader elsewhere ({})",
        "give the final address, or allow that host: COGVX_REDIRECT_HOSTS=host,host",
    ),
    FailureKind.REQUEST: (
        ConfigError,
        ": the server rejected the request ({})",
        "check endpoint, region and bucket name",
    ),
}


def size_error(where: str, found: int, expected: int) -> DataError:
    """The error for an object or file whose size differs from what is recorded."""
    return DataError(
        f"it has {found} bytes, expected {expected}",
        where=where,
        fix="it was truncated or replaced; write it again, or rewrite its manifest",
    )


def deadline_error(failure: StorageFailure, what: str, where: str, seconds: float) -> CogvxError:
    """The error after the last retry: the storage stayed unreachable or broken."""
    return RetryableError(
        f"{what}: gave up after {seconds:.0f} s ({failure.kind.value}: {failure.detail})",
        where=where,
        fix="check that the storage service is up and reachable from here",
    )
