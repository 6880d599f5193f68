"""What botocore raises, as classes of failures."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from botocore.exceptions import (
    ClientError,
    ConfigParseError,
    EndpointConnectionError,
    HTTPClientError,
    InvalidConfigError,
    InvalidRegionError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    ReadTimeoutError,
    SSLError,
)

from app.storage.failures import FailureKind, StorageFailure
from app.storage.s3_bulk import BulkClient, client_options, clock_difference, s3_failure
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
        (PermissionError(1, "denied by a firewall"), FailureKind.CONNECTION),
    ],
)
def test_every_exception_of_the_client_has_a_class(error: Exception, kind: FailureKind) -> None:
    assert s3_failure(error).kind is kind


def test_another_region_is_named() -> None:
    failure = s3_failure(answered(301, "PermanentRedirect", **{"x-amz-bucket-region": "eu-west-1"}))

    assert failure.detail == "301 PermanentRedirect, the bucket is in eu-west-1"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ProfileNotFound(profile="gone"), "AWS_PROFILE"),
        (ConfigParseError(path="/aws/config"), "AWS_CONFIG_FILE"),
        (InvalidConfigError(error_msg="a role without its source"), "AWS_PROFILE"),
        (InvalidRegionError(region_name="eu_1"), "AWS_REGION"),
        (PartialCredentialsError(provider="env", cred_var="x"), "AWS_SECRET_ACCESS_KEY"),
        (FileNotFoundError(2, "No such file", "/var/token"), "/var/token"),
        (PermissionError(13, "Permission denied", "/root/.aws/config"), "/root/.aws/config"),
        (ValueError("Invalid header value b'hunter2\\n'"), "credentials"),
        (ValueError("Auth token value is not a legal header value"), "credentials"),
    ],
)
def test_a_mistake_in_profiles_and_files_is_not_a_network_failure(
    error: Exception, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    monkeypatch.setenv("AWS_REGION", "eu_1")

    failure = s3_failure(error)

    assert failure.kind is FailureKind.SETUP
    assert code in failure.code
    assert "hunter2" not in failure.detail + failure.code


def test_what_is_behind_a_failure_of_the_client_is_named_without_its_text() -> None:
    failure = s3_failure(HTTPClientError(error=KeyError("Authorization: hunter2")))

    assert failure.detail == "HTTPClientError, KeyError"


@pytest.mark.parametrize(
    ("server", "says"),
    [
        ("Tue, 01 Dec 2026 12:00:00 GMT", "this machine is 90 s ahead: server Tue, 01 Dec"),
        ("Tue, 01 Dec 2026 13:01:30 GMT", "this machine is 3600 s behind: server Tue, 01 Dec"),
        ("", "server unknown, here Tue, 01 Dec 2026 12:01:30 GMT"),
        ("yesterday", "server yesterday, here Tue"),
    ],
)
def test_the_difference_of_two_clocks(server: str, says: str) -> None:
    here = datetime(2026, 12, 1, 12, 1, 30, tzinfo=UTC)

    assert clock_difference(server, here).startswith(says)


def test_an_archived_object_is_said_to_be_one_with_its_class() -> None:
    error = answered(403, "InvalidObjectState")
    error.response["Error"]["StorageClass"] = "DEEP_ARCHIVE"  # type: ignore[typeddict-unknown-key]

    failure = s3_failure(error)

    assert failure.kind is FailureKind.ARCHIVED
    assert failure.detail == "403 InvalidObjectState, class DEEP_ARCHIVE"


ACCESS_POINT = "arn:aws:s3:eu-west-1:123456789012:accesspoint/data"


@pytest.mark.parametrize(
    ("bucket", "address"),
    [
        (ACCESS_POINT, "https://data-123456789012.s3-accesspoint.eu-west-1.amazonaws.com/k"),
        ("new-bucket", "https://new-bucket.s3.eu-west-1.amazonaws.com/k"),
        ("Old_Bucket", "https://s3.eu-west-1.amazonaws.com/Old_Bucket/k"),
        ("with.dots", "https://s3.eu-west-1.amazonaws.com/with.dots/k"),
    ],
)
def test_every_kind_of_bucket_has_its_address_on_aws(
    bucket: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    asked: list[str] = []

    def send(session: object, request: Any) -> Any:
        asked.append(request.url)
        raise ConnectionResetError

    monkeypatch.setattr("botocore.httpsession.URLLib3Session.send", send)
    client = BulkClient(StorageSettings(region="eu-west-1"), bucket)
    with pytest.raises(StorageFailure):
        client.put("k", b"")

    assert asked == [address]


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
