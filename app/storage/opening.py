"""From a URL to a storage."""

from __future__ import annotations

import os
import re
from pathlib import Path

from app.errors import ConfigError
from app.storage.http import SCHEMES, HttpStorage
from app.storage.local import LocalStorage
from app.storage.objects import Storage, check_key
from app.storage.s3 import S3Storage
from app.storage.settings import ENDPOINT_VARIABLES, StorageSettings, given_by, prepare

# Also with one slash or none: `s3:/bucket` must not become a local folder named "s3:".
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*):(.*)", re.DOTALL)
# Before 2018 names could have capitals and underscores, and up to 255 characters; such buckets are
# still there, and other servers make them.
_BUCKET = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{1,253}[a-zA-Z0-9_]")
# "arn:aws:s3:eu-west-1:123456789012:accesspoint/name"; the key follows after a slash.
_ACCESS_POINT = re.compile(
    r"(arn:aws[a-z-]*:s3:[a-z0-9-]+:[0-9]{12}:accesspoint[:/][a-zA-Z0-9-]{3,50})(/.*)?"
)


def is_remote(url: str) -> bool:
    """Whether a URL names an object storage and not a local path."""
    match = _SCHEME.fullmatch(url)
    return match is not None and match[1].lower() != "file"


def local_path(url: str) -> Path:
    """The path of a local URL: itself, or what follows `file:` or `file://`."""
    match = _SCHEME.fullmatch(url)
    return Path(match[2].removeprefix("//") if match else url)


def open_storage(
    url: str, settings: StorageSettings | None = None, *, follow_links: bool = False
) -> Storage:
    """Open a folder (a path or file:// URL), an `s3://bucket/prefix`, or (to read) an http URL.

    No request is made yet: `check_reachable` does that.

    Args:
        url: the root; keys are relative to it.
        settings: default: from this process's environment.
        follow_links: list what is below linked folders of a local folder (data, which is read).

    Raises:
        ConfigError: another scheme, a bad bucket name, or a bad endpoint.
    """
    match = _SCHEME.fullmatch(url)
    if match is None or match[1].lower() == "file":
        if url in ("", "file:", "file://") or "\x00" in url:
            raise ConfigError("the path is empty", where=repr(url), fix="name a folder")
        return LocalStorage(local_path(url), follow_links=follow_links)
    if match[1].lower() in SCHEMES:
        return HttpStorage(url, settings or _settings())
    if match[1].lower() != "s3" or not match[2].startswith("//"):
        raise ConfigError(
            f"storage of the kind '{match[1]}:' is not supported",
            where=f"{match[1]}:...",
            fix="use s3://bucket/prefix or a local path (./ before a name with a colon); data may "
            "also be read from http(s)://",
        )
    bucket, prefix = split_s3_url(url)
    settings = settings or _settings()
    if bucket.startswith("arn:") and settings.endpoint is not None:
        raise ConfigError(
            "an access point's ARN works on AWS itself, not with an endpoint of your own",
            where=f"{given_by(os.environ, ENDPOINT_VARIABLES)}, for s3://{bucket}",
            fix="unset the endpoint, or name the bucket",
        )
    return S3Storage(bucket, prefix, settings)


def _settings() -> StorageSettings:
    prepare(os.environ)
    return StorageSettings.from_environment(os.environ)


def split_s3_url(url: str) -> tuple[str, str]:
    """Bucket and key (without slashes at its ends, may be empty) of an s3:// URL.

    The bucket may be the ARN of an access point.

    Raises:
        ConfigError: the name of the bucket or the key is invalid.
    """
    place = url.partition("://")[2]
    point = _ACCESS_POINT.fullmatch(place)
    bucket, _, key = place.partition("/")
    if point is not None:
        bucket, key = point[1], point[2] or ""
    key = key.strip("/")
    if point is None and _BUCKET.fullmatch(bucket) is None:
        raise ConfigError(
            "this is not a valid bucket name",
            where=f"s3://{bucket.rpartition('@')[2]}",  # no password that somebody put there
            fix="write s3://bucket/prefix: 3 to 63 of a-z, 0-9, '.', '-' (old ones have capitals "
            "and '_' too), or s3://arn:aws:s3:REGION:ACCOUNT:accesspoint/NAME/prefix",
        )
    if key:
        check_key(key, url)
    return bucket, key
