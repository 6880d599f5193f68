"""JSON files beside the data: others may have written, cut or changed them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

from app.errors import DataError

T = TypeVar("T")
# What taking apart content of another shape than expected raises.
UNREADABLE = (
    *(ValueError, LookupError, TypeError, AttributeError),
    *(OverflowError, RecursionError),
)


def parsed(data: bytes, parse: Callable[[Any], T], *, what: str, where: str, fix: str) -> T:
    """What `parse` makes of the JSON in `data`; the three texts are those of the error.

    Raises:
        DataError: not JSON, or `parse` cannot take it apart.
    """
    try:
        return parse(json.loads(data))
    except UNREADABLE as problem:
        raise DataError(f"{what}: {problem}", where=where, fix=fix) from problem


def parsed_or_none(data: bytes | None, parse: Callable[[Any], T | None]) -> T | None:
    """The same for a file that can be made again: None instead of an error."""
    try:
        return parse(json.loads(data or b""))
    except UNREADABLE:
        return None


def parsed_lines(data: bytes, parse: Callable[[Any], T]) -> tuple[list[T], int]:
    """What `parse` makes of each line of JSON, and how many lines cannot be read."""
    found: list[T] = []
    unreadable = 0
    for line in data.splitlines():
        try:
            found.append(parse(json.loads(line)))
        except UNREADABLE:
            unreadable += bool(line.strip())
    return found, unreadable
