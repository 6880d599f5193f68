"""Parts of parameters become whole ones in a checkpoint, wherever the optimizer cut them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from app.checkpoint.fragments import Fragment
from app.distributed.rank_group import ALONE, RankGroup
from app.training.division import Division, nothing_divided

KINDS = ("master", "exp_avg", "exp_avg_sq")
ROWS, WIDTH = 7, 5  # of this rank's part
AXES = {"wide": 0, "bias": 0, "deep": 1, "norm": None}


class Meeting:
    """Ranks as threads that bring tensors together."""

    def __init__(self, size: int) -> None:
        self.gate = threading.Barrier(size)
        self.places: list[Tensor | None] = [None] * size

    def group(self, rank: int) -> RankGroup:
        meeting, size = self, len(self.places)

        class Gathering:
            def __init__(self) -> None:
                self.rank, self.size = rank, size

            def gathered(self, x: Tensor) -> list[Tensor]:
                meeting.places[rank] = x.clone()
                meeting.gate.wait(30)
                found = [place for place in meeting.places if place is not None]
                meeting.gate.wait(30)
                return found

            def sum(self, x: Tensor) -> Tensor:
                return torch.stack(self.gathered(x)).sum(dim=0)

        group: Any = Gathering()
        return group  # type: ignore[no-any-return]


def on_all(size: int, call: Callable[[int, RankGroup], Any]) -> list[Any]:
    meeting = Meeting(size)
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda rank: call(rank, meeting.group(rank)), range(size)))


def whole_of(name: str, size: int) -> Tensor:
    shape = {
        "wide": (ROWS * size, WIDTH),
        "bias": (ROWS * size,),
        "deep": (ROWS, WIDTH * size),
        "norm": (WIDTH,),
    }[name]
    return torch.arange(float(torch.Size(shape).numel())).reshape(shape)


def division_of(size: int, group: RankGroup) -> Division:
    shapes = {
        name: tuple(n // size if axis == i else n for i, n in enumerate(whole_of(name, size).shape))
        for name, axis in AXES.items()
    }
    return Division(shapes, AXES.__getitem__, group)


def part_of(name: str, rank: int, size: int) -> Tensor:
    whole, axis = whole_of(name, size), AXES[name]
    return (whole if axis is None else whole.chunk(size, axis)[rank]).contiguous()


def pieces(rank: int, size: int, cuts: dict[str, list[int]]) -> Iterator[Fragment]:
    """Every part cut at the given places; the kinds differ by a factor."""
    for name in AXES:
        flat = part_of(name, rank, size).reshape(-1)
        ends = sorted({0, flat.numel(), *(cut % flat.numel() for cut in cuts.get(name, []))})
        for start, stop in pairwise(ends):
            for factor, kind in enumerate(KINDS, 1):
                yield Fragment(name, kind, start, flat[start:stop] * factor)


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(2, 4),
    cuts=st.dictionaries(st.sampled_from(sorted(AXES)), st.lists(st.integers(0, 99), max_size=6)),
)
def test_the_pieces_of_all_ranks_tile_the_whole(size: int, cuts: dict[str, list[int]]) -> None:
    def save(rank: int, group: RankGroup) -> list[Fragment]:
        return list(division_of(size, group).whole_fragments(pieces(rank, size, cuts)))

    found = [fragment for ranks in on_all(size, save) for fragment in ranks]

    for name in AXES:
        for factor, kind in enumerate(KINDS, 1):
            mine = sorted((f for f in found if (f.name, f.kind) == (name, kind)), key=_start)
            values = torch.cat([fragment.values for fragment in mine])
            lengths = [fragment.values.numel() for fragment in mine]
            assert [f.start for f in mine] == [sum(lengths[:i]) for i in range(len(mine))]
            assert values.equal(whole_of(name, size).reshape(-1) * factor)


def test_all_kinds_of_a_piece_follow_each_other() -> None:
    saved = on_all(
        2,
        lambda rank, group: [
            (f.name, f.start, f.kind)
            for f in division_of(2, group).whole_fragments(pieces(rank, 2, {"deep": [3, 13]}))
        ],
    )

    for told in saved:
        for index in range(0, len(told), len(KINDS)):
            together = told[index : index + len(KINDS)]
            assert [kind for _, _, kind in together] == list(KINDS)
            assert len({(name, start) for name, start, _ in together}) == 1


def test_a_row_wise_cut_makes_few_pieces() -> None:
    saved = on_all(
        2, lambda rank, group: list(division_of(2, group).whole_fragments(pieces(rank, 2, {})))
    )

    assert sum(f.name == "deep" and f.kind == "master" for ranks in saved for f in ranks) == 2


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 4),
    rank=st.integers(0, 3),
    name=st.sampled_from(sorted(AXES)),
    ends=st.tuples(st.integers(0, 99), st.integers(0, 99)),
)
def test_any_range_of_a_part_is_read_from_the_whole(
    size: int, rank: int, name: str, ends: tuple[int, int]
) -> None:
    rank %= size
    part = part_of(name, rank, size).reshape(-1)
    start, stop = sorted(end % (part.numel() + 1) for end in ends)

    def read(asked: str, kind: str, first: int, count: int) -> Tensor:
        assert kind == "master"
        flat = whole_of(asked, size).reshape(-1)
        assert 0 <= first <= first + count <= flat.numel()
        return flat[first : first + count]

    reader = division_of(size, RankGroup(rank, size)).reader(read)

    assert reader(name, "master", start, stop - start).equal(part[start:stop])


def test_the_norm_counts_what_is_on_every_rank_once() -> None:
    torch.manual_seed(0)
    whole = {name: torch.randn(whole_of(name, 2).shape) for name in AXES}

    def norm(rank: int, group: RankGroup) -> float:
        parts = {n: t if AXES[n] is None else t.chunk(2, AXES[n])[rank] for n, t in whole.items()}
        return division_of(2, group).norm(parts)

    expected = float(torch.cat([t.reshape(-1) for t in whole.values()]).norm())
    assert on_all(2, norm) == pytest.approx([expected, expected], rel=1e-6)


def test_alone_nothing_is_divided() -> None:
    network = nn.Linear(3, 2)
    division = Division.of(network, lambda name: 0, ALONE)

    fragments = [Fragment("weight", "master", 0, torch.zeros(6))]

    assert division.whole_shape("weight") == (2, 3)
    assert list(division.whole_fragments(fragments)) == fragments
    assert nothing_divided("weight") is None


def _start(fragment: Fragment) -> int:
    return fragment.start
