"""A dataset in one picture: histograms of its clips, and frames of some of them.

Axes: C channels, H rows, W columns, uint8. Letters are drawn from a table, so that no plotting
library is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from app.data.check.scan import Census
from app.evaluation.contact_sheet import contact_sheet, png, strip

# Each digit is one row of three pixels, from the top: 4 left, 2 middle, 1 right.
_LETTERS = (
    "0=75557 1=26227 2=71747 3=71717 4=55711 5=74717 6=74757 7=71111 8=75757 9=75717 "
    "A=25755 B=65656 C=34443 D=65556 E=74647 F=74644 G=34553 H=55755 I=72227 J=11152 K=55655 "
    "L=44447 M=57755 N=65555 O=25552 P=65644 Q=25563 R=65655 S=34216 T=72222 U=55557 V=55552 "
    "W=55775 X=55255 Y=55222 Z=71247 .=00002 -=00700 /=11244 :=02020 %=51245 (=24442 )=42224 "
    "+=02720 _=00007"
)
GLYPHS: Mapping[str, str] = {pair[0]: pair[2:] for pair in _LETTERS.split(" ")}
PIXEL = 2  # a dot of a letter
LETTER = 4 * PIXEL
LINE = 8 * PIXEL
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


def data_picture(census: Census, buckets: Mapping[str, int]) -> bytes:
    """A PNG file: histograms first, then one row of frames per clip.

    Args:
        census: clips with their frames.
        buckets: number of clips per bucket, by its name.
    """
    sized = [clip.size for clip in census.clips if clip.size is not None]
    drawn = [
        histogram("SECONDS", [clip.duration_s for clip in census.clips if clip.size is not None]),
        histogram("FRAMES PER SECOND", [size.fps for size in sized]),
        histogram("FRAMES", [size.frames for size in sized]),
        histogram("ROWS", [size.rows for size in sized]),
        histogram("COLUMNS", [size.columns for size in sized]),
        histogram("CAPTION TOKENS", [clip.tokens for clip in census.clips if clip.tokens]),
        histogram("MIB", [clip.size_bytes / 2**20 for clip in census.clips]),
        histogram("PROBLEMS PER KIND", [], words=_by_reason(census)),
        histogram("CLIPS PER BUCKET", [], words=buckets),
    ]
    head = f"{census.samples} SAMPLES  {len(census.problems)} PROBLEMS"
    page = [_title(head), *(_line(drawn[i : i + PER_LINE]) for i in range(0, 9, PER_LINE))]
    picture = torch.from_numpy(np.concatenate(page)).permute(2, 0, 1).contiguous()
    shown = [clip.frames_shown for clip in census.clips if clip.frames_shown is not None]
    if shown:
        sheet = contact_sheet([strip(frames) for frames in shown])
        picture = _below(picture, sheet)
    return png(picture)


def histogram(
    title: str, values: Sequence[float], *, words: Mapping[str, int] | None = None
) -> Histogram:
    """Numbers counted in 24 equal ranges; or words with their counts, one bar each."""
    if words is not None:
        names = list(words)
        ends = (names[0], names[-1] if len(names) > 1 else "") if names else ("NONE", "")
        return Histogram(title, list(words.values()), *ends)
    if not values:
        return Histogram(title, [], "NONE", "")
    low, high = min(values), max(values)
    if low == high:
        return Histogram(title, [len(values)], f"{low:g}", "")
    counts, _ = np.histogram(values, bins=BARS, range=(low, high))
    return Histogram(title, counts.tolist(), f"{low:.4g}", f"{high:.4g}")


def _by_reason(census: Census) -> dict[str, int]:
    reasons = sorted({problem.reason for problem in census.problems})
    return {word: sum(problem.reason == word for problem in census.problems) for word in reasons}


def _title(text: str) -> np.ndarray:
    page = _paper(LINE + 2 * MARGIN, PER_LINE * PANEL_COLUMNS)
    _write(page, text, MARGIN, MARGIN)
    return page


def _line(histograms: Sequence[Histogram]) -> np.ndarray:
    return np.concatenate([_panel(histogram) for histogram in histograms], axis=1)


def _panel(histogram: Histogram) -> np.ndarray:
    """One histogram (150, 330, 3) uint8."""
    page = _paper(PANEL_ROWS, PANEL_COLUMNS)
    _write(page, histogram.title, MARGIN, MARGIN)
    most = max(histogram.counts, default=0)
    top, bottom = MARGIN + 2 * LINE, PANEL_ROWS - MARGIN - LINE
    left, right = MARGIN, PANEL_COLUMNS - MARGIN
    page[bottom : bottom + 1, left:right] = INK
    if most:
        label = f"MAX {most}"
        _write(page, label, MARGIN, right - len(label) * LETTER)
        width = (right - left) / len(histogram.counts)
        for place, count in enumerate(histogram.counts):
            rows = max(round((bottom - top) * count / most), 1 if count else 0)
            start, stop = left + int(place * width), left + max(int((place + 1) * width) - 1, 1)
            page[bottom - rows : bottom, start : max(stop, start + 1)] = BAR
    _write(page, histogram.first, bottom + 5, left)
    _write(page, histogram.last, bottom + 5, right - len(histogram.last) * LETTER)
    return page


def _write(page: np.ndarray, text: str, top: int, left: int) -> None:
    """Draw a line of text; letters that there are none for stay blank, what is too long is cut."""
    for place, letter in enumerate(text.upper()):
        column = left + place * LETTER
        if column + LETTER > page.shape[1]:
            return
        for row, bits in enumerate(GLYPHS.get(letter, "00000")):
            for bit in range(3):
                if int(bits) & (4 >> bit):
                    y, x = top + row * PIXEL, column + bit * PIXEL
                    page[y : y + PIXEL, x : x + PIXEL] = INK


def _paper(rows: int, columns: int) -> np.ndarray:
    return np.full((rows, columns, 3), PAPER, dtype=np.uint8)


def _below(upper: Tensor, lower: Tensor) -> Tensor:
    """Two pictures (3, H, W) below each other, the narrower one filled with black."""
    width = max(upper.shape[2], lower.shape[2])
    both = [torch.nn.functional.pad(part, (0, width - part.shape[2])) for part in (upper, lower)]
    return torch.cat(both, dim=1)
