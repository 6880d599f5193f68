"""JSON records: canonical bytes, and fields that have their annotated type."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from app.checkpoint.json_file import canonical_json, check_format, digest_of, take_fields
from app.errors import CheckpointError


@dataclass(frozen=True)
class Record:
    number: int
    name: str | None
    sizes: Mapping[str, int]


RECORD: dict[str, Any] = {"number": 3, "name": None, "sizes": {"a": 1}}


def test_equal_values_have_equal_bytes() -> None:
    assert canonical_json({"b": 1, "a": "\u00e9"}) == b'{"a":"\xc3\xa9","b":1}'
    assert digest_of({}) == hashlib.sha256(b"{}").hexdigest()


def test_fields_are_taken_and_other_keys_ignored() -> None:
    assert take_fields(Record, RECORD | {"more": 1}, "x.json") == RECORD


@pytest.mark.parametrize(
    "change", [{"number": True}, {"number": "3"}, {"number": None}, {"name": 1}, {"sizes": []}]
)
def test_a_field_of_another_type_is_refused_by_name(change: dict[str, Any]) -> None:
    (name,) = change

    with pytest.raises(CheckpointError, match=f"field '{name}'") as caught:
        take_fields(Record, RECORD | change, "x.json")

    assert caught.value.where == "x.json"


def test_a_missing_field_is_refused() -> None:
    with pytest.raises(CheckpointError, match="field 'sizes'"):
        take_fields(Record, {"number": 3, "name": "a"}, "x.json")


def test_another_format_is_refused() -> None:
    check_format({"format_version": 1}, 1, "x.json")
    with pytest.raises(CheckpointError, match="its format is 2, this program reads 1"):
        check_format({"format_version": 2}, 1, "x.json")
