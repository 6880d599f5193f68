"""One image of many videos: a row for each, a few of its frames side by side.

Axes: T frames, C channels, H rows, W columns. PNG is written with zlib alone.
Source: the PNG specification (W3C, third edition), chunks IHDR, IDAT, IEND.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

FRAMES_SHOWN = 5
STRIP_ROWS = 96  # pixels of one video's row
GAP = 4  # black pixels between rows
SIGNATURE = b"\x89PNG\r\n\x1a\n"
BITS, TRUE_COLOUR = 8, 2  # of a sample; red, green and blue


def strip(video: Tensor) -> Tensor:
    """Frames of one video from the first to the last, evenly spaced, side by side and small.

    Args:
        video: (T, 3, H, W) uint8.

    Returns:
        (3, 96, W') uint8; one frame where the video has one.
    """
    count = min(FRAMES_SHOWN, len(video))
    places = torch.linspace(0, len(video) - 1, count).round().long()
    frames = video[places].float()
    columns = max(1, round(video.shape[3] * STRIP_ROWS / video.shape[2]))
    small = F.interpolate(
        frames, size=(STRIP_ROWS, columns), mode="bilinear", antialias=True, align_corners=False
    )
    return torch.cat(list(small.round().clamp(0, 255).to(torch.uint8)), dim=2).contiguous()


def contact_sheet(strips: Sequence[Tensor]) -> Tensor:
    """Strips (3, H, W_i) uint8 below each other on black: (3, rows, widest)."""
    width = max(image.shape[2] for image in strips)
    rows = []
    for image in strips:
        right = width - image.shape[2]
        rows.append(F.pad(image, (0, right, 0, GAP)))
    return torch.cat(rows, dim=1)[:, :-GAP].contiguous()


def png(image: Tensor) -> bytes:
    """(3, H, W) uint8 RGB as a PNG file; the same bytes every time."""
    assert image.dtype == torch.uint8, image.dtype
    _, rows, columns = image.shape
    pixels = image.permute(1, 2, 0).reshape(rows, columns * 3).cpu().contiguous()
    # Every row begins with the number of its filter: 0, none.
    lines = F.pad(pixels, (1, 0)).numpy().tobytes()
    header = struct.pack(">IIBBBBB", columns, rows, BITS, TRUE_COLOUR, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(lines, 6)), (b"IEND", b"")
    return SIGNATURE + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
