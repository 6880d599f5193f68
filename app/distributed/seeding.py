"""Random numbers as an argument: keyed by the sample's position, or upstream's global stream.

Each micro-batch has one `Draws`. Numbers are requested by purpose, in upstream's order:
 image_noise_level, image_noise, image_posterior, posterior, image_dropout,
caption_dropout, timestep, noise, offset_noise; a sampler asks for initial_noise and
sampler_noise/<step index>. Dim 0 of a drawn tensor is always the sample.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from app.distributed.mix import mix


class Draws(Protocol):
    """Every random number of one micro-batch. Implemented by KeyedDraws and GlobalDraws."""

    like_upstream: bool  # also draw the numbers that upstream draws and throws away

    def normal_like(self, purpose: str, x: Tensor) -> Tensor:
        """Standard normal numbers with the shape, dtype and device of `x`."""
        ...

    def normal(self, purpose: str, count: int) -> Tensor:
        """(count,) fp32 on the CPU, standard normal, one per sample."""
        ...

    def keep(self, purpose: str, count: int, probability: float) -> Tensor:
        """(count,) fp32 on the CPU, 1 with `probability` else 0, one draw per sample."""
        ...

    def keep_all(self, purpose: str, count: int, probability: float) -> Tensor:
        """The same from one draw for the whole micro-batch: all ones or all zeros."""
        ...

    def integers(self, purpose: str, low: Tensor, high: Tensor) -> Tensor:
        """(B,) int64 on the CPU, uniform in [low_i, high_i); `low` and `high` are (B,) int64."""
        ...


class KeyedDraws:
    """Numbers keyed by (seed, purpose, position of the sample in the run's global order).

    They do not depend on rank, world size, micro-batch or the order of the calls, so a run resumes
    with any layout and without a saved generator. The same call gives the same numbers. They
    are drawn on the CPU in fp32 and cast, so CPU and GPU runs see the same noise.

    torch's CPU generator keeps 32 bits of a seed: two of 10^6 (purpose, sample) pairs share
    their numbers about a hundred times, which no statistic of training can notice.
    """

    like_upstream = False

    def __init__(self, seed: int, positions: Sequence[int]) -> None:
        self.seed = seed
        self.positions = tuple(int(position) for position in positions)

    def normal_like(self, purpose: str, x: Tensor) -> Tensor:
        shape = x.shape[1:]
        rows = [torch.randn(shape, generator=g) for g in self._generators(purpose, x.shape[0])]
        return torch.stack(rows).to(device=x.device, dtype=x.dtype)

    def normal(self, purpose: str, count: int) -> Tensor:
        return torch.cat([torch.randn(1, generator=g) for g in self._generators(purpose, count)])

    def keep(self, purpose: str, count: int, probability: float) -> Tensor:
        drawn = torch.cat([torch.rand(1, generator=g) for g in self._generators(purpose, count)])
        return (drawn < probability).float()

    def keep_all(self, purpose: str, count: int, probability: float) -> Tensor:
        # The first sample of the micro-batch decides for all of it.
        first = self._generators(purpose, count)[0]
        return (torch.rand(1, generator=first) < probability).float().expand(count).clone()

    def integers(self, purpose: str, low: Tensor, high: Tensor) -> Tensor:
        generators = self._generators(purpose, low.shape[0])
        bounds = zip(low.tolist(), high.tolist(), generators, strict=True)
        return torch.cat([torch.randint(a, b, (1,), generator=g) for a, b, g in bounds])

    def _generators(self, purpose: str, count: int) -> list[torch.Generator]:
        assert count == len(self.positions), (
            f"{purpose}: {count} samples requested, {len(self.positions)} positions given"
        )
        key = zlib.crc32(purpose.encode())
        return [
            torch.Generator().manual_seed(mix(self.seed, key, position))
            for position in self.positions
        ]


class GlobalDraws:
    """Upstream's scheme (`compat.draws: sat`): the global generators, in call order.

    The numbers depend on everything that was drawn before in this process, so the rank's seed,
    the micro-batch and the world size all matter, and resuming needs the saved generator states.

    Args:
        device: where upstream would draw dropout, the network's device; None is the CPU.
    """

    like_upstream = True

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cpu")

    def normal_like(self, purpose: str, x: Tensor) -> Tensor:
        return torch.randn_like(x)

    def normal(self, purpose: str, count: int) -> Tensor:
        return torch.randn(count)

    def keep(self, purpose: str, count: int, probability: float) -> Tensor:
        return torch.bernoulli(probability * torch.ones(count, device=self.device)).cpu()

    def keep_all(self, purpose: str, count: int, probability: float) -> Tensor:
        dropped = random.random() < 1 - probability
        return torch.zeros(count) if dropped else torch.ones(count)

    def integers(self, purpose: str, low: Tensor, high: Tensor) -> Tensor:
        first, last = int(low[0]), int(high[0])
        if bool((low == first).all() and (high == last).all()):
            return torch.randint(first, last, (low.shape[0],))
        bounds = zip(low.tolist(), high.tolist(), strict=True)
        return torch.cat([torch.randint(a, b, (1,)) for a, b in bounds])


def seed_everything(seed: int) -> None:
    """Seed the global generators of python, numpy and torch (all devices).

    Keyed draws do not read them; third-party code and GlobalDraws do.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)  # numpy takes 32 bits only
    torch.manual_seed(seed)
