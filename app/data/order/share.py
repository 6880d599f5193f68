"""Which positions of the global order belong to one rank, micro-batch by micro-batch."""

from __future__ import annotations

from dataclasses import dataclass

from app.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Share:
    """One rank's part of every global batch.

    The global batch is B = micro_batch * accumulation * world_size. A rank takes a run of
    B / world_size neighbouring positions and cuts it into micro-batches. `interleaved` is
    upstream's way (`order: sat`): micro-step m of all ranks together is a run of positions, and
    each rank takes its slice of that.

    `rank` and `world_size` count data-parallel ranks.
    """

    rank: int
    world_size: int
    micro_batch: int
    accumulation: int = 1
    interleaved: bool = False

    def __post_init__(self) -> None:
        for name in ("world_size", "micro_batch", "accumulation"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}, but must be 1 or more",
                    where="batch sizes of the run",
                    fix="use a positive whole number",
                )
        assert 0 <= self.rank < self.world_size

    @property
    def batch(self) -> int:
        """Samples per optimizer step over all ranks."""
        return self.micro_batch * self.accumulation * self.world_size

    def positions(self, step: int, micro: int) -> list[int]:
        """Positions of micro-step `micro` (0 .. accumulation - 1) of optimizer step `step`."""
        assert 0 <= micro < self.accumulation
        first = step * self.batch
        if self.interleaved:
            first += (micro * self.world_size + self.rank) * self.micro_batch
        else:
            first += (self.rank * self.accumulation + micro) * self.micro_batch
        return list(range(first, first + self.micro_batch))
