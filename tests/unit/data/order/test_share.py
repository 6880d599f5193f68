from __future__ import annotations

import pytest

from app.data.order.share import Share


def test_ranks_take_neighbouring_runs_cut_into_micro_batches() -> None:
    share = Share(rank=1, world_size=2, micro_batch=2, accumulation=3)

    assert share.batch == 12
    assert [share.positions(1, micro) for micro in range(3)] == [[18, 19], [20, 21], [22, 23]]


def test_interleaved_ranks_share_each_micro_step() -> None:
    shares = [Share(rank, 2, 2, 3, interleaved=True) for rank in (0, 1)]

    assert [shares[0].positions(0, m) for m in range(3)] == [[0, 1], [4, 5], [8, 9]]
    assert [shares[1].positions(0, m) for m in range(3)] == [[2, 3], [6, 7], [10, 11]]


@pytest.mark.parametrize("interleaved", [False, True])
def test_ranks_together_cover_each_batch_once(interleaved: bool) -> None:
    shares = [Share(rank, 4, 3, 2, interleaved=interleaved) for rank in range(4)]

    taken = [p for share in shares for micro in range(2) for p in share.positions(5, micro)]

    assert sorted(taken) == list(range(5 * 24, 6 * 24))
