"""How a frame is turned before it is shown: what a display matrix asks for.

Source: ISO/IEC 14496-12, 6.2.2: a pixel at (x, y) is shown at (a x + c y, b x + d y).
"""

from __future__ import annotations

TILT = 0.02  # of the largest entry: about one degree, which ffmpeg takes for rounding too
AT_AN_ANGLE = "it is to be shown at an angle that is not a quarter turn"


def upright(a: float, b: float, c: float, d: float) -> tuple[str, ...] | None:
    """Steps that show a frame as its matrix says, by the names of ffmpeg's filters and directions.

    Returns:
        Any of hflip and vflip, or one of clock, cclock, clock_flip and cclock_flip, which exchange
        rows and columns; None where the matrix asks for more than quarter turns and mirrors.
    """
    largest = max(abs(value) for value in (a, b, c, d))
    if max(abs(b), abs(c)) <= TILT * largest:
        return tuple(name for name, applies in (("hflip", a < 0), ("vflip", d < 0)) if applies)
    if max(abs(a), abs(d)) <= TILT * largest:
        turns = {
            (True, True): "cclock_flip",
            (True, False): "clock",
            (False, True): "cclock",
            (False, False): "clock_flip",
        }
        return (turns[b > 0, c > 0],)
    return None


def is_turned(steps: tuple[str, ...]) -> bool:
    """Whether they exchange rows and columns."""
    return any("clock" in step for step in steps)
