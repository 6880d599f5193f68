"""What a denoising network is told besides the noisy latents.

Axes: B batch, n text tokens, D text width, T latent frames, C channels, H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """Text, and for image-to-video the image latent and the constant `ofs`."""

    text: Tensor  # (B, n, D); a dropped or unconditional caption is all zeros
    image: Tensor | None = None  # (B, T, C2, H, W), joined to the channels after the latents
    ofs: Tensor | None = None  # (1,) or (B,); read by networks with an ofs embedding only


def joined(unconditional: Conditioning, conditional: Conditioning) -> Conditioning:
    """Both conditionings as one batch of 2B, unconditional first, for one guided network call."""
    return Conditioning(
        text=torch.cat([unconditional.text, conditional.text]),
        image=_joined_or_none(unconditional.image, conditional.image),
        ofs=_joined_ofs(unconditional, conditional),
    )


def _joined_or_none(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    assert (first is None) == (second is None), "only one of the two conditionings has it"
    if first is None or second is None:
        return None
    return torch.cat([first, second])


def _joined_ofs(unconditional: Conditioning, conditional: Conditioning) -> Tensor | None:
    """(2B,): a value of shape (1,) stands for every sample of its own half."""
    halves = []
    for half in (unconditional, conditional):
        batch = half.text.shape[0]
        halves.append(None if half.ofs is None else half.ofs.expand(batch))
    return _joined_or_none(*halves)
