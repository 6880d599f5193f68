"""Numbers on a command line; one out of range is a usage error (exit code 2)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TypeVar

Number = TypeVar("Number", int, float)


def integer(least: int, most: int = sys.maxsize) -> Callable[[str], int]:
    """A reader of whole numbers in a range, for `type=` of an argument."""
    return _reader(int, "a whole number", least, most)


def number(least: float, most: float) -> Callable[[str], float]:
    """A reader of finite numbers in a range, for `type=` of an argument."""
    return _reader(float, "a number", least, most)


def _reader(
    read: Callable[[str], Number], what: str, least: Number, most: Number
) -> Callable[[str], Number]:
    def checked(text: str) -> Number:
        try:
            value = read(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"'{text}' is not {what}") from None
        if not least <= value <= most:  # neither holds for NaN
            limits = f"at least {least}" if most == sys.maxsize else f"{least:.7g} to {most:.7g}"
            raise argparse.ArgumentTypeError(f"{text} is out of range; use {limits}")
        return value

    return checked
