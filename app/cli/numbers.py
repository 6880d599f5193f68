"""Numbers on a command line; one out of range is a usage error (exit code 2)."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable


def integer(least: int, most: int | None = None) -> Callable[[str], int]:
    """A reader of whole numbers in a range, for `type=` of an argument."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"'{text}' is not a whole number") from None
        if value < least or (most is not None and value > most):
            limits = f"at least {least}" if most is None else f"{least} to {most}"
            raise argparse.ArgumentTypeError(f"{value} is out of range; use {limits}")
        return value

    return read


def number(least: float, most: float) -> Callable[[str], float]:
    """A reader of finite numbers in a range, for `type=` of an argument."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"'{text}' is not a number") from None
        if not (math.isfinite(value) and least <= value <= most):
            limits = f"{least:.7g} to {most:.7g}"
            raise argparse.ArgumentTypeError(f"{text} is out of range; use {limits}")
        return value

    return read
