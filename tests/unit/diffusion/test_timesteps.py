from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.config.schema.diffusion import TimestepConfig
from app.diffusion.timesteps import RankStratum, Strata, draw_timesteps
from app.distributed.seeding import GlobalDraws, KeyedDraws

STRATIFIED = TimestepConfig(uniform_sampling=True, group_num=40)


def test_without_strata_timesteps_cover_the_whole_range() -> None:
    drawn = draw_timesteps(TimestepConfig(), KeyedDraws(0, range(4000)), 4000, None)

    assert drawn.min() == 0
    assert drawn.max() == 999
    assert abs(drawn.float().mean().item() - 499.5) < 20


def test_uniform_draws_are_upstream_s_one_call_of_randint() -> None:
    torch.manual_seed(5)
    torch.randn(3)
    expected = torch.randint(0, 1000, (3,))

    torch.manual_seed(5)
    torch.randn(3)
    drawn = draw_timesteps(TimestepConfig(), GlobalDraws(), 3, None)

    assert torch.equal(drawn, expected)


@settings(deadline=None)
@given(st.integers(1, 64), st.integers(0, 100))
def test_the_samples_of_a_step_take_each_stratum_once(total: int, turn: int) -> None:
    low, high = Strata(tuple(range(total)), total, turn).bounds(1000, total)

    order = low.argsort()
    assert low[order][0] == 0
    assert high[order][-1] == 1000
    assert torch.equal(low[order][1:], high[order][:-1])
    assert (high - low).max() - (high - low).min() <= 1


def test_the_position_picks_the_stratum_and_the_turn_shifts_it() -> None:
    low, high = Strata((0, 3), 4).bounds(1000, 2)
    turned, _ = Strata((0, 3), 4, turn=1).bounds(1000, 2)

    assert low.tolist() == [0, 750]
    assert high.tolist() == [250, 1000]
    assert turned.tolist() == [250, 0]


def test_more_samples_than_timesteps_share_ranges_and_leave_none_empty() -> None:
    low, high = Strata(tuple(range(2500)), 2500).bounds(1000, 2500)

    assert (high > low).all()
    assert low.unique().numel() == 1000


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 32), st.integers(0, 10), st.data())
def test_strata_do_not_depend_on_how_the_batch_is_cut(
    step: int, total: int, seed: int, data: st.DataObject
) -> None:
    positions = [step * total + j for j in range(total)]
    cut = data.draw(st.integers(1, total))

    whole = Strata.from_positions(positions, total, seed).bounds(1000, total)
    first = Strata.from_positions(positions[:cut], total, seed).bounds(1000, cut)

    assert torch.equal(whole[0][:cut], first[0])
    assert torch.equal(whole[1][:cut], first[1])


def test_a_place_in_the_batch_sees_every_stratum_over_the_steps() -> None:
    lows = [Strata.from_positions([step * 8 + 5], 8, 0).bounds(1000, 1)[0] for step in range(200)]

    values, counts = torch.cat(lows).unique(return_counts=True)
    assert values.tolist() == [0, 125, 250, 375, 500, 625, 750, 875]
    assert counts.min() >= 8  # 25 expected


def test_strata_are_read_only_with_uniform_sampling() -> None:
    drawn = draw_timesteps(TimestepConfig(), KeyedDraws(0, range(400)), 400, Strata((0,) * 400, 4))

    assert drawn.max() > 900


def test_drawn_timesteps_lie_in_their_strata() -> None:
    strata = Strata(tuple(range(10)), 10)

    drawn = draw_timesteps(STRATIFIED, KeyedDraws(0, range(10)), 10, strata)

    assert (drawn // 100).tolist() == list(range(10))


def test_upstream_s_ranks_share_groups() -> None:
    bounds = [RankStratum.of_rank(STRATIFIED, rank, 80) for rank in (0, 1, 2, 79)]

    assert bounds == [RankStratum(a, b) for a, b in ((0, 25), (0, 25), (25, 50), (975, 1000))]
    low, high = RankStratum(25, 50).bounds(1000, 3)
    assert low.tolist() == [25, 25, 25]
    assert high.tolist() == [50, 50, 50]


def test_upstream_draws_uniformly_on_eight_ranks_or_fewer() -> None:
    assert RankStratum.of_rank(STRATIFIED, 0, 8) is None
    assert RankStratum.of_rank(TimestepConfig(group_num=40), 0, 80) is None


@pytest.mark.parametrize(("group_num", "world_size"), [(0, 16), (40, 16), (-1, 16)])
def test_an_impossible_group_num_is_a_warning_and_uniform(
    group_num: int, world_size: int, caplog: pytest.LogCaptureFixture
) -> None:
    config = TimestepConfig(uniform_sampling=True, group_num=group_num)

    with caplog.at_level(logging.WARNING):
        stratum = RankStratum.of_rank(config, 0, world_size)

    assert stratum is None
    assert "group_num does not divide the ranks" in caplog.text
