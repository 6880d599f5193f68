"""Parts of the model of your own: a VAE, a text encoder and a sampler, as small as they can be.

Run it from the folder that contains `examples`, with a dataset and weights that fit:

```sh
PYTHONPATH=. cogvx train --register pooled=examples.model_parts:PooledVae \
    --register words=examples.model_parts:WordHashes \
    --register noisy=examples.model_parts:NoisyDdim \
    --base configs/tiny/tiny.yaml configs/tiny/tiny_train.yaml examples/model_parts.yaml \
    --load s3://weights/tiny/transformer --train-data s3://clips/packed
```

docs/configuration.md, "Classes of your own", says what each class must offer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from app.diffusion.samplers.loop import Sampler
from app.distributed.seeding import Draws

CELL_PX = 8  # a latent covers 8 x 8 pixels, and 4 frames after the first


@dataclass(frozen=True)
class Exact:
    """A posterior without noise: (B, t, C, h, w)."""

    mean: Tensor

    @property
    def logvar(self) -> Tensor:
        """Read by `cogvx encode` alone."""
        return torch.full_like(self.mean, -30.0)

    def draw(self, draws: Draws, purpose: str) -> Tensor:
        return self.mean


class PooledVae(nn.Module):
    """Latents are average colours; `channels` repeats red, green and blue."""

    def __init__(self, params: Mapping[str, Any]) -> None:
        super().__init__()
        self.channels = int(params["channels"])

    def encode(self, video: Tensor, samples_at_a_time: int | None = None) -> Exact:
        """(B, T, 3, H, W), T = 4 k + 1, to a posterior of (B, k + 1, channels, H / 8, W / 8)."""
        clips, _, _, rows, columns = video.shape
        parts = [video[:, :1], *video[:, 1:].split(4, dim=1)]
        means = torch.stack([part.mean(dim=1) for part in parts], dim=1)
        cells = means.reshape(
            clips, len(parts), 3, rows // CELL_PX, CELL_PX, columns // CELL_PX, CELL_PX
        )
        colours = cells.mean(dim=(4, 6))
        return Exact(colours[:, :, [c % 3 for c in range(self.channels)]])

    def decode(self, latents: Tensor) -> Tensor:
        """(B, t, channels, h, w) to (B, 4 t - 3, 3, 8 h, 8 w)."""
        pixels = latents[:, :, :3].repeat_interleave(CELL_PX, 3).repeat_interleave(CELL_PX, 4)
        return torch.cat([pixels[:, :1], pixels[:, 1:].repeat_interleave(4, dim=1)], dim=1)


class WordHashes(nn.Module):
    """A token is a word, its embedding a random vector that follows from its letters.

    `max_length` is the n of the contract; a class that calls it `length` is understood as well.
    """

    def __init__(self, params: Mapping[str, Any]) -> None:
        super().__init__()
        self.length, self.width = int(params["max_length"]), int(params["width"])
        self.register_buffer("padding", torch.zeros(self.width))  # has the dtype and the device

    def encode(self, captions: Sequence[str]) -> Tensor:
        """(B, max_length, width) for B captions."""
        return torch.stack([self.tokens(caption) for caption in captions])

    def tokens(self, caption: str) -> Tensor:
        found = self.padding.repeat(self.length, 1)
        for place, word in enumerate(caption.lower().split()[: self.length]):
            seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big") >> 1
            generator = torch.Generator().manual_seed(seed)
            found[place] = torch.randn(self.width, generator=generator)
        return found


class NoisyDdim(Sampler):
    """DDIM of which half of the noise is drawn anew in each step."""

    def step(
        self, index: int, x: Tensor, denoised: Tensor, previous: Tensor | None, draws: Draws
    ) -> Tensor:
        """(B, T, C, H, W) at step `index` to the next noise level."""
        alphas, levels = self.path.alpha_bar_sqrt.tolist(), self.path.noise_level.tolist()
        known = (x - alphas[index] * denoised) / levels[index]
        fresh = draws.normal_like(f"sampler_noise/{index}", x)
        noise = (known + fresh) / 2**0.5
        return alphas[index + 1] * denoised + levels[index + 1] * noise
