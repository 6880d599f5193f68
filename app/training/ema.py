"""Exponential moving average of the fp32 master weights, over the pieces that a rank owns.

Source: SwissArmyTransformer 0.4.12, sat/ops/fused_ema_adam.py, FusedEmaAdam.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def ema_decay(update: int, largest: float) -> float:
    """Weight of the old average at update 1, 2, ...: small at first, at most `largest`."""
    return min(largest, (1 + update) / (10 + update))


class MovingAverage:
    """Averages of flat fp32 tensors, sharded as the tensors themselves are.

    Starts as a copy of the weights. `updates` is part of a checkpoint; so are the averages.
    """

    def __init__(self, masters: Sequence[Tensor], decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._masters = list(masters)
        self._averages = {id(master): master.detach().clone() for master in masters}

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages towards the weights; call after each optimizer step not skipped."""
        self.updates += 1
        weight = 1 - ema_decay(self.updates, self.decay)
        for master in self._masters:
            self._averages[id(master)].lerp_(master.detach(), weight)

    def of(self, master: Tensor) -> Tensor:
        """The average of one of the tensors given at the start."""
        return self._averages[id(master)]

    @torch.no_grad()
    def restart(self) -> None:
        """Set the averages to the current weights."""
        self.updates = 0
        for master in self._masters:
            self._averages[id(master)].copy_(master.detach())
