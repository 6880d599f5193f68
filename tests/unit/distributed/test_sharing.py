"""Which ranks share what, without starting any: groups are lists of ranks here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from app.distributed.groups import ProcessGroups
from app.distributed.rank import RankInfo
from app.distributed.rank_group import ALONE, RankGroup
from app.distributed.sharing import of_first_rank, share_clips, split_ranks
from app.errors import ConfigError, DataError

made: list[list[int]] = []


@pytest.fixture(autouse=True)
def _groups_are_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    made.clear()

    def new_group(ranks: list[int]) -> list[int]:
        made.append(ranks)
        return ranks

    monkeypatch.setattr(dist, "new_group", new_group)


def process(rank: int, world_size: int) -> ProcessGroups:
    info = RankInfo.from_environment(
        {"RANK": str(rank), "WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1"}
    )
    return ProcessGroups(info, torch.device("cpu"), dist.HashStore())


def ranks_of(group: RankGroup) -> Any:
    return group.handle


def test_ranks_of_a_network_are_neighbours_and_their_copies_are_apart() -> None:
    groups = [split_ranks(process(rank, 6), 2) for rank in range(6)]

    assert [ranks_of(one.tensor) for one in groups] == [
        [0, 1],
        [0, 1],
        [2, 3],
        [2, 3],
        [4, 5],
        [4, 5],
    ]
    assert [one.tensor.rank for one in groups] == [0, 1, 0, 1, 0, 1]
    assert [ranks_of(one.copies) for one in groups] == [[0, 2, 4], [1, 3, 5]] * 3
    assert [one.copies.rank for one in groups] == [0, 0, 1, 1, 2, 2]


def test_ranks_that_share_clips_are_neighbours() -> None:
    groups = [share_clips(process(rank, 6), 3) for rank in range(6)]

    assert [ranks_of(one.clips) for one in groups] == [[0, 1, 2]] * 3 + [[3, 4, 5]] * 3
    assert [one.clips.rank for one in groups] == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("split", [split_ranks, share_clips])
def test_every_rank_makes_the_same_groups_in_the_same_order(
    split: Callable[[ProcessGroups, int], ProcessGroups],
) -> None:
    calls = []
    for rank in range(4):
        made.clear()
        split(process(rank, 4), 2)
        calls.append(list(made))

    assert calls == [calls[0]] * 4
    with pytest.raises(ConfigError):
        split(process(0, 4), 3)


@pytest.mark.parametrize("split", [split_ranks, share_clips])
def test_a_share_of_one_rank_needs_no_group(
    split: Callable[[ProcessGroups, int], ProcessGroups],
) -> None:
    groups = process(1, 4)

    assert split(groups, 1) is groups
    assert made == []


class Wire:
    """A group of two whose first rank writes down what its second one then reads."""

    def __init__(self, sent: list[Any], rank: int) -> None:
        self.sent, self.rank, self.size = sent, rank, 2

    def _passed_on(self, value: Any) -> Any:
        if self.rank == 0:
            self.sent.append(value)
            return value
        return self.sent.pop(0)

    def broadcast_json(self, value: object) -> Any:
        return self._passed_on(value)

    def broadcast(self, x: Tensor) -> Tensor:
        found: Tensor = self._passed_on(x)
        assert (x.shape, x.dtype) == (found.shape, found.dtype)  # a receiver has to have the room
        return found


def test_a_batch_of_the_first_rank_reaches_the_others_in_its_order() -> None:
    batch = {
        "mp4": torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16),
        "txt": ["a cat"],
        "num_frames": torch.tensor([9]),
        "fps": 8.0,
    }
    sent: list[Any] = []

    first = of_first_rank(batch, Wire(sent, 0))  # type: ignore[arg-type]
    second = of_first_rank({"mp4": "ignored"}, Wire(sent, 1))  # type: ignore[arg-type]

    for found in (first, second):
        assert list(found) == list(batch)
        assert found["txt"] == ["a cat"]
        assert found["fps"] == 8.0
        assert torch.equal(found["mp4"], batch["mp4"])  # type: ignore[arg-type]
        assert torch.equal(found["num_frames"], batch["num_frames"])  # type: ignore[arg-type]
    assert sent == []


def test_what_json_cannot_hold_is_refused_by_name_unless_the_rank_is_alone() -> None:
    batch = {"txt": ["a cat"], "clip": object()}

    with pytest.raises(DataError, match="a batch holds 'clip' of type object"):
        of_first_rank(batch, RankGroup(0, 2))
    assert of_first_rank(batch, ALONE) == batch
