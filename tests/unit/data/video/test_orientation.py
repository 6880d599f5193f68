from __future__ import annotations

import math

import numpy as np
import pytest

from app.data.video.orientation import is_turned, upright

# What the steps do to an image, as ffmpeg documents its filters.
DONE = {
    "hflip": lambda image: image[:, ::-1],
    "vflip": lambda image: image[::-1],
    "clock": lambda image: np.rot90(image, -1),
    "cclock": lambda image: np.rot90(image),
    "clock_flip": lambda image: np.rot90(image, -1)[::-1],
    "cclock_flip": lambda image: np.rot90(image)[::-1],
}


def shown(image: np.ndarray, a: int, b: int, c: int, d: int) -> np.ndarray:
    """Each pixel moved by the standard's formula, then into the corner."""
    places = {
        (a * x + c * y, b * x + d * y): image[y, x]
        for y in range(image.shape[0])
        for x in range(image.shape[1])
    }
    columns, rows = sorted({x for x, _ in places}), sorted({y for _, y in places})
    return np.array([[places[x, y] for x in columns] for y in rows])


@pytest.mark.parametrize(
    "matrix",
    [(a, 0, 0, d) for a in (1, -1) for d in (1, -1)]
    + [(0, b, c, 0) for b in (1, -1) for c in (1, -1)],
)
def test_the_steps_do_what_the_matrix_says(matrix: tuple[int, int, int, int]) -> None:
    image = np.arange(6).reshape(2, 3)
    expected = shown(image, *matrix)

    steps = upright(*matrix)

    assert steps is not None
    for step in steps:
        image = DONE[step](image)
    np.testing.assert_array_equal(image, expected)
    assert is_turned(steps) == (expected.shape == (3, 2))


@pytest.mark.parametrize("degrees", [2, 30, 45, 88, 100])
def test_other_angles_are_not_shown(degrees: float) -> None:
    cos, sin = (f(math.radians(degrees)) for f in (math.cos, math.sin))

    assert upright(cos, sin, -sin, cos) is None


def test_rounding_of_a_quarter_turn_is_forgiven() -> None:
    assert upright(0.004, 1.0, -1.0, 0.004) == ("clock",)
