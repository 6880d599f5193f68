"""Statistics of a group norm over a feature map that is never in memory as a whole.

A clip is cut in time, into pieces and over ranks. Each part gives its count, mean and sum of
squared deviations per sample and group; together they are those of the whole map.
Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample
variances", 1979: no difference of large sums, so nothing is lost where the mean is large.
"""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor, nn

from app.distributed.rank_group import RankGroup


class GroupStatistics:
    """Count, mean and squared deviations of the pieces seen so far; (B, groups) each."""

    def __init__(self, num_groups: int) -> None:
        self.num_groups = num_groups
        self._sums: Tensor | None = None  # (3, B, groups) float64: count, mean, deviations

    def add(self, x: Tensor) -> None:
        """Take in one piece (B, C, T, H, W)."""
        values = x.unflatten(1, (self.num_groups, -1)).flatten(2).float()
        variance, mean = torch.var_mean(values, dim=2, correction=0)
        size = float(values.shape[2])
        count = torch.full_like(mean, size, dtype=torch.float64)
        found = torch.stack([count, mean.double(), variance.double() * size])
        self._sums = found if self._sums is None else _together(self._sums, found)

    def scale_and_shift(self, norm: nn.GroupNorm, group: RankGroup) -> tuple[Tensor, Tensor]:
        """What turns x into the normed x, over all pieces of all ranks of `group`.

        Returns:
            Two of (B, C, 1, 1, 1) in fp32: x * scale + shift.
        """
        assert self._sums is not None, "a norm follows a map without pieces"
        count, mean, deviations = reduce(_together, group.gathered(self._sums))
        rstd = torch.rsqrt(deviations / count + norm.eps)
        per_group = norm.num_channels // norm.num_groups
        rstd, mean = (v.repeat_interleave(per_group, dim=1) for v in (rstd, mean))
        scale = norm.weight.double() * rstd
        shift = norm.bias.double() - mean * scale
        return tuple(v.float()[:, :, None, None, None] for v in (scale, shift))  # type: ignore[return-value]


def _together(a: Tensor, b: Tensor) -> Tensor:
    """Statistics of two parts as one; (3, B, groups)."""
    count = a[0] + b[0]
    share = b[0] / count
    step = b[1] - a[1]
    mean = a[1] + step * share
    return torch.stack([count, mean, a[2] + b[2] + step * step * a[0] * share])


def apply_norm(x: Tensor, scale_and_shift: tuple[Tensor, Tensor]) -> Tensor:
    """x (B, C, T, H, W) * scale + shift, computed in fp32, in the dtype of `x`."""
    scale, shift = scale_and_shift
    return torch.addcmul(shift, x, scale).to(x.dtype)
