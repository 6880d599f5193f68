"""Listing, looking up, small objects and deletion on S3, through s3fs.

The only module that imports s3fs and the client it stands on. One request per call: no retries,
no caches.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import s3fs
from aiobotocore.session import AioSession

from app.storage.digests import content_md5
from app.storage.failures import FailureKind, StorageFailure
from app.storage.objects import Entry, Upload
from app.storage.s3_bulk import client_options, prepare_session, s3_failure
from app.storage.settings import StorageSettings


class ControlClient:
    """One s3fs file system of one process and one bucket. Keys are whole keys of the bucket."""

    def __init__(self, settings: StorageSettings, bucket: str) -> None:
        self._bucket = bucket
        # Of one request: time-outs of the client count from the last byte.
        self._timeout_s = settings.deadline_s
        session = AioSession()
        prepare_session(session, settings)
        self._files = s3fs.S3FileSystem(
            session=session,
            endpoint_url=settings.endpoint,
            client_kwargs={"region_name": settings.region, "verify": settings.ca_file},
            config_kwargs=client_options(settings),
            skip_instance_cache=True,
            use_listings_cache=False,
        )
        self._files.retries = 1  # retry.py repeats; its own loop would multiply ours

    def page(
        self, prefix: str, delimiter: str, token: str | None
    ) -> tuple[list[Entry], list[str], str | None]:
        """One page of a listing: objects, common prefixes, token of the next page or None."""
        more = {"ContinuationToken": token} if token else {}
        split = {"Delimiter": delimiter} if delimiter else {}
        answer = self._call("list_objects_v2", Prefix=prefix, **split, **more)
        entries = [
            _entry(found["Key"], found["Size"], found) for found in _many(answer, "Contents")
        ]
        prefixes = [str(found["Prefix"]) for found in _many(answer, "CommonPrefixes")]
        following = answer.get("NextContinuationToken") if answer.get("IsTruncated") else None
        return entries, prefixes, following

    def stat(self, key: str) -> Entry:
        """HEAD of one object."""
        try:
            answer = self._call("head_object", Key=key)
        except StorageFailure as failure:
            if not _is_bare(failure):
                raise
            # Where the policy lists this prefix only, S3 denies HEAD of what does not exist.
            if self._first_key(key, failure) != key and failure.kind is FailureKind.DENIED:
                raise StorageFailure(FailureKind.MISSING, "404", code="NoSuchKey") from failure
            raise
        return _entry(key, answer["ContentLength"], answer)

    def get(self, key: str) -> bytes:
        """The whole body of a small object, of the length that the server announces."""
        with _failures():
            path = f"{self._bucket}/{key}"
            return bytes(self._files.cat_file(path, max_concurrency=1, timeout=self._timeout_s))

    def put(self, key: str, data: bytes) -> None:
        """Write a small object in one request."""
        self._call("put_object", Key=key, Body=data, ContentMD5=content_md5(data))

    def delete(self, key: str) -> None:
        """Delete one object; one that does not exist is fine."""
        try:
            self._call("delete_object", Key=key)
        except StorageFailure as failure:
            # AWS answers 204 for a missing key; some servers answer 404.
            if failure.kind is not FailureKind.MISSING or failure.code == "NoSuchBucket":
                raise

    def uploads(self, prefix: str) -> list[Upload]:
        """Every multipart upload below a prefix that was not completed."""
        found: list[Upload] = []
        markers: dict[str, str] = {}
        while True:
            answer = self._call("list_multipart_uploads", Prefix=prefix, **markers)
            # Some servers ignore Prefix here.
            found += [
                Upload(str(upload["Key"]), str(upload["UploadId"]))
                for upload in _many(answer, "Uploads")
                if str(upload["Key"]).startswith(prefix)
            ]
            if not answer.get("IsTruncated"):
                return found
            markers = {
                "KeyMarker": answer["NextKeyMarker"],
                "UploadIdMarker": answer["NextUploadIdMarker"],
            }

    def abort_upload(self, key: str, upload_id: str) -> None:
        """Discard a multipart upload; one that does not exist is fine."""
        try:
            self._call("abort_multipart_upload", Key=key, UploadId=upload_id)
        except StorageFailure as failure:
            if failure.kind is not FailureKind.MISSING or failure.code == "NoSuchBucket":
                raise

    def look(self, prefix: str) -> None:
        """Check that the bucket exists and may be used, at least below a prefix."""
        try:
            self._call("head_bucket")
        except StorageFailure as failure:
            if not _is_bare(failure):
                raise
            self._first_key(prefix, failure)

    def _first_key(self, prefix: str, failure: StorageFailure) -> str | None:
        """The first key below a prefix; None: there are none.

        An answer to HEAD has no body, so it is denied or rejected without a reason. This asks
        again, in a way that has one.

        Raises:
            StorageFailure: `failure`, or the one with the reason.
        """
        try:
            answer = self._call("list_objects_v2", Prefix=prefix, MaxKeys=1)
        except StorageFailure as reasoned:
            if reasoned.kind is FailureKind.DENIED and reasoned.code in ("", "AccessDenied", "403"):
                raise failure from reasoned
            raise reasoned from failure
        return next((str(found["Key"]) for found in _many(answer, "Contents")), None)

    def _call(self, method: str, **arguments: Any) -> dict[str, Any]:
        with _failures():
            answer: dict[str, Any] = self._files.call_s3(
                method, Bucket=self._bucket, timeout=self._timeout_s, **arguments
            )
            return answer


@contextmanager
def _failures() -> Iterator[None]:
    """Turn what s3fs raises into a StorageFailure."""
    try:
        yield
    except Exception as error:
        # s3fs translates answers to OSErrors and keeps the original as the cause.
        cause = error.__cause__
        original = cause if cause is not None and hasattr(cause, "response") else error
        raise s3_failure(original) from error


def _is_bare(failure: StorageFailure) -> bool:
    """Whether a HEAD was refused without a word why."""
    return failure.code in ("400", "403", "Bad Request", "Forbidden")


def _many(answer: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    return iter(answer.get(name) or [])


def _entry(key: str, size: int, answer: dict[str, Any]) -> Entry:
    modified = answer.get("LastModified")
    etag = str(answer.get("ETag") or "").strip('"') or None
    # Whole seconds: HEAD has no more, and the two must agree.
    seconds = float(int(modified.timestamp())) if modified is not None else None
    return Entry(key, int(size), etag, seconds)
