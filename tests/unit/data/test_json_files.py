"""Content that others wrote: whatever is wrong with it, one kind of error comes out."""

from __future__ import annotations

import pytest

from app.data.json_files import parsed, parsed_lines, parsed_or_none
from app.errors import DataError

NOT_WHAT_WAS_EXPECTED = {
    "cut": b'{"size": 3',
    "not UTF-8": b'{"size": "\xff"}',
    "key missing": b'{"length": 3}',
    "list": b"[3]",
    "number": b"3",
    "null inside": b'{"size": null}',
    "infinity": b'{"size": Infinity}',
    "too deep": b"[" * 100_000,
}


def size_of(content: dict[str, int]) -> int:
    return int(content["size"])


@pytest.mark.parametrize("case", NOT_WHAT_WAS_EXPECTED)
def test_what_cannot_be_taken_apart_is_an_error_or_none(case: str) -> None:
    data = NOT_WHAT_WAS_EXPECTED[case]

    with pytest.raises(DataError) as caught:
        parsed(data, size_of, what="no sizes here", where="a.json", fix="delete it")

    assert caught.value.what.startswith("no sizes here: ")
    assert (caught.value.where, caught.value.fix) == ("a.json", "delete it")
    assert parsed_or_none(data, size_of) is None


def test_good_content_is_what_the_parser_makes_of_it() -> None:
    data = b'{"size": 3}'

    assert parsed(data, size_of, what="", where="", fix="") == 3
    assert parsed_or_none(data, size_of) == 3


def test_a_missing_file_gives_none() -> None:
    assert parsed_or_none(None, size_of) is None


def test_bad_lines_are_counted_and_blank_ones_are_not() -> None:
    data = b'{"size": 1}\n\n   \n{"size": 2}\n{"length": 9}\n{"size": '

    assert parsed_lines(data, size_of) == ([1, 2], 2)
