from __future__ import annotations

import io

import numpy as np
from PIL import Image

from app.data.check.sample import CheckedClip, Problem
from app.data.check.scan import Census
from app.data.video.sizes import ClipSize
from app.run.dataset.chart import BAR, Histogram, data_chart, histogram


def test_numbers_are_counted_in_equal_ranges_and_words_as_they_are() -> None:
    assert histogram("rows", [0.0] * 3 + [24.0]) == Histogram("rows", [3, *[0] * 22, 1], "0", "24")
    assert histogram("rows", [7.0, 7.0]) == Histogram("rows", [2], "7", "")
    assert histogram("rows", []) == Histogram("rows", [], "none", "")
    assert histogram("kinds", [], words={"a": 2, "b": 1}) == Histogram("kinds", [2, 1], "a", "b")


def test_bars_are_as_high_as_their_counts() -> None:
    size = ClipSize(48, 64, 20, 8.0)
    clips = tuple(CheckedClip("s", f"{n}", 100, size, "avc1", 2.5) for n in range(4))
    census = Census("folder", 0, 4, clips, (Problem("s", "0", "too_short", ""),))

    data = data_chart(census, {"9x32x48": 4, "5x32x48": 2})

    image = np.asarray(Image.open(io.BytesIO(data)))
    assert image.shape == (490, 990, 3)
    last = (image[340:, 660:] == BAR).all(axis=2)  # the panel of the buckets
    heights = last.sum(axis=0)
    assert heights[80] > 60
    assert abs(heights[80] - 2 * heights[240]) <= 1  # four clips and two
