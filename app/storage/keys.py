"""Which object keys are accepted, and which cogvx writes."""

from __future__ import annotations

import re

from app.errors import DataError

MAX_KEY_BYTES = 1024  # the limit of S3
OWN_KEY = re.compile(r"[a-z0-9._-]+(?:/[a-z0-9._-]+)*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def check_key(key: str, where: str) -> str:
    """Return a key that stays below its root on any storage.

    Raises:
        DataError: empty, too long, absolute, with `.`, `..` or empty parts, or control characters.
    """
    parts = key.split("/")
    bad = (
        not key
        or len(key.encode("utf-8", "surrogatepass")) > MAX_KEY_BYTES
        or any(part in ("", ".", "..") for part in parts)
        or "\\" in key
        or _CONTROL.search(key) is not None
    )
    if bad:
        raise DataError(
            f"{key[:200]!r} is not a valid key",
            where=where,
            fix="a key is relative, has no empty, '.' or '..' part and at most 1024 bytes",
        )
    return key


def check_own_key(key: str, where: str) -> str:
    """Return a key fit for objects that cogvx writes: lower case, digits, `.`, `_`, `-`, `/`.

    Raises:
        DataError: the key has other characters.
    """
    check_key(key, where)
    if OWN_KEY.fullmatch(key) is None:
        raise DataError(
            f"{key[:200]!r} is not a valid name for an object that cogvx writes",
            where=where,
            fix="use lower-case letters, digits, '.', '_', '-' and '/' only",
        )
    return key


def check_prefix(prefix: str, where: str) -> str:
    """Return a listing prefix: empty, or a key that may end with a slash."""
    if prefix:
        check_key(prefix.removesuffix("/"), where)
    return prefix
