"""A dataset in one image: histograms of its clips, and frames of some of them.

The only user of pillow. Axes: C channels, H rows, W columns, uint8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from app.data.check.scan import Census
from app.evaluation.contact_sheet import contact_sheet, png, strip

FONT_PX = 15
TITLE_ROWS = 40
PANEL_ROWS, PANEL_COLUMNS, PER_LINE = 150, 330, 3
MARGIN = 12
BARS = 24
INK, BAR, PAPER = (40, 40, 40), (60, 110, 190), (255, 255, 255)


@dataclass(frozen=True, slots=True)
class Histogram:
    """Bars of equal width, a word below the first and the last of them."""

    title: str
    counts: Sequence[int]
    first: str
    last: str


def data_chart(census: Census, buckets: Mapping[str, int]) -> bytes:
    """A PNG file: histograms first, then one row of frames per clip.

    Args:
        census: clips with their frames.
        buckets: number of clips per bucket, by its name.
    """
    sized = [clip.size for clip in census.clips if clip.size is not None]
    histograms = [
        histogram("seconds", [clip.duration_s for clip in census.clips if clip.size is not None]),
        histogram("frames per second", [size.fps for size in sized]),
        histogram("frames", [size.frames for size in sized]),
        histogram("rows", [size.rows for size in sized]),
        histogram("columns", [size.columns for size in sized]),
        histogram("caption tokens", [clip.tokens for clip in census.clips if clip.tokens]),
        histogram("MiB", [clip.size_bytes / 2**20 for clip in census.clips]),
        histogram("problems per kind", [], words=_by_reason(census)),
        histogram("clips per bucket", [], words=buckets),
    ]
    title = f"{census.samples} samples, {len(census.problems)} problems"
    drawn = np.array(_page(title, histograms))
    image = torch.from_numpy(drawn).permute(2, 0, 1).contiguous()
    shown = [clip.frames_shown for clip in census.clips if clip.frames_shown is not None]
    if shown:
        image = _below(image, contact_sheet([strip(frames) for frames in shown]))
    return png(image)


def histogram(
    title: str, values: Sequence[float], *, words: Mapping[str, int] | None = None
) -> Histogram:
    """Numbers counted in 24 equal ranges; or words with their counts, one bar each."""
    if words is not None:
        names = list(words)
        ends = (names[0], names[-1] if len(names) > 1 else "") if names else ("none", "")
        return Histogram(title, list(words.values()), *ends)
    if not values:
        return Histogram(title, [], "none", "")
    low, high = min(values), max(values)
    if low == high:
        return Histogram(title, [len(values)], f"{low:g}", "")
    counts, _ = np.histogram(values, bins=BARS, range=(low, high))
    return Histogram(title, counts.tolist(), f"{low:.4g}", f"{high:.4g}")


def _by_reason(census: Census) -> dict[str, int]:
    reasons = sorted({problem.reason for problem in census.problems})
    return {word: sum(problem.reason == word for problem in census.problems) for word in reasons}


def _page(title: str, histograms: Sequence[Histogram]) -> Image.Image:
    lines = -(-len(histograms) // PER_LINE)
    page = Image.new("RGB", (PER_LINE * PANEL_COLUMNS, TITLE_ROWS + lines * PANEL_ROWS), PAPER)
    draw = ImageDraw.Draw(page)
    draw.font = ImageFont.load_default(FONT_PX)
    draw.text((MARGIN, MARGIN), title, INK)
    for number, one in enumerate(histograms):
        line, column = divmod(number, PER_LINE)
        _draw_panel(draw, one, column * PANEL_COLUMNS, TITLE_ROWS + line * PANEL_ROWS)
    return page


def _draw_panel(draw: ImageDraw.ImageDraw, histogram: Histogram, left: int, top: int) -> None:
    """One histogram in the 330 columns and 150 rows from (left, top)."""
    left, right = left + MARGIN, left + PANEL_COLUMNS - MARGIN
    above, bottom = top + MARGIN, top + PANEL_ROWS - 2 * MARGIN - FONT_PX // 2
    draw.text((left, above), histogram.title, INK)
    most = max(histogram.counts, default=0)
    if most:
        draw.text((right, above), f"max {most}", INK, anchor="ra")
        height = bottom - above - 2 * FONT_PX
        width = (right - left) / len(histogram.counts)
        for place, count in enumerate(histogram.counts):
            if count:
                start, rows = left + int(place * width), max(round(height * count / most), 1)
                stop = max(left + int((place + 1) * width) - 2, start)
                draw.rectangle((start, bottom - rows, stop, bottom - 1), BAR)
    draw.line((left, bottom, right, bottom), INK)
    draw.text((left, bottom + 5), histogram.first, INK)
    draw.text((right, bottom + 5), histogram.last, INK, anchor="ra")


def _below(upper: Tensor, lower: Tensor) -> Tensor:
    """Two images (3, H, W), one below the other, the narrower one filled with black."""
    width = max(upper.shape[2], lower.shape[2])
    both = [torch.nn.functional.pad(part, (0, width - part.shape[2])) for part in (upper, lower)]
    return torch.cat(both, dim=1)
