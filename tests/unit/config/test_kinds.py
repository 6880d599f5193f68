"""Kinds accept what is unambiguous and refuse the rest."""

from __future__ import annotations

from typing import Any

import pytest

from app.config import kinds
from app.config.kinds import Kind


@pytest.mark.parametrize(
    ("kind", "given", "value"),
    [
        (kinds.integer(), 3, 3),
        (kinds.integer(), 3.0, 3),
        (kinds.integer(), "3", 3),
        (kinds.integer(), 10**18 + 1, 10**18 + 1),
        (kinds.real(), "1e-8", 1e-8),
        (kinds.real(), 2, 2.0),
        (kinds.boolean(), "False", False),
        (kinds.boolean(), "yes", True),
        (kinds.boolean(), 0, False),
        (kinds.text(), 2024, "2024"),
        (kinds.sequence(kinds.integer()), ["1", 2.0], (1, 2)),
        (kinds.sequence(kinds.text(), single=True), "one", ("one",)),
        (kinds.optional(kinds.integer()), None, None),
        (kinds.optional(kinds.integer()), "null", None),
        (kinds.exactly(False, "why"), False, False),
    ],
)
def test_accepted_spellings(kind: Kind, given: object, value: Any) -> None:
    converted = kind.convert(given)

    assert converted == value
    assert type(converted) is type(value)


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (kinds.integer(), 3.5),
        (kinds.integer(), True),
        (kinds.integer(), "three"),
        (kinds.integer(), float("nan")),
        (kinds.integer(1), 0),
        (kinds.integer(maximum=3), 4),
        (kinds.real(), float("inf")),
        (kinds.real(above=0), 0),
        (kinds.boolean(), "maybe"),
        (kinds.boolean(), 2),
        (kinds.text(), True),
        (kinds.text(), ["a"]),
        (kinds.choice("a", "b"), "c"),
        (kinds.sequence(kinds.integer()), "12"),
        (kinds.sequence(kinds.integer(), length=2), [1, 2, 3]),
        (kinds.sequence(kinds.integer(8), length=2), [4, 8]),
        (kinds.exactly(False, "why"), 0),
    ],
)
def test_refused_values(kind: Kind, given: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        kind.convert(given)


def test_nouns_say_the_limits() -> None:
    assert kinds.integer(1).noun == "an integer at least 1"
    assert kinds.real(0, 1).noun == "a number at least 0 and at most 1"
    assert kinds.sequence(kinds.integer(8), length=2).noun == (
        "a list of 2 values, each an integer at least 8"
    )
