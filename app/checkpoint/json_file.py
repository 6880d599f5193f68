"""JSON objects of a run: canonical writing, and reading that checks every field."""

from __future__ import annotations

import hashlib
import json
import types
from dataclasses import fields
from typing import Any, get_args, get_origin, get_type_hints

from app.errors import CheckpointError

MAX_JSON_BYTES = 16 * 2**20
OTHER_CHECKPOINT = "take another checkpoint; this one is damaged"


class DamagedError(CheckpointError):
    """A file of a run whose content is not what was written."""


class FormatError(CheckpointError):
    """A file of a run that another version of this program wrote."""


def canonical_json(value: object) -> bytes:
    """UTF-8 JSON with sorted keys and no spaces: equal values have equal bytes."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def digest_of(value: object) -> str:
    """sha256 (hex) of the canonical JSON."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def parse_object(data: bytes, where: str, fix: str = OTHER_CHECKPOINT) -> dict[str, Any]:
    """The JSON object in `data`.

    Raises:
        DamagedError: too long, not JSON, or not an object.
    """
    if len(data) > MAX_JSON_BYTES:
        raise broken(f"it has {len(data)} bytes, more than {MAX_JSON_BYTES}", where, fix)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise broken(f"it is not JSON ({type(error).__name__})", where, fix) from error
    if not isinstance(value, dict):
        raise broken("it is not a JSON object", where, fix)
    return value


def broken(what: str, where: str, fix: str = OTHER_CHECKPOINT) -> DamagedError:
    """The error of a file with invalid content."""
    return DamagedError(what, where=where, fix=fix)


def take(
    value: dict[str, Any],
    name: str,
    kind: type | tuple[type, ...],
    where: str,
    fix: str = OTHER_CHECKPOINT,
) -> Any:
    """One field of an object, of the given type (true is not an int).

    Raises:
        DamagedError: it is missing or of another type.
    """
    found = value.get(name)
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(found, kinds) or (isinstance(found, bool) and bool not in kinds):
        raise broken(f"its field {name!r} is missing or of the wrong type", where, fix)
    return found


def take_fields(
    record: type, value: dict[str, Any], where: str, fix: str = OTHER_CHECKPOINT
) -> dict[str, Any]:
    """Every field of the dataclass `record`, of its annotated type; other keys are ignored.

    Raises:
        DamagedError: a field is missing or of another type.
    """
    hints = get_type_hints(record)
    return {
        field.name: take(value, field.name, _kinds(hints[field.name]), where, fix)
        for field in fields(record)
    }


def check_format(
    value: dict[str, Any], version: int, where: str, fix: str = OTHER_CHECKPOINT
) -> None:
    """Compare `format_version`.

    Raises:
        DamagedError: there is none.
        FormatError: another version.
    """
    found = value.get("format_version")
    if found is None:
        raise broken("it has no format_version", where, fix)
    if found != version or isinstance(found, bool):
        raise FormatError(
            f"its format is {found!r}, this program reads {version}",
            where=where,
            fix="use the version of cogvx-train that wrote it",
        )


def _kinds(hint: Any) -> tuple[type, ...]:
    """`str | None` -> (str, NoneType), `Mapping[str, int]` -> (Mapping,)."""
    if isinstance(hint, types.UnionType):
        return tuple(kind for option in get_args(hint) for kind in _kinds(option))
    return (get_origin(hint) or hint,)
