"""What botocore raises, as classes of failures."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import (
    ClientError,
    EndpointConnectionError,
    NoCredentialsError,
    ParamValidationError,
    ReadTimeoutError,
    SSLError,
)

from app.storage.failures import FailureKind
from app.storage.s3_bulk import client_options, s3_failure
from app.storage.settings import StorageSettings


def answered(status: int, code: str, **headers: str) -> ClientError:
    meta: Any = {"HTTPStatusCode": status, "HTTPHeaders": headers}
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": meta}, "GetObject")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (answered(404, "NoSuchKey"), FailureKind.MISSING),
        (answered(403, "AccessDenied"), FailureKind.DENIED),
        (answered(503, "SlowDown"), FailureKind.THROTTLED),
        (answered(400, "BadDigest"), FailureKind.CONNECTION),  # garbled on its way: repeat it
        (NoCredentialsError(), FailureKind.DENIED),
        (EndpointConnectionError(endpoint_url="http://h"), FailureKind.CONNECTION),
        (ReadTimeoutError(endpoint_url="http://h"), FailureKind.CONNECTION),
        (ConnectionResetError(), FailureKind.CONNECTION),
        (SSLError(endpoint_url="h", error="CERTIFICATE_VERIFY_FAILED"), FailureKind.TLS),
        (ParamValidationError(report="x"), FailureKind.REQUEST),
    ],
)
def test_every_exception_of_the_client_has_a_class(error: Exception, kind: FailureKind) -> None:
    assert s3_failure(error).kind is kind


def test_another_region_is_named() -> None:
    failure = s3_failure(answered(301, "PermanentRedirect", **{"x-amz-bucket-region": "eu-west-1"}))

    assert failure.detail == "301 PermanentRedirect, the bucket is in eu-west-1"


def test_a_bug_is_raised_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        s3_failure(ZeroDivisionError())


def test_an_own_endpoint_is_addressed_by_path() -> None:
    own = client_options(StorageSettings(endpoint="http://minio:9000"))
    amazon = client_options(StorageSettings())

    assert own["s3"] == {"addressing_style": "path"}
    assert amazon["s3"] == {"addressing_style": "auto"}
    assert own["retries"]["total_max_attempts"] == 1
    assert own["response_checksum_validation"] == "when_required"
