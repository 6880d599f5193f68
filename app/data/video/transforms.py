"""Frames to the size of the model: resize over the short side, then cut.

Axes: T frames, C channels, H rows, W columns. Pixels stay uint8 until they are on the device.
Source: measured behaviour of CogVideo's resize_for_rectangle_crop with torchvision's tensor
resize: fp32, bicubic, antialias, clamped to [0, 255], rounded.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from app.errors import ShapeError


class Dice(Protocol):
    """Gives whole numbers in [low, high); `numpy.random.RandomState` is one."""

    def randint(self, low: int, high: int) -> int: ...


def resized_size(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) after scaling `size` so that it just covers `target`."""
    rows, columns = size
    if columns / rows > target[1] / target[0]:
        return target[0], int(columns * target[0] / rows)
    return int(rows * target[1] / columns), target[1]


def crop_origin(
    size: tuple[int, int], target: tuple[int, int], dice: Dice | None = None
) -> tuple[int, int]:
    """(top, left) of the part that is kept: the centre, or anywhere by `dice`, top first."""
    spare_rows, spare_columns = size[0] - target[0], size[1] - target[1]
    if dice is None:
        return spare_rows // 2, spare_columns // 2
    top = int(dice.randint(0, spare_rows + 1))
    return top, int(dice.randint(0, spare_columns + 1))


def resize(frames: Tensor, size: tuple[int, int], *, antialias: bool = True) -> Tensor:
    """Scale frames to `size`.

    Args:
        frames: (T, C, H, W); uint8 gives uint8 (clamped, rounded), floats are neither.
        size: rows, columns.
        antialias: off only to reproduce data made with torchvision before 0.17.

    Returns:
        (T, C, *size) of the same dtype.
    """
    if tuple(frames.shape[-2:]) == tuple(size):
        return frames
    # Contiguous, because the kernel for other memory layouts rounds differently.
    pixels = frames.to(torch.float32).contiguous()
    pixels = F.interpolate(
        pixels, size=size, mode="bicubic", align_corners=False, antialias=antialias
    )
    if frames.dtype == torch.uint8:
        return pixels.clamp_(0, 255).round_().to(torch.uint8)
    return pixels.to(frames.dtype)


def resize_and_crop(
    frames: Tensor, target: tuple[int, int], dice: Dice | None = None, *, antialias: bool = True
) -> Tensor:
    """(T, C, H, W) -> (T, C, *target): cover, then cut the centre (or by `dice`).

    Raises:
        ShapeError: a frame without rows or columns.
    """
    rows, columns = frames.shape[-2:]
    if rows < 1 or columns < 1:
        raise ShapeError(
            f"frames of {rows} x {columns} pixels", where="resize", fix="check the video"
        )
    scaled = resize(frames, resized_size((rows, columns), target), antialias=antialias)
    top, left = crop_origin((scaled.shape[-2], scaled.shape[-1]), target, dice)
    return scaled[..., top : top + target[0], left : left + target[1]]


def frame_to_model_size(frame: np.ndarray, target: tuple[int, int]) -> Tensor:
    """One decoded frame (H, W, 3) uint8 to (3, *target) uint8, centre kept."""
    pixels = torch.from_numpy(frame).permute(2, 0, 1).unsqueeze(0)
    return resize_and_crop(pixels, target)[0]


def scale_pixels(video: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 pixels to [-1, 1]; called on the device. Floats are in that range already."""
    if video.dtype == torch.uint8:
        return ((video.to(torch.float32) - 127.5) / 127.5).to(dtype)
    return video.to(dtype)
