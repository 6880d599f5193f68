"""Which timestep each sample trains at: uniform, or one stratum per sample of the global batch.

Source of the rank scheme: sat/sgm/modules/diffusionmodules/sigma_sampling.py, DiscreteSampling.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from app.config.schema.diffusion import TimestepConfig
from app.distributed.mix import mix
from app.distributed.seeding import Draws

log = logging.getLogger(__name__)

# Upstream switches its strata off, without a word, at this many data-parallel ranks or fewer.
SAT_MIN_RANKS = 9


@dataclass(frozen=True, slots=True)
class Strata:
    """The timesteps cut into as many equal ranges as the global batch has samples.

    `position` holds each sample's place in the global batch, `total` the batch's size
    (micro-batch x accumulation x data parallel), so the ranges of one step tile all timesteps
    at any layout.
    """

    position: tuple[int, ...]
    total: int
    turn: int = 0  # the sample at position p takes range (p + turn) mod total

    @classmethod
    def from_positions(cls, positions: Sequence[int], total: int, seed: int) -> Strata:
        """Strata for samples at these positions of the run's global order (step * total + place).

        The ranges turn by a keyed number of places each step. Without it a clip would see one
        range only: the data order keeps a clip in its lane, and a lane has fixed places.
        """
        step = positions[0] // total
        turn = mix(seed, zlib.crc32(b"timestep_strata"), step) % total
        return cls(tuple(position % total for position in positions), total, turn)

    def bounds(self, num_idx: int, count: int) -> tuple[Tensor, Tensor]:
        """(B,) int64 low and high (exclusive) for each sample."""
        assert count == len(self.position), f"{count} samples, {len(self.position)} positions"
        stratum = torch.tensor([(p + self.turn) % self.total for p in self.position])
        low = stratum * num_idx // self.total
        high = (stratum + 1) * num_idx // self.total
        # More samples than timesteps: some ranges would be empty, so neighbours share one.
        return low, torch.maximum(high, low + 1)


@dataclass(frozen=True, slots=True)
class RankStratum:
    """Upstream's scheme (`compat.strata: sat`): one range for all samples of a rank."""

    low: int
    high: int

    @classmethod
    def of_rank(cls, config: TimestepConfig, rank: int, world_size: int) -> RankStratum | None:
        """The range of a data-parallel rank; None where upstream draws uniformly.

        A group_num that does not divide the ranks ends upstream's run; here it is one warning,
        and the timesteps are drawn uniformly.
        """
        groups = config.group_num
        if not config.uniform_sampling or world_size < SAT_MIN_RANKS:
            return None
        if groups <= 0 or world_size % groups:
            log.warning(
                "timesteps are not stratified: group_num does not divide the ranks",
                extra={"group_num": groups, "data_parallel_ranks": world_size},
            )
            return None
        group = rank // (world_size // groups)
        width = config.num_idx // groups
        return cls(group * width, (group + 1) * width)

    def bounds(self, num_idx: int, count: int) -> tuple[Tensor, Tensor]:
        """(B,) int64 low and high (exclusive) for each sample."""
        return torch.full((count,), self.low), torch.full((count,), self.high)


def draw_timesteps(
    config: TimestepConfig, draws: Draws, count: int, strata: Strata | RankStratum | None
) -> Tensor:
    """One timestep per sample, drawn under the purpose "timestep".

    Args:
        strata: read only with `uniform_sampling: true`; None draws from all timesteps.

    Returns:
        (count,) int64 on the CPU, 0..num_idx - 1.
    """
    if strata is None or not config.uniform_sampling:
        low, high = torch.zeros(count, dtype=torch.int64), torch.full((count,), config.num_idx)
    else:
        low, high = strata.bounds(config.num_idx, count)
    return draws.integers("timestep", low, high)
