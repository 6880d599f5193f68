"""Kinds of values: what a key accepts, its name in messages, how it is converted.

YAML written for upstream is loose: `3.` where an integer is meant, "1e-8" as text, "False" in
quotes. A kind accepts what is unambiguous and refuses the rest; it never guesses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

TRUE_WORDS = frozenset({"true", "yes", "on", "1"})
FALSE_WORDS = frozenset({"false", "no", "off", "0"})


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of value. `convert` raises ValueError for anything that is not one."""

    noun: str  # as in "expected <noun>"
    convert: Callable[[object], Any]
    json_type: str | tuple[str, ...] = "string"  # JSON schema type(s), for derived schemas
    choices: tuple[str, ...] = ()
    item: Kind | None = None  # of a list
    single: bool = False  # whether one bare item counts as a list of one
    limits: Mapping[str, Any] = field(default_factory=dict)  # keywords of JSON schema


def _as_float(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _limits(minimum: float | None, maximum: float | None, above: float | None) -> str:
    parts = []
    if minimum is not None:
        parts.append(f"at least {minimum:g}")
    if above is not None:
        parts.append(f"above {above:g}")
    if maximum is not None:
        parts.append(f"at most {maximum:g}")
    return " " + " and ".join(parts) if parts else ""


def _keywords(minimum: float | None, maximum: float | None, above: float | None) -> dict[str, Any]:
    named = {"minimum": minimum, "maximum": maximum, "exclusiveMinimum": above}
    return {name: limit for name, limit in named.items() if limit is not None}


def _check(value: float, minimum: float | None, maximum: float | None, above: float | None) -> None:
    if minimum is not None and value < minimum:
        raise ValueError
    if maximum is not None and value > maximum:
        raise ValueError
    if above is not None and value <= above:
        raise ValueError


def integer(minimum: int | None = None, maximum: int | None = None) -> Kind:
    """A whole number; `3.` and "3" count as 3."""

    def convert(value: object) -> int:
        if isinstance(value, int) and not isinstance(value, bool):
            number = value
        else:
            real = _as_float(value)
            if real != int(real):
                raise ValueError
            number = int(real)
        _check(number, minimum, maximum, None)
        return number

    noun = f"an integer{_limits(minimum, maximum, None)}"
    return Kind(noun, convert, "integer", limits=_keywords(minimum, maximum, None))


def real(
    minimum: float | None = None, maximum: float | None = None, above: float | None = None
) -> Kind:
    """A finite number; "1e-8" counts as 1e-8."""

    def convert(value: object) -> float:
        number = _as_float(value)
        _check(number, minimum, maximum, above)
        return number

    noun = f"a number{_limits(minimum, maximum, above)}"
    return Kind(noun, convert, "number", limits=_keywords(minimum, maximum, above))


def boolean() -> Kind:
    """True or false; the words yes, no, on, off, true, false, 1, 0 in any case."""

    def convert(value: object) -> bool:
        if isinstance(value, bool):
            return value
        word = str(value).strip().lower() if isinstance(value, str | int) else ""
        if word in TRUE_WORDS:
            return True
        if word in FALSE_WORDS:
            return False
        raise ValueError

    return Kind("true or false", convert, "boolean")


def text() -> Kind:
    """A string; a bare number (a run called 2024) counts as its text."""

    def convert(value: object) -> str:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError
        return str(value)

    return Kind("a string", convert)


def choice(*values: str) -> Kind:
    """One of a few words."""

    def convert(value: object) -> str:
        if value not in values:
            raise ValueError
        return str(value)

    return Kind("one of " + ", ".join(word or '""' for word in values), convert, choices=values)


def sequence(item: Kind, *, length: int | None = None, single: bool = False) -> Kind:
    """A list as a tuple; `single` also takes one bare item for a list of one."""

    def convert(value: object) -> tuple[Any, ...]:
        if single and not isinstance(value, Sequence):
            value = [value]
        if single and isinstance(value, str):
            value = [value]
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ValueError
        if length is not None and len(value) != length:
            raise ValueError
        return tuple(item.convert(entry) for entry in value)

    size = f"{length} values" if length is not None else "values"
    limits = {} if length is None else {"minItems": length, "maxItems": length}
    noun = f"a list of {size}, each {item.noun}"
    return Kind(noun, convert, "array", item=item, single=single, limits=limits)


def optional(kind: Kind) -> Kind:
    """The kind, or null."""

    def convert(value: object) -> Any:
        if value is None or (isinstance(value, str) and value.lower() in ("none", "null")):
            return None
        return kind.convert(value)

    types = (kind.json_type,) if isinstance(kind.json_type, str) else kind.json_type
    return replace(kind, noun=f"{kind.noun}, or null", convert=convert, json_type=(*types, "null"))


def exactly(expected: object, why: str) -> Kind:
    """One value only: anything else would change a result that is fixed."""

    def convert(value: object) -> object:
        if value != expected or isinstance(value, bool) != isinstance(expected, bool):
            raise ValueError
        return value

    shown = str(expected).lower() if isinstance(expected, bool) else repr(expected)
    return Kind(f"{shown} ({why})", convert, limits={"enum": [expected]})
