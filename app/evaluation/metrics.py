"""Validation loss that can be compared between steps, runs and world sizes.

Every sample is judged at the same timesteps with the same noise each time: both follow from a
fixed seed and the sample's position in the validation set, not from the rank or the batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from app.diffusion.denoiser import Network
from app.diffusion.loss import VideoDiffusionLoss
from app.distributed.seeding import KeyedDraws

# Runs are compared with each other, so this is not args.seed.
VALIDATION_SEED = 20240806
TIMESTEPS_PER_SAMPLE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationBatch:
    """Encoded samples.

    Attributes:
        latents: (B, T, C, H, W), scaled and padded as in training.
        conditioning: of the B samples, nothing dropped.
        positions: of the samples in the validation set.
        counted: False for fillers that only keep the ranks in step; None counts all.
    """

    latents: Tensor
    conditioning: Any
    positions: Sequence[int]
    counted: Sequence[bool] | None = None


@dataclass(frozen=True, slots=True)
class LossSums:
    """Sums over samples. Add the tensors of all ranks, then read the means.

    Attributes:
        totals: summed loss at each of the fixed timesteps.
        count: samples summed.
    """

    totals: tuple[float, ...]
    count: int

    def to_tensor(self) -> Tensor:
        """(timesteps + 1,) fp64 for a reduction by addition: totals, then the count."""
        return torch.tensor([*self.totals, self.count], dtype=torch.float64)

    @classmethod
    def from_tensor(cls, sums: Tensor) -> LossSums:
        """The inverse of `to_tensor`."""
        *totals, count = sums.tolist()
        return cls(tuple(totals), int(count))

    @property
    def means(self) -> tuple[float, ...]:
        """Mean loss at each timestep; NaN without samples."""
        return tuple(total / self.count if self.count else float("nan") for total in self.totals)

    @property
    def mean(self) -> float:
        """Mean over samples and timesteps."""
        return sum(self.means) / len(self.means)


def fixed_timesteps(count: int, num_idx: int = 1000) -> list[int]:
    """`count` timesteps in the middle of equal ranges of 0..num_idx-1, ascending."""
    return [(2 * i + 1) * num_idx // (2 * count) for i in range(count)]


@torch.no_grad()
def validation_loss(
    loss: VideoDiffusionLoss,
    network: Network,
    batches: Iterable[ValidationBatch],
    *,
    seed: int = VALIDATION_SEED,
    timesteps_per_sample: int = TIMESTEPS_PER_SAMPLE,
) -> LossSums:
    """Sum the loss of each sample over fixed timesteps and noise, on this rank.

    The network is called `timesteps_per_sample` times per batch and must be in evaluation mode.
    """
    timesteps = fixed_timesteps(timesteps_per_sample, loss.config.timesteps.num_idx)
    totals = [0.0] * len(timesteps)
    count = 0
    for batch in batches:
        size = batch.latents.shape[0]
        counted = torch.tensor(batch.counted if batch.counted is not None else [True] * size)
        draws = KeyedDraws(seed, batch.positions)
        for i, timestep in enumerate(timesteps):
            noise = draws.normal_like(f"validation_noise/{i}", batch.latents)
            at = torch.full((size,), timestep)
            losses = loss.at(network, batch.latents, batch.conditioning, at, noise)
            # fp64: the sum does not depend on how the samples are dealt to the ranks.
            totals[i] += losses.double().cpu()[counted].sum().item()
        count += int(counted.sum())
    return LossSums(tuple(totals), count)
