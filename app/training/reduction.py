"""Metrics of one step, averaged over micro-steps and ranks in a single small message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from app.distributed.rank_group import world

ABSENT = -100.0  # upstream's mark: this rank has no value for the metric


def reduced(
    values: Mapping[str, Sequence[Tensor]], *, stop: bool, news: bool = False
) -> dict[str, float]:
    """Means of scalars by name, and how many ranks set `stop` and `news`.

    Every rank must give the same names. A value of -100 does not count; a name without any
    value is -100, and names with "eval" in them are left out, as upstream does.

    Args:
        values: one scalar per micro-step.
        stop: this rank requests the end of the run.
        news: this rank has something that all ranks must know before the next step.

    Returns:
        The same floats on every rank.
    """
    names = sorted(name for name in values if "eval" not in name)
    sums, counts = [], []
    for name in names:
        stacked = torch.stack([value.float().reshape(()) for value in values[name]])
        present = stacked != ABSENT
        sums.append(torch.where(present, stacked, torch.zeros_like(stacked)).sum())
        counts.append(present.sum())
    message = torch.stack([*sums, *(count.to(sums[0]) for count in counts)])
    flags = torch.tensor([float(stop), float(news)], device=message.device)
    total = world().sum(torch.cat([message, flags])).tolist()
    found = {
        name: total[i] / total[len(names) + i] if total[len(names) + i] else ABSENT
        for i, name in enumerate(names)
    }
    return {**found, "stop": total[-2], "news": total[-1]}
