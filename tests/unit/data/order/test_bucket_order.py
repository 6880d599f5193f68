from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.data.order.bucket_order import BucketOrder, share_of_buckets
from app.data.order.orders import EpochOrder, MixedOrder, Order
from app.data.order.share import Share
from app.errors import DataError


def order_of(
    counts: Sequence[Sequence[int]], of: Sequence[int], batches: Sequence[int], seed: int = 7
) -> BucketOrder:
    def make(part: Sequence[Sequence[int]], batch: int) -> Order:
        together = [size for sizes in part for size in sizes]
        return EpochOrder(together, seed=seed, batch=batch, lanes=4, window=5)

    return BucketOrder(counts, np.array(of), batches, make, seed)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_each_clip_comes_once_per_epoch_of_its_bucket_over_kills(data: st.DataObject) -> None:
    check_exactly_once(data)


@pytest.mark.slow
@settings(max_examples=1500, deadline=None)
@given(data=st.data())
def test_each_clip_comes_once_per_epoch_of_its_bucket_over_many_kills(data: st.DataObject) -> None:
    check_exactly_once(data)


def check_exactly_once(data: st.DataObject) -> None:
    """A run killed again and again, each time continued by another number of ranks."""
    counts = data.draw(st.lists(st.integers(0, 12), min_size=1, max_size=6))
    counts[0] += 1
    buckets = data.draw(st.integers(1, 4))
    of = data.draw(
        st.lists(st.integers(-1, buckets - 1), min_size=sum(counts), max_size=sum(counts))
    )
    of[0] = 0
    parts = data.draw(st.integers(1, 6))  # every batch divides by it
    batches = [parts * data.draw(st.integers(1, 3)) for _ in range(buckets)]
    seed, epochs = data.draw(st.integers(0, 2**40)), data.draw(st.integers(1, 3))
    undisturbed = order_of([counts], of, batches, seed)
    steps = undisturbed.steps_for_epochs(epochs)

    stream: dict[int, list[int]] = {}  # step -> indices, of the last attempt that got there
    step = 0
    while step < steps:
        order = order_of([counts], of, batches, seed)
        world = data.draw(st.sampled_from([w for w in range(1, parts + 1) if parts % w == 0]))
        accumulation = data.draw(
            st.sampled_from([a for a in range(1, parts // world + 1) if parts // world % a == 0])
        )
        stop = min(steps, step + data.draw(st.integers(1, 6)))
        shares = [
            share_of_buckets(Share(rank, world, parts, accumulation), order)
            for rank in range(world)
        ]
        for t in range(step, stop):
            positions = [p for s in shares for m in range(accumulation) for p in s.positions(t, m)]
            stream[t] = [order.index(p) for p in positions]
        step = max(0, stop - data.draw(st.integers(0, 3))) if stop < steps else stop

    streams: list[list[int]] = [[] for _ in range(buckets)]
    for t in range(steps):
        bucket = undisturbed.bucket_of_step(t)
        first = t * undisturbed.stride
        assert stream[t] == [undisturbed.index(first + j) for j in range(batches[bucket])]
        streams[bucket] += stream[t]
    starts = np.cumsum([0, *counts])
    for bucket, drawn in enumerate(streams):
        members = [index for index, where in enumerate(of) if where == bucket]
        assert set(drawn) == set(members)
        if members:  # the same as a run over these clips alone, whose epochs test_order.py holds
            inside = [sum(a <= m < b for m in members) for a, b in pairwise(starts.tolist())]
            alone = EpochOrder(inside, seed=seed, batch=batches[bucket], lanes=4, window=5)
            assert drawn == [members[alone.index(place)] for place in range(len(drawn))]
            assert min(Counter(drawn).values()) >= epochs


def test_buckets_take_turns_in_proportion_to_their_clips() -> None:
    of = [0] * 300 + [1] * 100
    order = order_of([[400]], of, [4, 4])

    turns = [order.bucket_of_step(step) for step in range(100)]

    assert Counter(turns) == {0: 75, 1: 25}
    assert turns != sorted(turns)
    assert Counter(order.bucket_of_step(step) for step in range(100, 200)) == {0: 75, 1: 25}
    assert [order.bucket_of_step(step) for step in range(100, 200)] != turns


def test_each_clip_of_a_bucket_comes_before_one_comes_again() -> None:
    of = [0, 1] * 12
    order = order_of([[10, 14]], of, [3, 4])

    drawn: dict[int, list[int]] = {0: [], 1: []}
    for step in range(order.steps_for_epochs(1)):
        bucket = order.bucket_of_step(step)
        drawn[bucket] += [order.index(step * 4 + j) for j in range(order.batches[bucket])]

    assert sorted(drawn[0]) == list(range(0, 24, 2))
    assert sorted(drawn[1]) == list(range(1, 24, 2))


def test_what_replaces_a_bad_clip_is_of_its_bucket() -> None:
    of = [0, 1, 1] * 10
    order = order_of([[30]], of, [2, 2])

    for step in range(20):
        bucket = order.bucket_of_step(step)
        others = {order.replacement(2 * step, attempt) for attempt in range(40)}
        assert {of[index] for index in others} == {bucket}
        assert len(others) > 5


def test_clips_without_a_bucket_are_never_used() -> None:
    of = [-1, 0, 0, -1, 0]
    order = order_of([[3, 2]], of, [1])

    assert {order.index(position) for position in range(50)} == {1, 2, 4}


def test_an_empty_bucket_gets_no_step_and_no_clip_at_all_is_an_error() -> None:
    order = order_of([[4]], [1, 1, 1, 1], [2, 2])
    assert {order.bucket_of_step(step) for step in range(10)} == {1}

    with pytest.raises(DataError, match="no clip fits"):
        order_of([[2]], [-1, -1], [2, 2])


def test_weights_count_inside_each_bucket() -> None:
    counts = [[40], [40]]
    of = ([0] * 20 + [1] * 20) * 2

    def make(part: Sequence[Sequence[int]], batch: int) -> Order:
        return MixedOrder(part, [3.0, 1.0], seed=1, batch=batch, lanes=1)

    order = BucketOrder(counts, np.array(of), [1, 1], make, seed=1)

    drawn = [order.index(step) for step in range(4000)]
    for bucket in (0, 1):
        own = [index for index in drawn if of[index] == bucket][:1000]
        assert sum(index < 40 for index in own) == 750


def test_every_rank_takes_a_different_part_of_each_step() -> None:
    order = order_of([[64]], [0] * 32 + [1] * 32, [8, 16])
    shares = [share_of_buckets(Share(rank, 4, 9), order) for rank in range(4)]

    for step in range(8):
        size = order.batches[order.bucket_of_step(step)]
        taken = [p for share in shares for p in share.positions(step, 0)]
        assert taken == list(range(step * 16, step * 16 + size))
    assert shares[0].micro_batch == 4
    assert shares[0].batch == 16
