"""Our JSON objects: one way to write them, and reading that believes nothing."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from app.errors import CheckpointError

MAX_JSON_BYTES = 16 * 2**20


def canonical_json(value: object) -> bytes:
    """UTF-8 JSON with sorted keys and no spaces: equal values have equal bytes."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def digest_of(value: object) -> str:
    """sha256 (hex) of the canonical JSON."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """The JSON object in `data`.

    Raises:
        CheckpointError: too long, not JSON, or not an object.
    """
    if len(data) > MAX_JSON_BYTES:
        raise broken(f"it has {len(data)} bytes, more than we read", where)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise broken(f"it is no JSON ({type(error).__name__})", where) from error
    if not isinstance(value, dict):
        raise broken("it is no JSON object", where)
    return value


def broken(what: str, where: str) -> CheckpointError:
    """The error of a file whose content cannot be true."""
    return CheckpointError(what, where=where, fix="take another checkpoint; this one is damaged")


def take(value: dict[str, Any], name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """One field of an object, of the given type (true is no int).

    Raises:
        CheckpointError: it is missing or of another type.
    """
    found = value.get(name)
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(found, kinds) or (isinstance(found, bool) and bool not in kinds):
        raise broken(f"its field {name!r} is missing or of the wrong type", where)
    return found
