"""A group of one rank, which needs no process group; more ranks are in tests/distributed."""

from __future__ import annotations

import torch

from app.distributed.rank_group import ALONE, enter, leave


def test_one_rank_is_its_own_sum_and_its_own_gathering() -> None:
    x = torch.tensor([1.5, -2.0])

    total = ALONE.sum(x)

    assert torch.equal(total, x)
    assert total.data_ptr() != x.data_ptr()  # changing the sum must not change what was summed
    assert [one.tolist() for one in ALONE.gathered(x)] == [[1.5, -2.0]]
    assert ALONE.broadcast(x) is x


def test_one_rank_gets_its_own_json() -> None:
    value = {"a": [1, 2.5, None], "b": "ä"}

    assert ALONE.broadcast_json(value) == value
    assert ALONE.gathered_json(value) == [value]


def test_entering_and_leaving_change_nothing() -> None:
    x = torch.tensor([3.0], requires_grad=True)

    (leave(enter(x, ALONE) * 2, ALONE)).backward()  # type: ignore[no-untyped-call]

    assert x.grad is not None
    assert x.grad.item() == 2.0
