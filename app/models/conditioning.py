"""What a denoising network is given besides the noisy latents.

Axes: B batch, n text tokens, D text width, T latent frames, C channels, H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """Text, and for image-to-video the image latent and the constant `ofs`."""

    text: Tensor  # (B, n, D); a dropped caption is all zeros
    image: Tensor | None = None  # (B, T, C2, H, W), joined to the channels after the latents
    ofs: Tensor | None = None  # (1,) or (B,); read by networks with an ofs embedding only

    def for_guidance(self) -> Conditioning:
        """2B samples for one guided network call: the B without captions, then with them."""
        ofs = None if self.ofs is None else self.ofs.expand(len(self.text))
        return Conditioning(
            text=torch.cat([torch.zeros_like(self.text), self.text]),
            image=None if self.image is None else torch.cat([self.image, self.image]),
            ofs=None if ofs is None else torch.cat([ofs, ofs]),
        )
