"""Numbers out of range and words, as argparse shows them."""

from __future__ import annotations

from argparse import ArgumentTypeError

import pytest

from app.cli.numbers import integer, number


def test_numbers_in_range_are_read() -> None:
    assert integer(1)("7") == 7
    assert integer(1, 7)("7") == 7
    assert number(0.5, 2)("5e-1") == 0.5


@pytest.mark.parametrize(
    ("text", "says"),
    [("x", "'x' is not a whole number"), ("1.5", "not a whole number"), ("0", "use 1 to 7")],
)
def test_other_whole_numbers_are_refused(text: str, says: str) -> None:
    with pytest.raises(ArgumentTypeError, match=says):
        integer(1, 7)(text)


@pytest.mark.parametrize("text", ["1" + "0" * 400, "9" * 19])
def test_a_whole_number_that_nothing_counts_to_is_out_of_range(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match=r"out of range; use at least 1$"):
        integer(1)(text)
    with pytest.raises(ArgumentTypeError, match=r"out of range; use 1 to 7$"):
        integer(1, 7)(text)


@pytest.mark.parametrize("text", ["x", "nan", "inf", "0.4", "2.1", ""])
def test_other_numbers_are_refused(text: str) -> None:
    with pytest.raises(ArgumentTypeError):
        number(0.5, 2)(text)
