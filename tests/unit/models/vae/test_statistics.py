from __future__ import annotations

import pytest
import torch
from torch import nn

from app.distributed.rank_group import ALONE
from app.models.vae.statistics import GroupStatistics, apply_norm


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_pieces_have_the_norm_of_the_whole_map(offset: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 8, 5, 4, 4, generator=generator) + offset
    norm = nn.GroupNorm(4, 8, eps=1e-6)
    nn.init.normal_(norm.weight, generator=generator)
    nn.init.normal_(norm.bias, generator=generator)
    statistics = GroupStatistics(4)
    for piece in x.split([1, 3, 1], dim=2):
        statistics.add(piece)

    normed = apply_norm(x, statistics.scale_and_shift(norm, ALONE))

    expected = nn.functional.group_norm(
        x.double(), 4, norm.weight.double(), norm.bias.double(), norm.eps
    )
    # Far from zero fp32 has fewer digits of x itself.
    torch.testing.assert_close(normed.double(), expected, rtol=0, atol=2e-6 + offset * 1e-6)


def test_the_result_has_the_dtype_of_the_map() -> None:
    x = torch.randn(1, 4, 1, 2, 2, generator=torch.Generator().manual_seed(0)).bfloat16()
    statistics = GroupStatistics(2)
    statistics.add(x)

    normed = apply_norm(x, statistics.scale_and_shift(nn.GroupNorm(2, 4), ALONE))

    assert normed.dtype == torch.bfloat16
    assert normed.float().mean().abs() < 0.02
