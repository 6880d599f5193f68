"""The image of image-to-video: its size in the video, and its pixels there.

Two rules, one for each generation of the model: 1.5 keeps the image's proportions and resizes
without cutting (Lanczos), 1.0 covers one fixed size and cuts the centre (bicubic).

Axes: C channels, H rows, W columns.
Source: sat/sample_video.py of both generations; Pillow's resampling with a Lanczos kernel.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from app.data.video.transforms import resize_and_crop

LOBES = 3  # of the Lanczos kernel


def size_by_ratio(size: tuple[int, int], short: int, multiple: int) -> tuple[int, int]:
    """(rows, columns) with the short side `short` and about the proportions of `size`.

    The long side is the nearest multiple of `multiple`, the larger one of two that are as near.
    """
    rows, columns = size
    if rows <= columns:
        return short, _nearest(short * columns, rows, multiple)
    return _nearest(short * rows, columns, multiple), short


def _nearest(numerator: int, denominator: int, multiple: int) -> int:
    """The multiple nearest to a fraction, in whole numbers: ties go up."""
    return (2 * numerator + multiple * denominator) // (2 * multiple * denominator) * multiple


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(3, H, W) uint8 to (3, *size) uint8 with a Lanczos kernel, columns first, as Pillow does."""
    wide = _along_columns(image.float(), size[1])
    tall = _along_columns(wide.transpose(1, 2), size[0]).transpose(1, 2)
    return tall.to(torch.uint8).contiguous()


def covered(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(3, H, W) uint8 to (3, *size) uint8: scaled to cover, the centre kept."""
    return resize_and_crop(image[None], size)[0]


def _along_columns(image: Tensor, count: int) -> Tensor:
    """(3, H, W) to (3, H, count), values rounded to those of a byte."""
    if image.shape[2] == count:
        return image
    weights = _lanczos_weights(image.shape[2], count)
    made = image.double() @ weights.T
    # Half up, as fixed-point numbers are rounded.
    return (made + 0.5).floor().clamp(0, 255).float()


def _lanczos_weights(old: int, new: int) -> Tensor:
    """(new, old) fp64: what each old pixel gives to each new one. Rows add up to 1."""
    scale = old / new
    stretch = max(scale, 1.0)
    reach = LOBES * stretch
    weights = torch.zeros(new, old, dtype=torch.float64)
    for index in range(new):
        centre = (index + 0.5) * scale
        first = max(0, int(centre - reach + 0.5))
        last = min(old, int(centre + reach + 0.5))
        row = [_kernel((pixel + 0.5 - centre) / stretch) for pixel in range(first, last)]
        weights[index, first:last] = torch.tensor(row, dtype=torch.float64) / sum(row)
    return weights


def _kernel(x: float) -> float:
    """sinc(x) * sinc(x / 3) inside three lobes, else 0."""
    if not -LOBES <= x < LOBES:
        return 0.0
    return _sinc(x) * _sinc(x / LOBES)


def _sinc(x: float) -> float:
    return 1.0 if x == 0 else math.sin(math.pi * x) / (math.pi * x)
