"""The first frame as a condition: image-to-video.

Source: sat/diffusion_video.py, shared_step (noise of the image, place of its latent).
"""

from __future__ import annotations

import torch
from torch import Tensor

from app.distributed.seeding import Draws

# log of the noise's standard deviation: mean and spread, in pixel values of [-1, 1]
LOG_NOISE_MEAN = -3.0
LOG_NOISE_STD = 0.5


def noised_image(image: Tensor, draws: Draws) -> Tensor:
    """Add Gaussian noise whose strength is log-normal, one strength per sample.

    Draws image_noise_level and image_noise.

    Args:
        image: (B, 1, 3, H, W) in [-1, 1], any float dtype.
    """
    levels = draws.normal("image_noise_level", image.shape[0])
    strength = (LOG_NOISE_MEAN + LOG_NOISE_STD * levels).exp()
    strength = strength.to(image)[:, None, None, None, None]
    # Drawn as (B, 3, 1, H, W): upstream's axes, and those of recorded draws.
    noise = draws.normal_like("image_noise", image.transpose(1, 2)).transpose(1, 2)
    return image + noise * strength


def placed_image_latent(
    latent: Tensor, frames: int, keep: Tensor | None = None, *, all_frames: bool = False
) -> Tensor:
    """The image's latent on the first latent frame and zeros after it.

    Args:
        latent: (B, 1, C, H, W).
        frames: latent frames of the result.
        keep: (B,) of 1 and 0; 0 drops the sample's image (all zeros). None keeps all.
        all_frames: repeat the latent on every frame instead (`noised_image_all_concat`).

    Returns:
        (B, frames, C, H, W).
    """
    if all_frames:
        placed = latent.expand(-1, frames, -1, -1, -1)
    else:
        rest = latent.new_zeros(latent.shape[0], frames - 1, *latent.shape[2:])
        placed = torch.cat([latent, rest], dim=1)
    if keep is None:
        return placed
    return placed * keep.to(placed)[:, None, None, None, None]
