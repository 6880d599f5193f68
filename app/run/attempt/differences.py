"""Two configurations: which keys differ, and how that is shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

LONGEST_VALUE = 80  # characters in a message
MISSING = "(not given)"


@dataclass(frozen=True, slots=True)
class Difference:
    """One dotted key with both values; MISSING where a side has none."""

    key: str
    old: Any
    new: Any


def differences(
    old: Any, new: Any, *, only_common: bool = False, path: str = ""
) -> Iterator[Difference]:
    """The keys of two nested values that differ, sorted.

    Args:
        old: of mappings, lists and plain values.
        new: the same.
        only_common: leave out keys that one side lacks.
        path: of both values.
    """
    old_items, new_items = _items(old), _items(new)
    if old_items is None or new_items is None:
        if old != new:
            yield Difference(path, old, new)
        return
    keys = old_items.keys() & new_items.keys() if only_common else old_items | new_items
    for key in sorted(keys):
        yield from differences(
            old_items.get(key, MISSING),
            new_items.get(key, MISSING),
            only_common=only_common,
            path=f"{path}.{key}" if path else key,
        )


def _items(value: Any) -> dict[str, Any] | None:
    """What is looked at one by one: a mapping, or a list of mappings. Other lists are values."""
    if isinstance(value, Mapping):
        return {str(key): entry for key, entry in value.items()}
    if isinstance(value, list) and any(isinstance(entry, Mapping) for entry in value):
        return {str(index): entry for index, entry in enumerate(value)}
    return None


def shown(value: Any) -> str:
    """A value in a message."""
    text = str(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."
