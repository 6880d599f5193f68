"""Classes of answers, and the error that a user sees for each."""

from __future__ import annotations

import pytest

from app.storage.failures import (
    FailureKind,
    StorageFailure,
    deadline_error,
    kind_of_answer,
    permanent_error,
    size_error,
)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (503, "SlowDown", FailureKind.THROTTLED),
        (429, "", FailureKind.THROTTLED),
        (500, "InternalError", FailureKind.SERVER),
        (502, "", FailureKind.SERVER),
        (501, "NotImplemented", FailureKind.REQUEST),
        (400, "RequestTimeout", FailureKind.CONNECTION),
        (400, "ExpiredToken", FailureKind.EXPIRED),
        (403, "ExpiredToken", FailureKind.EXPIRED),
        (403, "InvalidObjectState", FailureKind.ARCHIVED),
        (403, "RequestTimeTooSkewed", FailureKind.CLOCK),
        (400, "BadDigest", FailureKind.WRONG_DATA),
        (404, "NoSuchKey", FailureKind.MISSING),
        (404, "", FailureKind.MISSING),
        (401, "", FailureKind.DENIED),
        (403, "AccessDenied", FailureKind.DENIED),
        (400, "InvalidArgument", FailureKind.REQUEST),
    ],
)
def test_the_code_counts_more_than_the_status(status: int, code: str, kind: FailureKind) -> None:
    assert kind_of_answer(status, code) is kind


@pytest.mark.parametrize(
    ("kind", "code", "exit_code", "says"),
    [
        (FailureKind.MISSING, "NoSuchBucket", 66, "no such bucket"),
        (FailureKind.MISSING, "NoSuchKey", 66, "no such object"),
        (FailureKind.DENIED, "", 77, "reading was denied"),
        (FailureKind.CLOCK, "", 77, "the clocks differ"),
        (FailureKind.WRONG_DATA, "", 65, "reading: detail"),
        (FailureKind.CHANGED, "", 65, "reading: detail"),
        (FailureKind.REQUEST, "InvalidRange", 65, "reading: detail"),
        (FailureKind.TLS, "", 78, "certificate"),
        (FailureKind.EXPIRED, "ExpiredToken", 138, "credentials have expired (detail)"),
        (FailureKind.ARCHIVED, "InvalidObjectState", 66, "is archived"),
        (FailureKind.REDIRECT, "", 78, "sends the reader elsewhere (detail)"),
        (FailureKind.REQUEST, "", 78, "rejected the request"),
    ],
)
def test_a_permanent_failure_names_url_and_reason(
    kind: FailureKind, code: str, exit_code: int, says: str
) -> None:
    error = permanent_error(StorageFailure(kind, "detail", code=code), "reading", "s3://b/k")

    assert error.exit_code == exit_code
    assert says in error.what
    assert error.where == "s3://b/k"


def test_a_mistake_in_the_settings_names_what_to_correct() -> None:
    failure = StorageFailure(FailureKind.SETUP, "there is no such profile", code="AWS_PROFILE")

    error = permanent_error(failure, "reading", "s3://b/k")

    assert error.exit_code == 78
    assert error.what == "there is no such profile"
    assert error.where == "AWS_PROFILE, for s3://b/k"


def test_after_the_deadline_a_new_start_may_help() -> None:
    failure = StorageFailure(FailureKind.SERVER, "500")

    assert deadline_error(failure, "reading", "s3://b/k", 12.3).exit_code == 138


def test_a_wrong_size_names_both() -> None:
    assert size_error("s3://b/k", 3, 10).what == "it has 3 bytes, expected 10"
