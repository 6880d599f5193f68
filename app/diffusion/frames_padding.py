"""Latent frames in front, so that patches of several frames fit (CogVideoX1.5).

A clip of 4k + 1 frames has k + 1 latents, odd for the usual lengths, while the 1.5 models cut
patches of two. Copies of the first latent are put before it; the loss covers them, and they are
dropped before decoding.
"""

from __future__ import annotations

import torch
from torch import Tensor


def padding_count(frames: int, multiple: int) -> int:
    """Latent frames to put in front of `frames` to reach a multiple of `multiple`."""
    return -frames % multiple


def pad_latent_frames(latents: Tensor, multiple: int) -> Tensor:
    """Put copies of the first latent in front until T is a multiple of `multiple`.

    Args:
        latents: (B, T, C, H, W).

    Returns:
        (B, T + padding_count(T, multiple), C, H, W); `latents` itself when nothing is missing.
    """
    count = padding_count(latents.shape[1], multiple)
    if count == 0:
        return latents
    return torch.cat([latents[:, :1].expand(-1, count, -1, -1, -1), latents], dim=1)


def drop_padding(latents: Tensor, count: int) -> Tensor:
    """(B, T - count, C, H, W): without the `count` latents that were put in front."""
    return latents[:, count:]
